"""The kernels on the CPU, compiled by the machine's own C++ compiler at first use."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from snn_ext.errors import BackendUnavailableError
from snn_ext.kernels import build, fused, ops
from snn_ext.kernels.abi import Arguments
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.spec import Spec

__all__ = ["FIX", "HOST", "Host", "probe", "recompute", "run", "traced", "unavailable"]

FIX = "install a C++ compiler (apt install g++, or xcode-select --install), or set CXX to one"

_LOG = logging.getLogger("snn_ext")
_Entry = Callable[[Any], int]


class Host:
    """Loaded libraries, one per specialisation."""

    name = "host"
    tile = 1024  # LANES of src/lanes.cuh

    def __init__(self) -> None:
        self._entries: dict[tuple[Spec, str], _Entry] = {}
        self._lock = threading.Lock()
        self.broken: str | None = None
        """Why the last attempt to compile failed."""

    def load(self, kernel: Spec) -> None:
        """Compile and load a specialisation, if it is not yet.

        Raises:
            BackendUnavailableError: nothing can be compiled.
        """
        with self._lock:
            if (kernel, "forward") in self._entries:
                return
            start = time.perf_counter()
            try:
                library = build.load(f"SNN_SPEC(neuron,{kernel.template})")
            except build.BuildError as error:
                self.broken = str(error)
                raise BackendUnavailableError(
                    "the host kernels cannot be built.", why=self.broken, do=FIX
                ) from None
            self.broken = None
            for direction in ("backward", "forward"):
                entry = getattr(library, f"neuron_{direction}")
                entry.argtypes, entry.restype = [ctypes.c_void_p], ctypes.c_int
                self._entries[kernel, direction] = entry
            _LOG.info("host: a kernel was ready in %.2f s (%s)", time.perf_counter() - start, kernel.template)

    def launch(self, kernel: Spec, direction: str, arguments: Arguments, device: torch.device) -> None:
        """Run the kernel; ctypes lets other Python threads run meanwhile."""
        entry = self._entries.get((kernel, direction))
        if entry is None:
            self.load(kernel)
            entry = self._entries[kernel, direction]
        if entry(ctypes.addressof(arguments)):
            raise MemoryError(f"no memory for {arguments.steps} charged membranes of a tile of neurons")

    def unavailable(self) -> str | None:
        """Why nothing can be compiled here, or None; looks for a compiler, builds nothing."""
        if self.broken is not None or self._entries:
            return self.broken
        try:
            build.compiler()
        except build.BuildError as error:
            return str(error)
        return None


HOST = Host()
ops.register(HOST)
unavailable = HOST.unavailable


def probe(host: Host = HOST) -> str | None:
    """The same, and compiles a kernel."""
    try:
        host.load(Spec())
    except BackendUnavailableError as error:
        return error.why
    return None


def recompute(call: Call) -> int | None:
    """Half-width inputs: reading x again and computing h costs less than writing and reading h."""
    return None if call.x.dtype in (torch.float32, torch.float64) else 0


def run(call: Call) -> Result:
    """Run a call.

    Raises:
        BackendUnavailableError: nothing can be compiled.
    """
    if torch._C._len_torch_dispatch_stack():  # somebody is looking on: a trace, a counter
        return traced(call)
    return fused.run(call, HOST, unrolled=recompute(call))


def traced(call: Call) -> Result:
    """The same as an operator of torch."""
    return ops.run(call, HOST, unrolled=recompute(call))
