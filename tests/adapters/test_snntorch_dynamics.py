"""What the adapter says about a neuron is what the neuron does.

`site.spec.dynamics`, run by snn-ext's own equations, gives the spikes and membranes of the patched
snnTorch neuron over 200 steps; where no description is exact, there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

import snn_ext
from snn_ext import Dynamics
from snn_ext.functional import multistep
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.test_snntorch_equations import drive
from tests.adapters.test_snntorch_user_classes import STEPS, _attached

N, STEPS_RUN = 6, 200


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def described(neuron: nn.Module) -> Dynamics | None:
    """The description that a plan for this neuron holds."""
    plan = snn_ext.plan(neuron, imp=snn_ext.IMP(shape="layer"))
    return plan.decisions[0].site.spec.dynamics


def both(neuron: Any, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes and membranes: of the patched neuron, and of its description."""
    dynamics = described(neuron)
    assert dynamics is not None
    snn_ext.patch(neuron, imp=snn_ext.IMP(init=0.0, shape=tuple(v0.shape)))
    neuron.imp.data = v0.clone()
    spikes, membranes = drive(neuron, x)
    ours = multistep(x, v0, dynamics)
    return spikes, membranes, ours.spikes, ours.membranes


def _dyadic(*shape: int) -> Tensor:
    """Multiples of 1/8, zero on average: a perfect integrator stays on that grid, and meets 1 exactly."""
    return torch.randint(-12, 13, shape) / 8


SURROGATES: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "atan": lambda: surrogate.atan(alpha=1.5),
    "fast_sigmoid": lambda: surrogate.fast_sigmoid(slope=10),
    "sigmoid": lambda: surrogate.sigmoid(slope=5),
}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_leaky_is_described_exactly(reset: str, vector: bool, hidden: bool) -> None:
    shape = (N,) if vector else ()
    neuron = snn.Leaky(
        torch.rand(shape) * 1.4 - 0.2,  # outside [0, 1] too, where snnTorch clamps
        threshold=torch.rand(shape) + 0.3,
        reset_mechanism=reset,
        init_hidden=hidden,
        output=hidden,
    )
    x, v0 = torch.randn(STEPS_RUN, 4, N), torch.linspace(-1, 4, N)
    spikes, membranes, our_spikes, our_membranes = both(neuron, x, v0)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, our_spikes)
    assert torch.equal(membranes, our_membranes)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_leaky_exactly_at_the_threshold(reset: str) -> None:
    neuron = snn.Leaky(1.0, threshold=1.0, reset_mechanism=reset)
    x = _dyadic(STEPS_RUN, 8, N)
    v0 = torch.tensor([2.0, 1.0, 3.0, 0.0, -2.0, 0.5])
    x[0, 0, 1] = 0.0  # V0 at the threshold, charged to the threshold
    spikes, membranes, our_spikes, our_membranes = both(neuron, x, v0)
    assert (membranes == 1).sum() > 20
    assert torch.equal(spikes, our_spikes)
    assert torch.equal(membranes, our_membranes)
    assert spikes[membranes == 1].sum() == 0  # strict


@pytest.mark.parametrize("reset", ["subtract", "none"])
def test_lapicque_is_described_exactly(reset: str) -> None:
    """R and C that binary fractions express: no rounding in the order of the products."""
    neuron = snn.Lapicque(R=2.0, C=1.0, time_step=0.5, reset_mechanism=reset)
    x, v0 = _dyadic(STEPS_RUN, 4, N) * 4, torch.linspace(-1, 4, N)
    spikes, membranes, our_spikes, our_membranes = both(neuron, x, v0)
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, our_spikes)
    assert torch.equal(membranes, our_membranes)


@pytest.mark.parametrize(
    "constants", [{"beta": 0.8}, {"R": 1.7, "C": 2.3}, {"beta": 0.9, "R": 0.7}, {"beta": 0.9, "C": 3.1}]
)
def test_lapicque_with_any_constants_up_to_rounding(constants: dict[str, float]) -> None:
    """snnTorch multiplies I * R * (1 / (R * C)) * dt; one factor rounds differently."""
    neuron = snn.Lapicque(**constants, threshold=0.8)
    x, v0 = torch.randn(STEPS_RUN, 4, N) * 3, torch.linspace(-1, 3, N)
    spikes, membranes, our_spikes, our_membranes = both(neuron, x, v0)
    assert 0 < spikes.mean() < 1
    torch.testing.assert_close(membranes, our_membranes, rtol=1e-5, atol=1e-5)
    assert torch.equal(spikes, our_spikes)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_the_described_surrogate_gives_the_same_gradients(reset: str, name: str) -> None:
    neuron = snn.Leaky(
        torch.rand(N, dtype=torch.float64),
        threshold=torch.rand(N, dtype=torch.float64) + 0.5,
        spike_grad=SURROGATES[name](),
        reset_mechanism=reset,
    )
    dynamics = described(neuron)
    assert dynamics is not None
    snn_ext.patch(neuron, imp=snn_ext.IMP(init=(-1.0, 2.0), shape=(N,)))
    neuron.double()
    x = torch.randn(30, 3, N, dtype=torch.float64)
    weights = torch.randint(-8, 8, x.shape) / 8  # float32 spikes carry these gradients exactly
    on_membranes = torch.randn_like(x)
    gradients = []
    for ours in (False, True):
        inputs = x.clone().requires_grad_()
        neuron.imp.grad = None
        if ours:
            result = multistep(inputs, neuron.imp, dynamics)
            spikes, membranes = result.spikes, result.membranes
        else:
            spikes, membranes = drive(neuron, inputs)
        ((spikes * weights).sum().double() + (membranes * on_membranes).sum()).backward()
        gradients.append((neuron.imp.grad, inputs.grad))
    for stock, described_ in zip(*gradients, strict=True):
        assert stock.abs().sum() > 0
        torch.testing.assert_close(described_, stock, rtol=1e-9, atol=1e-9)


