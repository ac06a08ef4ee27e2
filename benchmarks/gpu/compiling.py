"""What a first call costs, and what the compiler says about the kernels.

The suite gives CuPy an empty cache folder, so that nothing is compiled yet when this part runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from ways import LEAKY, LIF, inputs

from gpu.bench import Bench, attempt
from snn_ext.kernels import Call, cupy_backend, fused, host_backend
from snn_ext.kernels.launches import Launcher
from tests.kernels import nvrtc

__all__ = ["run"]

# name -> dynamics, T, type of inputs
KERNELS = {
    "LIF T=4 float32": (LIF, 4, torch.float32),
    "LIF T=4 bfloat16": (LIF, 4, torch.bfloat16),
    "Leaky T=4 float32": (LEAKY, 4, torch.float32),
    "LIF T=8 float32": (LIF, 8, torch.float32),
    "LIF T=16 float32": (LIF, 16, torch.float32),
    "LIF T=32 float32": (LIF, 32, torch.float32),
    "Leaky, soft immediate T=4 float32": (replace(LEAKY, timing="immediate"), 4, torch.float32),
}


def run(bench: Bench) -> dict[str, Any]:
    names = list(KERNELS)[: bench.pick(None, 2)]
    return {
        "first_calls": {name: attempt(lambda n=name: _first_call(bench, n)) for name in names},
        "compiler": attempt(lambda: _resources(bench, names)),
    }


def _call(name: str, device: str) -> Call:
    dynamics, steps, dtype = KERNELS[name]
    with torch.device(device):
        x, _ = inputs(steps, 1024, dtype)
    return Call(x, dynamics)


def _first_call(bench: Bench, name: str) -> dict[str, float]:
    """Seconds of a forward and backward pass: compiled, read from CuPy's folder, and known already."""
    call = _call(name, bench.device)
    bench.cuda("seconds until CuPy has compiled a kernel; these are the host's, which are kept on disk")
    make: Callable[[], Launcher] = host_backend.Host if bench.dry else cupy_backend.Cupy
    unrolled = (host_backend if bench.dry else cupy_backend).recompute(call)

    def seconds(launcher: Launcher) -> float:
        bench.synchronize()
        start = time.perf_counter()
        spikes = fused.run(call, launcher, unrolled=unrolled).spikes
        torch.autograd.grad(spikes, call.x, torch.ones_like(spikes))
        bench.synchronize()
        return time.perf_counter() - start

    first = make()
    return {"compiled": seconds(first), "from disk": seconds(make()), "known": seconds(first)}


def _resources(bench: Bench, names: list[str]) -> dict[str, Any]:
    """Seconds, registers and spilled bytes of every kernel, one neuron per thread and as many as may be."""
    library = nvrtc.library()
    if library is None:
        bench.notes.append("no registers: no NVRTC of an nvidia-cuda-nvrtc package")
        return {}
    arch = 90 if bench.dry else _architecture()
    found = {}
    for name in bench.each(names, "kernels for their registers"):
        call = _call(name, "cpu")
        kernel = fused.prepare(call, cupy_backend.CUPY, unrolled=cupy_backend.recompute(call))[0].kernel
        for lanes in (1, 4) if kernel.unrolled <= 4 else (1,):
            options = (*cupy_backend.options(kernel, lanes), f"--gpu-architecture=sm_{arch}")
            start = time.perf_counter()
            resources = nvrtc.compile_(library, cupy_backend.source(), options)
            seconds = time.perf_counter() - start
            found[f"{name}, lanes {lanes}"] = {
                "seconds": seconds,
                **{k.removeprefix("neuron_"): r._asdict() for k, r in resources.items()},
            }
    return {"architecture": f"sm_{arch}", "kernels": found}


def _architecture() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
