"""Gradients of initial potentials, summed over the batch inside the host kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics, Leak
from snn_ext.kernels import Call, fused
from snn_ext.kernels.host_backend import HOST
from snn_ext.kernels.layout import Layout

NEURONS = {
    "lif, hard": Dynamics(leak=Leak(2.0)),
    "if, soft, detached": Dynamics(reset="soft", detach_reset=True),
    "delayed": Dynamics(
        decay=0.9, reset="soft", timing="delayed", detach_reset=True, fires_at_equality=False
    ),
    "learned": Dynamics(decay=torch.tensor(0.8).requires_grad_()),
}
SHAPES = [(HOST.tile,), (HOST.tile + 3,), (2, 40, 17)]


def gradient(x: Tensor, v0: Tensor, d: Dynamics, unrolled: int | None = None) -> Tensor:
    v0 = v0.clone().requires_grad_()
    weights = torch.linspace(-1, 1, x.numel()).view(x.shape).to(x.dtype)
    spikes = fused.run(Call(x, d, v0=v0), HOST, unrolled=unrolled).spikes
    return torch.autograd.grad((spikes * weights).sum(), v0)[0]


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each backward pass summed."""
    found: list[bool] = []
    original = Layout.samples

    def samples(self: Layout, *args: Any) -> bool:
        found.append(original(self, *args))
        return found[-1]

    monkeypatch.setattr(Layout, "samples", samples)
    return found


@pytest.mark.parametrize("unrolled", [None, 0], ids=["h kept", "h again"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sum_of_the_samples(
    shape: tuple[int, ...], name: str, dtype: torch.dtype, unrolled: int | None, shared: list[bool]
) -> None:
    """Equal to a potential for every sample, whose gradients are summed by torch."""
    torch.manual_seed(0)
    x, state = torch.randn(3, 4, *shape).to(dtype), torch.promote_types(dtype, torch.float32)
    v0 = torch.rand(shape, dtype=state)
    d = NEURONS[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = gradient(x, v0, d, unrolled)
        each = gradient(x, v0.expand(4, *shape), d, unrolled)
    finally:
        torch.set_num_threads(threads)
    assert shared == [True, False]
    torch.testing.assert_close(found, each.sum(0), rtol=1e-6, atol=1e-6)
    assert found.abs().sum() > 1


def test_channels_last(shared: list[bool]) -> None:
    x = torch.randn(3, 4, 40, 10, 10)
    moved = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (3, 4))
    v0 = torch.rand(40, 10, 10)
    d = NEURONS["lif, hard"]
    torch.testing.assert_close(gradient(moved, v0, d), gradient(x, v0, d), rtol=1e-5, atol=1e-5)
    assert shared[0]


@pytest.mark.parametrize(
    ("features", "v0"),
    [((2048,), (1,)), ((64, 64), (64, 1)), ((64, 64), (1, 64)), ((2,), (2,)), ((2048,), (2048, 1))],
    ids=["layer", "channel", "space", "a small layer", "per sample"],
)
def test_other_parameters_are_summed_by_torch(
    features: tuple[int, ...], v0: tuple[int, ...], shared: list[bool]
) -> None:
    x, p = torch.randn(2, 2048 if len(v0) == 2 and v0[0] == 2048 else 3, *features), torch.rand(v0)
    found = gradient(x, p, NEURONS["lif, hard"])
    assert shared == [False]
    full = gradient(x, p.expand(x.shape[1:]), NEURONS["lif, hard"])
    torch.testing.assert_close(found, full.sum_to_size(v0), rtol=1e-4, atol=1e-4)


def test_a_carried_membrane_has_a_gradient_of_its_own(shared: list[bool]) -> None:
    """dL/dv is [B, *], and then dL/dV0 is its sum."""
    x, v0 = torch.randn(2, 3, HOST.tile), torch.rand(HOST.tile).requires_grad_()
    v = torch.rand(3, HOST.tile).requires_grad_()
    spikes = fused.run(Call(x, replace(NEURONS["lif, hard"]), v=v, v0=v0), HOST).spikes
    of_v, of_v0 = torch.autograd.grad(spikes.sum(), (v, v0))
    assert not shared
    torch.testing.assert_close(of_v.sum(0), of_v0)


def test_the_sum_misses_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: with a sample left out, the comparison fails."""
    x, v0 = torch.randn(3, 4, HOST.tile), torch.rand(HOST.tile)
    d = NEURONS["lif, hard"]
    right = gradient(x, v0, d)
    launch = HOST.launch

    def short(kernel: Any, direction: str, a: Any, device: torch.device) -> None:
        if direction == "backward":
            a.neurons -= HOST.tile
        launch(kernel, direction, a, device)

    monkeypatch.setattr(HOST, "launch", short)
    assert not torch.allclose(gradient(x, v0, d), right)
