"""The kernels on CUDA devices, compiled by CuPy (NVRTC) at first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import logging
import sys
import threading
import time
from typing import Any

import torch

from snn_ext.errors import BackendUnavailableError
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
    "most_lanes",
    "options",
    "probe",
    "recompute",
    "run",
    "source",
    "traced",
    "unavailable",
]

FIX = "pip install 'snn-ext[cuda13]' (or [cuda12], as your torch) on a machine with a CUDA device"

_LOG = logging.getLogger("snn_ext")
THREADS = 128  # of a block
_UNROLLED = 16  # values of h that a thread keeps in registers


class Cupy:
    """Compiled kernels, two per specialisation and device."""

    name = "cupy"
    tile = 0

    def __init__(self) -> None:
        self._kernels: dict[tuple[Spec, int, str, int], Any] = {}
        self._lock = threading.Lock()
        self.broken: str | None = None
        """Why CuPy could not be used."""

    def launch(self, kernel: Spec, direction: str, arguments: Arguments, device: torch.device) -> None:
        """Queue the kernel on torch's current stream of the device.

        Raises:
            BackendUnavailableError: CuPy cannot be imported, or cannot compile.
        """
        if not arguments.neurons:
            return
        lanes = lanes_for(kernel, arguments)
        with torch.cuda.device(device):
            current = torch.cuda.current_device()
            function = self._kernels.get((kernel, lanes, direction, current))
            if function is None:
                self.load(kernel, lanes, current)
                function = self._kernels[kernel, lanes, direction, current]
            cupy, numpy = sys.modules["cupy"], sys.modules["numpy"]
            # One structure, by value: CuPy passes the memory of an array of NumPy as it is.
            packed = numpy.frombuffer(arguments, dtype=f"V{ctypes.sizeof(Arguments)}")
            with cupy.cuda.ExternalStream(torch.cuda.current_stream(device).cuda_stream, current):
                function((blocks(arguments.neurons // lanes),), (THREADS,), (packed,))

    def load(self, kernel: Spec, lanes: int, device: int) -> None:
        """Compile a specialisation, if it is not yet.

        Raises:
            BackendUnavailableError: CuPy cannot be imported, or cannot compile.
        """
        with self._lock:
            if (kernel, lanes, "backward", device) in self._kernels:
                return
            start = time.perf_counter()
            try:
                module = importlib.import_module("cupy").RawModule(
                    code=source(), options=options(kernel, lanes), backend="nvrtc"
                )
                for direction in ("forward", "backward"):  # compiles
                    function = module.get_function(f"neuron_{direction}")
                    self._kernels[kernel, lanes, direction, device] = function
                seconds = time.perf_counter() - start
                _LOG.info("cupy: a kernel was ready in %.2f s (%s)", seconds, kernel.template)
            except Exception as error:
                self.broken = f"cupy cannot be used: {error}"
                raise BackendUnavailableError(
                    "the CUDA kernels cannot be built.", why=self.broken, do=FIX
                ) from error

    def unavailable(self) -> str | None:
        """Why it cannot run here, or None; imports nothing."""
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if importlib.util.find_spec("cupy") is None:
            return "cupy is not installed"
        return self.broken


CUPY = Cupy()
ops.register(CUPY)
unavailable = CUPY.unavailable


def blocks(threads: int) -> int:
    """Blocks of a grid of so many threads."""
    return min((threads + THREADS - 1) // THREADS, 2**31 - 1)


_POINTERS = ("x", "spikes", "h", "membranes", "grad_spikes", "grad_membranes", "grad_x")
_PER_NEURON = ("membrane", "v", "grad_membrane", "grad_v", "grad_decay", "grad_threshold")


def most_lanes(kernel: Spec) -> int:
    """Neighbouring neurons that one thread takes: 8 bytes of them, and no more than keep h in registers.

    Reads of 2 or 4 bytes per step and thread would leave the memory half idle.
    """
    most = min(8 // kernel.dtype.itemsize, _UNROLLED // max(1, kernel.unrolled))
    return 1 if kernel.affine or most < 2 else 1 << (most.bit_length() - 1)  # vectors have 2 or 4 elements


def lanes_for(kernel: Spec, arguments: Arguments) -> int:
    """Neurons per thread that the memory of a launch is aligned to."""
    lanes = most_lanes(kernel)
    while lanes > 1 and not _aligned(kernel, arguments, lanes):
        lanes //= 2
    return lanes


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


def probe() -> str | None:
    """The same, and compiles a kernel."""
    reason = unavailable()
    if reason is not None:
        return reason
    try:
        cupy = importlib.import_module("cupy")
        if not cupy.cuda.is_available():
            return "cupy finds no CUDA device"
        CUPY.load(Spec(), 1, torch.cuda.current_device())
    except BackendUnavailableError as error:
        return error.why
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