def test_what_runs_is_described_not_what_the_property_says() -> None:
    """snnTorch chooses the charge when it builds a neuron; changing reset_mechanism later does not."""
    neuron = snn.Leaky(0.5)
    neuron.reset_mechanism = "zero"
    dynamics = described(neuron)
    assert dynamics is not None
    assert dynamics.reset == "soft"
    x, v0 = torch.randn(50, 3, N) * 2, torch.linspace(-1, 3, N)
    spikes, membranes, our_spikes, our_membranes = both(neuron, x, v0)
    assert torch.equal(spikes, our_spikes)
    assert torch.equal(membranes, our_membranes)


def test_the_description_of_a_patched_neuron_is_the_same() -> None:
    neuron = snn.Leaky(0.7, threshold=0.6)
    before = described(neuron)
    snn_ext.patch(neuron, imp=snn_ext.IMP(shape="layer"))
    assert described(neuron) == before


WITHOUT: dict[str, Callable[[], Any]] = {
    "Synaptic": lambda: snn.Synaptic(0.5, 0.5),
    "RLeaky": lambda: snn.RLeaky(0.5, all_to_all=False),
    "RSynaptic": lambda: snn.RSynaptic(0.5, 0.5, all_to_all=False),
    "Lapicque zero": lambda: snn.Lapicque(beta=0.5, reset_mechanism="zero"),
    "no delay": lambda: snn.Leaky(0.5, reset_delay=False),
    "inhibition": lambda: snn.Leaky(0.5, inhibition=True),
    "quantised": lambda: snn.Leaky(0.5, state_quant=lambda u: u),
    "graded": lambda: snn.Leaky(0.5, graded_spikes_factor=2.0),
    "graded vector": lambda: snn.Leaky(0.5, graded_spikes_factor=torch.tensor([1.0, 1.0, 1.0, 2.0])),
    "no surrogate": lambda: snn.Leaky(0.5, surrogate_disable=True),
    "custom surrogate": lambda: snn.Leaky(0.5, spike_grad=lambda u: (u > 0).float()),
    "stochastic surrogate": lambda: snn.Leaky(0.5, spike_grad=surrogate.SSO()),
    "straight through": lambda: snn.Leaky(0.5, spike_grad=surrogate.straight_through_estimator()),
    "flat surrogate": lambda: snn.Leaky(0.5, spike_grad=surrogate.fast_sigmoid(slope=0)),
    "negative surrogate": lambda: snn.Leaky(0.5, spike_grad=surrogate.atan(alpha=-1.0)),
    "own state_function": lambda: _attached(snn.Leaky(0.5)),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_the_equations_cannot_express_has_no_description(name: str) -> None:
    assert described(WITHOUT[name]()) is None


@pytest.mark.parametrize("cls", STEPS)
def test_a_class_that_overrides_a_part_of_the_step_is_described_truly_or_not_at_all(cls: Any) -> None:
    """Its charge may be the framework's function, and its step another one all the same."""
    try:
        dynamics = described(cls(0.5))
    except snn_ext.SnnExtError:  # refused altogether
        return
    if dynamics is None:
        return
    x = torch.randn(30, 3, N) * 2
    mem, seen = torch.zeros(3, N), []
    for x_t in x:
        _, mem = STEPS[cls](cls(0.5), x_t, mem)
        seen.append(mem)
    faithful = torch.equal(multistep(x, 0.0, dynamics).membranes, torch.stack(seen))
    assert faithful


class Untouched(snn.Leaky):
    """A subclass that only adds something of its own."""

    def rate(self) -> float:
        return 0.0


def test_a_class_that_overrides_nothing_may_be_described() -> None:
    x, v0 = torch.randn(50, 3, N) * 2, torch.linspace(-1, 3, N)
    if described(Untouched(0.5)) is not None:
        spikes, membranes, our_spikes, our_membranes = both(Untouched(0.5), x, v0)
        assert torch.equal(spikes, our_spikes)
        assert torch.equal(membranes, our_membranes)


WRONG: dict[str, dict[str, Any]] = {
    "decay": {"decay": 0.999},
    "threshold": {"threshold": 1.001},
    "reset": {"reset": "hard"},
    "timing": {"timing": "immediate"},
    "equality": {"fires_at_equality": True},
}


@pytest.mark.parametrize("change", WRONG)
def test_wrong_twins_are_seen(change: str) -> None:
    neuron = snn.Leaky(1.0)
    dynamics = described(neuron)
    assert dynamics is not None
    x = _dyadic(STEPS_RUN, 8, N)
    v0 = torch.tensor([2.0, 1.0, 3.0, 0.0, -2.0, 0.5])
    right = multistep(x, v0, dynamics)
    wrong = multistep(x, v0, dataclasses.replace(dynamics, **WRONG[change]))
    same = torch.equal(right.membranes, wrong.membranes) and torch.equal(right.spikes, wrong.spikes)
    assert not same
    spikes, membranes, *_ = both(neuron, x, v0)
    assert torch.equal(right.spikes, spikes)
    assert torch.equal(right.membranes, membranes)
