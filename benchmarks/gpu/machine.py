"""The device, what is installed, and how fast memory is copied."""

from __future__ import annotations

import shutil
import subprocess
import time
from statistics import median
from typing import Any

import torch
from harness import interleaved

from gpu.bench import Bench, attempt
from snn_ext import kernels

__all__ = ["run"]

_ASKED = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"


def run(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch_cuda": torch.version.cuda,
        "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        "cupy": attempt(_cupy),  # before the backends import it
        "backends": [s._asdict() for s in kernels.backends()],
    }
    if bench.cuda("properties of the device and its driver"):
        found["device"] = _properties()
        found["nvidia-smi"] = attempt(_smi)
    found["copy_GBps"] = _bandwidths(bench)
    return found


def _properties() -> dict[str, Any]:
    p = torch.cuda.get_device_properties(0)
    return {
        "name": p.name,
        "capability": f"{p.major}.{p.minor}",
        "memory_GiB": round(p.total_memory / 2**30, 1),
        "multiprocessors": p.multi_processor_count,
        "L2_MiB": getattr(p, "L2_cache_size", 0) / 2**20,
        "count": torch.cuda.device_count(),
        "cudnn": torch.backends.cudnn.version(),
    }


def _smi() -> dict[str, str]:
    command = shutil.which("nvidia-smi") or "nvidia-smi"
    done = subprocess.run(
        [command, f"--query-gpu={_ASKED}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    first = done.stdout.strip().splitlines()[0]
    return dict(zip(_ASKED.split(","), (v.strip() for v in first.split(",")), strict=True))


def _cupy() -> dict[str, Any]:
    start = time.perf_counter()
    import cupy

    seconds = time.perf_counter() - start
    return {"version": cupy.__version__, "nvrtc": list(cupy.cuda.nvrtc.getVersion()), "import_s": seconds}


def _bandwidths(bench: Bench) -> dict[str, float]:
    """Bytes read and written per second, in GB/s, by the size of the buffer that is copied."""
    powers = bench.pick([20, 22, 24, 26, 28, 30], [12])
    found = {}
    for power in powers:
        source = torch.ones(2**power, dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        way = f"2^{power} B"
        times = interleaved({way: lambda a=target, b=source: a.copy_(b)}, bench.pick(9, 2), bench.device)
        found[way] = 2 * 2**power / median(times[way]) / 1e9
    return found
