"""NVRTC through ctypes: compiles CUDA source to machine code without a GPU or a driver."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import re
from collections.abc import Sequence
from typing import NamedTuple


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
