"""NVRTC through ctypes: compiles CUDA source to machine code without a GPU or a driver.

``python -m tests.kernels.nvrtc FILE`` writes the registers of all kernels to a file.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from snn_ext.kernels import cupy_backend, fused
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.spec import Spec
from tests.kernels import cases

ARCHITECTURES = (75, 80, 90, 100)


class Resources(NamedTuple):
    """What ptxas says about one kernel."""

    registers: int
    spill_bytes: int
    stack_bytes: int


@functools.cache
def library() -> ctypes.CDLL | None:
    """The NVRTC of an installed nvidia-cuda-nvrtc wheel (torch's CUDA builds bring one), or None."""
    for name in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found = [f for f in files if re.fullmatch(r"libnvrtc\.so\.\d+", f.name)]
        if found:
            return ctypes.CDLL(str(found[0].locate()))
    return None


def architectures(nvrtc: ctypes.CDLL) -> list[int]:
    """Compute capabilities it compiles for: 75, 80, ..."""
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(numbers)
    return list(numbers)


def compile_(nvrtc: ctypes.CDLL, source: str, options: Sequence[str]) -> dict[str, Resources]:
    """Compile, and return the resources of every kernel.

    Raises:
        RuntimeError: the compiler's log.
    """
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"neuron.cu", 0, None, None)
    flags = [*options, "--ptxas-options=-v"]
    status = nvrtc.nvrtcCompileProgram(
        program, len(flags), (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
    )
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise RuntimeError(log.value.decode())
    return _parsed(log.value.decode())


def _parsed(log: str) -> dict[str, Resources]:
    kernels: dict[str, Resources] = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]
        numbers = {
            key: int(match[1]) if (match := re.search(pattern, part)) else 0
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "stores": r"(\d+) bytes spill stores",
                "loads": r"(\d+) bytes spill loads",
                "stack": r"(\d+) bytes stack frame",
            }.items()
        }
        kernels[name] = Resources(
            numbers["registers"], numbers["stores"] + numbers["loads"], numbers["stack"]
        )
    return kernels


_STEPS = (4, 0, 16, 1, 8)  # in registers; 0: h is kept
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def specialisations() -> list[tuple[Spec, int]]:
    """Every neuron of SpikingJelly and snnTorch, and its neurons per thread; types and sizes take turns."""
    families = [cases.spikingjelly(charge, reset) for charge in cases.CHARGES for reset in ("hard", "soft")]
    families += [cases.snntorch(reset) for reset in ("hard", "soft", "none")]
    families += [cases.others(timing) for timing in ("immediate", "delayed")]
    found: dict[Spec, int] = {}
    for i, dynamics in enumerate(d for family in families for d in family):
        steps = _STEPS[i % len(_STEPS)]
        scale = torch.ones(3) if i % 4 == 3 else None
        x = torch.zeros(1, 2, 3, dtype=_TYPES[i % len(_TYPES)], device="meta")
        call = Call(x, dynamics, scale=scale)
        kernel = fused.prepare(call, cupy_backend.CUPY, unrolled=steps)[0].kernel
        # Where memory is not aligned, a thread takes one neuron.
        found[kernel] = 1 if i % 8 == 7 else cupy_backend.most_lanes(kernel)
    kernel = Spec(folded=True, unrolled=4)
    return [*found.items(), (kernel, cupy_backend.most_lanes(kernel))]


def resources(kernels: Sequence[tuple[Spec, int]], architecture: int) -> dict[str, Resources]:
    """Compile kernels into one program; their resources, by template, neurons per thread and direction."""
    nvrtc = library()
    if nvrtc is None:
        raise RuntimeError("there is no NVRTC")
    specs = " ".join(f"SNN_SPEC(k{i},{lanes},{kernel.template})" for i, (kernel, lanes) in enumerate(kernels))
    options = [o for o in cupy_backend.options(Spec()) if not o.startswith("-DSNN_SPECS=")]
    flags = [*options, f"-DSNN_SPECS={specs}", f"--gpu-architecture=sm_{architecture}"]
    found = {}
    for symbol, used in compile_(nvrtc, cupy_backend.source(), flags).items():
        number, _, direction = symbol.removeprefix("k").partition("_")
        kernel, lanes = kernels[int(number)]
        found[f"{kernel.template} x{lanes} {direction}"] = used
    return found


def main(path: str) -> None:
    """Write the registers of every specialisation, for every size and architecture."""
    nvrtc, log = library(), {}
    if nvrtc is None:
        raise SystemExit("there is no NVRTC")
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    bases = [replace(kernel, unrolled=0) for kernel, _ in specialisations()]
    for architecture in ARCHITECTURES:
        log[f"sm_{architecture}"] = {}
        for steps in _STEPS:
            wanted = [replace(k, unrolled=steps) for k in dict.fromkeys(bases)]
            kernels = [(k, cupy_backend.most_lanes(k)) for k in wanted]
            for name, used in resources(kernels, architecture).items():
                log[f"sm_{architecture}"][name] = used._asdict()
    Path(path).write_text(
        json.dumps({"nvrtc": f"{major.value}.{minor.value}", "kernels": log}, indent=0) + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1])
