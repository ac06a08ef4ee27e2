"""What the CuPy backend does around a launch, with a CuPy made of paper; its kernels are tested elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from snn_ext import BackendUnavailableError, Dynamics, Leak
from snn_ext.kernels import cupy_backend, fused, registry
from snn_ext.kernels.abi import Arguments
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.spec import Spec
from tests.kernels import harness

LIF = Dynamics(leak=Leak(2.0))


class Paper(types.ModuleType):
    """A CuPy that runs the emulated kernels, and notes what it was asked."""

    def __init__(self) -> None:
        super().__init__("cupy")
        self.modules: list[tuple[str, ...]] = []
        self.launches: list[tuple[str, int, int, int, int | None]] = []
        self.stream: int | None = None
        self.cuda = types.SimpleNamespace(ExternalStream=self._stream, is_available=lambda: True)

    @contextlib.contextmanager
    def _stream(self, pointer: int, device: int) -> Iterator[None]:
        self.stream = pointer
        yield
        self.stream = None

    def RawModule(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:
        assert backend == "nvrtc"
        assert code.startswith('#line 1 "neuron.cu"')
        self.modules.append(options)
        (specs,) = [o.removeprefix("-DSNN_SPECS=") for o in options if o.startswith("-DSNN_SPECS=")]
        name, lanes, template = specs.removeprefix("SNN_SPEC(").removesuffix(")").split(",", 2)
        kernel = Spec.parse(template)

        def function(symbol: str) -> Any:
            direction = symbol.removeprefix(f"{name}_")

            def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any]) -> None:
                (packed,) = arguments
                assert isinstance(packed, np.ndarray)
                assert packed.nbytes == ctypes.sizeof(Arguments)
                a = Arguments.from_buffer_copy(packed.tobytes())
                self.launches.append((direction, int(lanes), grid[0], block[0], self.stream))
                launcher = harness.Emulated(int(lanes))
                launcher.prepare([kernel])
                launcher.run_blocks(kernel, int(lanes), direction, a, grid[0], range(grid[0]))

            return launch

        return types.SimpleNamespace(get_function=function)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    """CuPy and torch's CUDA functions, faked."""
    paper = Paper()
    monkeypatch.setitem(sys.modules, "cupy", paper)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=4711))
    return paper


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches(paper: Paper, steps: int, dtype: torch.dtype) -> None:
    launcher = cupy_backend.Cupy()
    x = torch.randn(steps, 3, 100).to(dtype).requires_grad_()
    call = Call(x, LIF, v0=torch.rand(100, requires_grad=True))
    unrolled = cupy_backend.recompute(call)
    assert unrolled == (4 if steps == 4 else None)
    harness.check(call, {"cupy": lambda c: fused.run(c, launcher, unrolled=unrolled)})
    lanes = 8 // dtype.itemsize
    grid = -(-300 // lanes // 128)
    assert paper.launches == [(way, lanes, grid, 128, 4711) for way in ("forward", "backward")]
    assert len(paper.modules) == 1, "one module holds both directions"
    fused.run(call, launcher, unrolled=unrolled)
    assert len(paper.modules) == 1, "and is compiled once"


def test_odd_sizes_and_unaligned_tensors_take_one_neuron_per_thread(paper: Paper) -> None:
    launcher = cupy_backend.Cupy()
    harness.check(Call(torch.randn(4, 3, 33), LIF), {"odd": lambda c: fused.run(c, launcher, unrolled=4)})
    x = torch.randn(1 + 4 * 3 * 100)[1:].view(4, 3, 100)
    assert x.data_ptr() % 16
    harness.check(Call(x, LIF), {"unaligned": lambda c: fused.run(c, launcher, unrolled=4)})
    assert [lanes for _, lanes, *_ in paper.launches] == [1, 1]


def test_nothing_is_launched_for_an_empty_batch(paper: Paper) -> None:
    launcher = cupy_backend.Cupy()
    x = torch.randn(4, 0, 3, requires_grad=True)
    fused.run(Call(x, LIF), launcher, unrolled=4).spikes.sum().backward()
    assert paper.launches == []


def test_options_forbid_contraction_and_know_the_headers() -> None:
    options = cupy_backend.options(Spec(), 2)
    assert "--fmad=false" in options
    assert any(o.startswith("-DSNN_HEADERS=") for o in options), "CuPy's cache does not look into headers"
    assert not any("fast" in o for o in options)


def test_grids_stay_within_what_cuda_allows() -> None:
    assert cupy_backend.blocks(1) == 1
    assert cupy_backend.blocks(129) == 2
    assert cupy_backend.blocks(2**50) == 2**31 - 1


def test_a_cupy_that_cannot_compile(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = cupy_backend.Cupy()
    monkeypatch.setattr(paper, "RawModule", lambda **_: (_ for _ in ()).throw(RuntimeError("no NVRTC")))
    with pytest.raises(BackendUnavailableError, match=r"no NVRTC(.|\n)*do: "):
        fused.run(Call(torch.randn(4, 3, 33), LIF), launcher, unrolled=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cupy_backend.importlib.util, "find_spec", lambda name: name)
    assert launcher.unavailable() == "cupy cannot be used: no NVRTC"


def test_the_probe_compiles(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = cupy_backend.Cupy()
    monkeypatch.setattr(cupy_backend, "CUPY", launcher)
    monkeypatch.setattr(cupy_backend, "unavailable", lambda: None)
    assert cupy_backend.probe() is None
    assert cupy_backend.probe() is None
    assert len(paper.modules) == 1, "once"
    monkeypatch.setattr(cupy_backend, "CUPY", cupy_backend.Cupy())
    monkeypatch.setattr(paper, "RawModule", lambda **_: (_ for _ in ()).throw(RuntimeError("no NVRTC")))
    assert "no NVRTC" in str(cupy_backend.probe())


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cupy_backend.unavailable() == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cupy_backend.importlib.util, "find_spec", lambda name: None)
    assert cupy_backend.unavailable() == "cupy is not installed"
    assert registry.choose(LIF, device="cuda").reason.startswith("cupy: cupy is not installed")
    with registry.use_backend("cupy"), pytest.raises(BackendUnavailableError, match=r"pip install"):
        registry.choose(LIF, device="cuda")
    monkeypatch.setattr(cupy_backend.importlib.util, "find_spec", lambda name: name)
    assert registry.choose(LIF, device="cuda").name == "cupy"
    broken = types.ModuleType("cupy")
    monkeypatch.setitem(sys.modules, "cupy", broken)
    assert "cupy cannot be used" in str(cupy_backend.probe())
    broken.cuda = types.SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]
    assert cupy_backend.probe() == "cupy finds no CUDA device"
