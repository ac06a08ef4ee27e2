"""The device kernels by fake threads: every output written once, several neurons per thread, huge sizes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics, Leak
from snn_ext.kernels import build, cupy_backend, fused
from snn_ext.kernels.abi import Arguments, Parameter
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.spec import Spec
from tests.kernels import harness

LIF = Dynamics(leak=Leak(3.0))


def outputs(tensors: list[Tensor]) -> set[tuple[int, int]]:
    """Address and size of every element."""
    return {(t.data_ptr() + i * t.itemsize, t.itemsize) for t in tensors for i in range(t.numel())}


@pytest.mark.parametrize("neurons", [1, 127, 128, 301, 1024])
@pytest.mark.parametrize("unrolled", [0, 3])
def test_every_output_is_written_exactly_once(neurons: int, unrolled: int) -> None:
    kernel = replace(Spec(), charge="LEAK_INPUT_DIVIDE", unrolled=unrolled, learn=True)
    decay = torch.tensor(3.0, requires_grad=True)
    d = Dynamics(leak=Leak(decay), threshold=torch.ones(neurons, requires_grad=True))
    x = torch.randn(3, 1, neurons, requires_grad=True)
    call = Call(x, d, v=torch.randn(1, neurons, requires_grad=True), store=True)
    launcher = harness.Emulated(lanes=1)
    with launcher.watched(kernel, 1, imaginary=False) as seen:
        result = fused.run(call, launcher, unrolled=unrolled or None)
    stores = Counter((a.address, a.bytes) for a in seen if a.is_store)
    assert set(stores.values()) == {1}
    visible = outputs([t for t in result if t is not None])
    assert visible <= set(stores)
    assert len(stores) == len(visible) + (0 if unrolled else x.numel())  # h

    with launcher.watched(kernel, 1, imaginary=False) as seen:
        grads = torch.autograd.grad(result.spikes.sum(), [x, call.v])  # type: ignore[list-item]
    stores = Counter((a.address, a.bytes) for a in seen if a.is_store)
    assert set(stores.values()) == {1}
    assert outputs(list(grads)) <= set(stores)
    assert len(stores) == x.numel() + 3 * neurons  # x; the first membrane, the decay, the threshold


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [1, 4, 7, 20])
@pytest.mark.parametrize("neurons", [64, 66, 67])
def test_several_neurons_per_thread(neurons: int, steps: int, dtype: torch.dtype) -> None:
    """As many as memory is aligned to; with the same results as one."""
    d = Dynamics(decay=torch.rand(neurons), threshold=torch.rand(2, 1) + 0.5, reset="soft", timing="delayed")
    x = torch.randn(steps, 2, neurons).to(dtype).requires_grad_()
    call = Call(x, d, v0=torch.rand(neurons, requires_grad=True), store=True)
    unrolled = cupy_backend.recompute(call)
    harness.check(call, {"lanes": lambda c: fused.run(c, harness.EMULATED, unrolled=unrolled)})
    used = {lanes for _, lanes in harness.EMULATED.used}
    harness.EMULATED.used.clear()
    most = 2 if steps == 7 else 8 // dtype.itemsize
    assert used == {min(most, 2) if neurons == 67 else most}  # 2 samples of 67 neurons


def arguments(neurons: int, steps: int, **more: object) -> Arguments:
    """Arguments that point to no memory: every tensor has a region of 2^44 bytes of its own."""
    a = Arguments(steps, neurons, 1, 0)
    places = ("x", "spikes", "h", "membranes", "membrane", "v", "grad_spikes", "grad_membranes",
              "grad_membrane", "grad_x", "grad_v", "grad_decay", "grad_threshold")  # fmt: skip
    for i, name in enumerate(places):
        setattr(a, name, (i + 1) << 44)
        if hasattr(a, f"{name}_step"):
            setattr(a, f"{name}_step", neurons)
    for name in ("decay", "gain", "offset", "threshold", "v0"):
        setattr(a, name, Parameter(None, 1, 1, 1.0))
    for name, value in more.items():
        setattr(a, name, value)
    return a


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("neurons", [2**31 + 8, 2**33 + 4 * 128])
def test_more_than_2_31_neurons(neurons: int, direction: str, lanes: int) -> None:
    check_huge(direction, neurons, lanes, build.SOURCES)


def check_huge(direction: str, neurons: int, lanes: int, sources: Path) -> None:
    """The last block of a grid over more neurons than 32 bits can count touches the right addresses."""
    kernel, steps = Spec(learn=True, charge="LEAK_INPUT_DIVIDE"), 3
    inner, period = 2**20 + 3, 1021
    a = arguments(neurons, steps, threshold=Parameter(15 << 44, inner, period, 0.0), h_step=neurons + 4)
    blocks = cupy_backend.blocks(neurons // lanes)
    launcher = harness.Emulated(lanes, sources)
    with launcher.watched(kernel, lanes, imaginary=True) as seen:
        launcher.run_blocks(kernel, lanes, direction, a, blocks, range(blocks - 1, blocks))
    first = (blocks - 1) * cupy_backend.THREADS * lanes
    last = range(first, neurons)
    expected = set()
    names = {
        "forward": ["x", "spikes", "h", "membranes", "membrane", "v"],
        "backward": ["x", "v", "h", "grad_spikes", "grad_membranes", "grad_membrane", "grad_x", "grad_v",
                     "grad_decay", "grad_threshold"],
    }[direction]  # fmt: skip
    for name in names:
        step = getattr(a, f"{name}_step", None)
        for t in range(steps if step is not None else 1):
            expected |= {getattr(a, name) + 4 * (t * (step or 0) + n) for n in last}
    expected |= {(15 << 44) + 4 * ((n // inner) % period) for n in last}
    touched = {a.address + 4 * k for a in seen for k in range(a.bytes // 4)}
    assert touched == expected


def test_grids_smaller_than_the_work_go_round() -> None:
    a = arguments(1000, 1, membranes=None, h=None, v=None)
    launcher, kernel = harness.Emulated(lanes=1), Spec()
    with launcher.watched(kernel, 1, imaginary=True) as seen:
        launcher.run_blocks(kernel, 1, "forward", a, 3, range(3))
    written = Counter(s.address for s in seen if s.is_store and s.address >> 44 == a.membrane >> 44)
    assert written == Counter(a.membrane + 4 * n for n in range(1000))
