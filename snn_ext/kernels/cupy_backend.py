"""The kernels on CUDA devices, compiled by CuPy (NVRTC) at first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import threading
from typing import Any

import torch

from snn_ext.kernels import fused, ops
from snn_ext.kernels.abi import Arguments
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.build import SOURCES
from snn_ext.kernels.spec import Spec

__all__ = [
    "CUPY",
    "FIX",
    "Cupy",
    "blocks",
    "lanes_for",
    "options",
    "probe",
    "recompute",
    "run",
    "source",
    "traced",
    "unavailable",
]

FIX = "pip install 'snn-ext[cuda13]' (or [cuda12], as your torch) on a machine with a CUDA device"

THREADS = 128  # of a block
_UNROLLED = 16  # values of h that a thread keeps in registers


class Cupy:
    """Compiled kernels, two per specialisation and device."""

    name = "cupy"

    def __init__(self) -> None:
        self._kernels: dict[tuple[Spec, int, str, int], Any] = {}
        self._lock = threading.Lock()

    def launch(self, kernel: Spec, direction: str, arguments: Arguments, device: torch.device) -> None:
        """Queue the kernel on torch's current stream of the device."""
        if not arguments.neurons:
            return
        cupy, numpy = importlib.import_module("cupy"), importlib.import_module("numpy")
        lanes = lanes_for(kernel, arguments)
        with torch.cuda.device(device):
            current = torch.cuda.current_device()
            stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, current)
            function = self._kernel(cupy, kernel, lanes, direction, current)
            # One structure, by value: CuPy passes the memory of an array of NumPy as it is.
            packed = numpy.frombuffer(arguments, dtype=f"V{ctypes.sizeof(Arguments)}")
            with stream:
                function((blocks(arguments.neurons // lanes),), (THREADS,), (packed,))

    def _kernel(self, cupy: Any, kernel: Spec, lanes: int, direction: str, device: int) -> Any:
        found = self._kernels.get((kernel, lanes, direction, device))
        if found is None:
            with self._lock:
                module = cupy.RawModule(code=source(), options=options(kernel, lanes), backend="nvrtc")
                for each in ("forward", "backward"):
                    self._kernels[kernel, lanes, each, device] = module.get_function(f"neuron_{each}")
                found = self._kernels[kernel, lanes, direction, device]
        return found


CUPY = Cupy()
ops.register(CUPY)


def blocks(threads: int) -> int:
    """Blocks of a grid of so many threads."""
    return min((threads + THREADS - 1) // THREADS, 2**31 - 1)


_POINTERS = ("x", "spikes", "h", "membranes", "grad_spikes", "grad_membranes", "grad_x")
_PER_NEURON = ("membrane", "v", "grad_membrane", "grad_v", "grad_decay", "grad_threshold")


def lanes_for(kernel: Spec, arguments: Arguments) -> int:
    """Neighbouring neurons per thread: as many as keep h in registers, and as memory is aligned to.

    One read of 2 or 4 bytes per step and thread leaves the memory half idle.
    """
    most = 1 if kernel.affine else _UNROLLED // max(1, kernel.unrolled)
    return next((n for n in (4, 2) if n <= most and _aligned(kernel, arguments, n)), 1)


def _aligned(kernel: Spec, a: Arguments, lanes: int) -> bool:
    size = lanes * kernel.dtype.itemsize  # of the smaller type: the state's is checked below
    state = lanes * 4
    steps = all(
        (getattr(a, name) or 0) % size == 0 and getattr(a, f"{name}_step") % lanes == 0 for name in _POINTERS
    )
    states = (*_PER_NEURON, "h", "membranes", "grad_membranes")
    return a.neurons % lanes == 0 and steps and all((getattr(a, name) or 0) % state == 0 for name in states)


@functools.cache
def source() -> str:
    """What NVRTC compiles; it includes the files beside it."""
    return f'#line 1 "neuron.cu"\n{(SOURCES / "neuron.cu").read_text()}'


@functools.cache
def _headers() -> str:
    """CuPy's own cache does not look into included files."""
    text = "\0".join(p.read_text() for p in sorted(SOURCES.glob("*.cuh")))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def options(kernel: Spec, lanes: int = 1, name: str = "neuron") -> tuple[str, ...]:
    """Options of NVRTC. No contraction to FMA: it would flip spikes."""
    return (
        "--std=c++17",
        "--fmad=false",
        f"-I{SOURCES}",
        f"-DSNN_HEADERS={_headers()}",
        f"-DSNN_SPECS=SNN_SPEC({name},{lanes},{kernel.template})",
    )


def recompute(call: Call) -> int | None:
    """T where h is computed again in registers, None where it is kept."""
    steps = call.x.shape[0]
    return steps if steps <= _UNROLLED else None


def unavailable() -> str | None:
    """Why it cannot run here, or None; imports nothing."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed"
    return None


def probe() -> str | None:
    """The same, and asks CuPy."""
    reason = unavailable()
    if reason is not None:
        return reason
    try:
        cupy = importlib.import_module("cupy")
        if not cupy.cuda.is_available():
            return "cupy finds no CUDA device"
    except Exception as error:  # a broken installation fails in its own ways
        return f"cupy cannot be used: {error}"
    return None


def run(call: Call) -> Result:
    """Run a call.

    Raises:
        BackendUnavailableError: CuPy cannot be imported, or cannot compile.
    """
    if torch._C._len_torch_dispatch_stack():  # somebody is looking on: a trace, a counter
        return traced(call)
    return fused.run(call, CUPY, unrolled=recompute(call))


def traced(call: Call) -> Result:
    """The same as an operator of torch."""
    return ops.run(call, CUPY, unrolled=recompute(call))
