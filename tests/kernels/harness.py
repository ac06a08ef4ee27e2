"""Runs one call on every build of the kernels, and compares what comes out."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from snn_ext.kernels import build, cupy_backend, fused, host_backend, reference_backend
from snn_ext.kernels.abi import Arguments
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.spec import Spec

Run = Callable[[Call], Result]
EMULATED_FLAGS = ("-O1", "-Wno-unknown-pragmas")


class Host(host_backend.Host):
    """The host kernels, many specialisations to a library."""

    def __init__(self, sources: Path = build.SOURCES) -> None:
        super().__init__()
        self.sources = sources

    def prepare(self, kernels: Iterable[Spec]) -> None:
        missing = [k for k in dict.fromkeys(kernels) if (k, "forward") not in self._entries]
        if not missing:
            return
        specs = " ".join(f"SNN_SPEC(k{i},{k.template})" for i, k in enumerate(missing))
        library = build.load(specs, sources=self.sources)
        for i, kernel in enumerate(missing):
            for direction in ("forward", "backward"):
                entry = getattr(library, f"k{i}_{direction}")
                entry.argtypes, entry.restype = [ctypes.c_void_p], ctypes.c_int
                self._entries[kernel, direction] = entry

    def load(self, kernel: Spec) -> None:
        self.prepare([kernel])


class Access(ctypes.Structure):
    _fields_ = [("address", ctypes.c_int64), ("bytes", ctypes.c_int64), ("is_store", ctypes.c_int64)]


class Emulated:
    """The CUDA kernels, run by fake threads on the CPU."""

    name = "emulated"
    tile = 0

    def __init__(self, lanes: int | None = None, sources: Path = build.SOURCES) -> None:
        self.lanes, self.sources = lanes, sources
        self._libraries: dict[tuple[Spec, int], tuple[ctypes.CDLL, str]] = {}
        self.used: set[tuple[Spec, int]] = set()

    def _lanes(self, kernel: Spec, a: Arguments) -> int:
        most = cupy_backend.lanes_for(kernel, a)
        return most if self.lanes is None else min(self.lanes, most)

    def prepare(self, kernels: Iterable[Spec]) -> None:
        pairs = [
            (k, n)
            for k in dict.fromkeys(kernels)
            for n in ((1, 2, 4) if self.lanes is None else (self.lanes,))
        ]
        missing = [pair for pair in pairs if pair not in self._libraries]
        if not missing:
            return
        specs = " ".join(f"SNN_SPEC(k{i},{n},{k.template})" for i, (k, n) in enumerate(missing))
        library = build.load(specs, main="emulated.cpp", sources=self.sources, flags=EMULATED_FLAGS)
        for i, pair in enumerate(missing):
            self._libraries[pair] = (library, f"k{i}")

    def launch(self, kernel: Spec, direction: str, arguments: Arguments, device: torch.device) -> None:
        lanes = self._lanes(kernel, arguments)
        self.prepare([kernel])
        self.used.add((kernel, lanes))
        blocks = cupy_backend.blocks(arguments.neurons // lanes)
        self.run_blocks(kernel, lanes, direction, arguments, blocks, range(blocks))

    def run_blocks(
        self, kernel: Spec, lanes: int, direction: str, a: Arguments, grid: int, blocks: range
    ) -> None:
        library, name = self._libraries[kernel, lanes]
        getattr(library, f"{name}_{direction}")(
            ctypes.byref(a), grid, cupy_backend.THREADS, blocks.start, blocks.stop
        )

    def library(self, kernel: Spec, lanes: int) -> ctypes.CDLL:
        self.prepare([kernel])
        return self._libraries[kernel, lanes][0]

    @contextmanager
    def watched(
        self, kernel: Spec, lanes: int, *, imaginary: bool, size: int = 1 << 16
    ) -> Iterator[list[Access]]:
        """Fills a list with the accesses to memory."""
        library, journal, seen = self.library(kernel, lanes), (Access * size)(), []
        library.snn_watch(journal, ctypes.c_int64(size), ctypes.c_int64(imaginary))
        yield seen
        library.snn_used.restype = library.snn_misaligned.restype = ctypes.c_int64
        used = library.snn_used()
        assert used <= size, "the journal is full"
        assert library.snn_misaligned() == 0
        seen += journal[:used]
        library.snn_watch(None, ctypes.c_int64(0), ctypes.c_int64(0))


HOST, EMULATED, SINGLE = Host(), Emulated(), Emulated(lanes=1)


def builds(
    call: Call, host: Host = HOST, emulated: Emulated = SINGLE
) -> dict[str, tuple[object, int | None]]:
    """Launchers and how they get h, for a call."""
    steps = call.x.shape[0]
    ways: dict[str, tuple[object, int | None]] = {
        "host, h kept": (host, None),
        "host, h again": (host, 0),
        "grid, h kept": (emulated, None),
    }
    if steps <= 16:
        ways["grid, h again"] = (emulated, steps)
    return ways


def prepare(calls: Sequence[Call], host: Host = HOST, emulated: Emulated = SINGLE) -> None:
    """Compile what the calls need, one library per launcher."""
    wanted: dict[object, list[Spec]] = {}
    for call in calls:
        for launcher, unrolled in builds(call, host, emulated).values():
            if launcher is host:
                unrolled = None if unrolled is None else 0
            plan, _ = fused.prepare(call, launcher, unrolled=unrolled)  # type: ignore[arg-type]
            wanted.setdefault(launcher, []).append(plan.kernel)
    for launcher, kernels in wanted.items():
        launcher.prepare(kernels)  # type: ignore[attr-defined]


def runs(call: Call, host: Host = HOST, emulated: Emulated = SINGLE) -> dict[str, Run]:
    """Every way to run a call but the reference."""
    ways: dict[str, Run] = {
        name: lambda c, launcher=launcher, unrolled=unrolled: fused.run(c, launcher, unrolled=unrolled)  # type: ignore[misc]
        for name, (launcher, unrolled) in builds(call, host, emulated).items()
    }
    if importlib.util.find_spec("snn_ext.kernels.torch_backend"):
        ways["torch"] = importlib.import_module("snn_ext.kernels.torch_backend").run
    return ways


def leaves(call: Call) -> list[Tensor]:
    """The tensors of a call that require a gradient."""
    d = call.dynamics
    decay = d.decay if d.leak is None else d.leak.value
    tensors = (call.x, call.v, call.v0, decay, d.threshold, call.scale, call.shift)
    return [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]


def gradients(run: Run, call: Call, seed: int) -> tuple[Result, list[Tensor]]:
    """What a call returns, and the gradients of a random function of it."""
    result, wanted = run(call), leaves(call)
    outputs = [t for t in result if t is not None and t.requires_grad]
    if not wanted or not outputs:
        return result, []
    generator = torch.Generator().manual_seed(seed)
    outer = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in outputs]
    found = torch.autograd.grad(outputs, wanted, outer, allow_unused=True)
    return result, [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]


def error(found: Tensor, true: Tensor, *, floor: float = 1e-3) -> float:
    """Largest deviation, relative to the largest value (of at least `floor`)."""
    if not true.numel():
        return 0.0
    scale = true.double().abs().max().clamp_min(floor)
    return float((found.double() - true.double()).abs().max() / scale)


TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-10, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def check(call: Call, ways: dict[str, Run], *, seed: int = 0) -> None:
    """All ways against the reference: spikes and membranes equal, gradients close."""
    expected, true = gradients(reference_backend.run, call, seed)
    for name, run in ways.items():
        got, found = gradients(run, call, seed)
        assert got.spikes.dtype is call.x.dtype, name
        assert torch.equal(got.spikes, expected.spikes), f"{name}: {_flips(got, expected)} spikes differ"
        assert torch.equal(got.membrane, expected.membrane), f"{name}: membranes differ"
        assert (got.membranes is None) == (not call.store), name
        if call.store:
            assert torch.equal(got.membranes, expected.membranes), f"{name}: stored membranes differ"  # type: ignore[arg-type]
        for leaf, g, t in zip(leaves(call), found, true, strict=True):
            assert (g.shape, g.dtype) == (leaf.shape, leaf.dtype), name
            # A sum of terms of size 1 may cancel, its rounding errors do not: its typical size counts.
            terms = call.x.numel() / max(leaf.numel(), 1)
            off = error(g, t, floor=terms**0.5 if leaf.numel() < call.x[0].numel() else 1e-3)
            assert off <= TOLERANCE[call.x.dtype], f"{name}: gradient of {list(leaf.shape)} off by {off}"


def _flips(got: Result, expected: Result) -> int:
    return int((got.spikes != expected.spikes).sum())
