"""The equations that the adapter describes as data reproduce the framework's own spikes and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import Dynamics
from tests.adapters.spikingjelly_nets import Equations, base, neuron, surrogate

FEATURES = (2, 9)


def _described(node: nn.Module) -> Dynamics | None:
    plan = snn_ext.plan(node, imp=snn_ext.IMP(shape="layer"))
    return plan.decisions[0].site.spec.dynamics


def _dyadic(steps: int, spread: int) -> Tensor:
    """Multiples of 1/8 in [-spread/8, spread/8): sums and halvings of them are exact in float64."""
    return torch.randint(-spread // 3, spread, (steps, 4, *FEATURES)).double() / 8


def _run(node: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    node.step_mode, node.store_v_seq = "m", True
    node.reset()
    return node(x), node.v_seq


# kind, tau, decay_input, steps that stay exact: one sequence each, 200 steps in all
DYADIC = [
    ("IF", 2.0, True, 200),
    ("LIF", 2.0, True, 40),
    ("LIF", 2.0, False, 40),
    ("LIF", 4.0, True, 20),
    ("LIF", 4.0, False, 20),
    ("PLIF", 2.0, True, 40),
    ("PLIF", 2.0, False, 40),
]


@pytest.mark.parametrize("reset", [0.0, 0.25, -0.25, None])
@pytest.mark.parametrize(("kind", "tau", "decay_input", "steps"), DYADIC)
def test_spikes_are_reproduced_exactly(
    kind: str, tau: float, decay_input: bool, steps: int, reset: float | None
) -> None:
    equations = Equations(kind=kind, tau=tau, decay_input=decay_input, reset=reset, threshold=0.5)
    node = equations.node("m").double()
    dynamics = _described(node)
    assert dynamics is not None
    hits = 0
    for _ in range(200 // steps):
        x = _dyadic(steps, 12)
        x[0, 0] = (0.5 - (reset or 0.0)) / equations.gain  # charges to the threshold exactly
        spikes, membranes = _run(node, x)
        found = snn_ext.functional.multistep(x, node.get_reset_value("v"), dynamics)
        assert torch.equal(found.spikes, spikes)
        assert torch.equal(found.membranes, membranes)
        charged, _, _ = equations.run(x, torch.tensor(reset or 0.0, dtype=torch.float64))
        hits += int((charged == 0.5).sum())
    assert hits >= 18  # the threshold was reached exactly, and such neurons fired


@pytest.mark.parametrize(
    "wrong",
    [
        lambda d: replace(d, fires_at_equality=False),
        lambda d: replace(d, reset="soft" if d.reset == "hard" else "hard"),
        lambda d: replace(d, leak=None, decay=0.75),
        lambda d: replace(d, rest=0.125, reset="hard"),
        lambda d: replace(d, timing="delayed"),
    ],
    ids=["> instead of >=", "other reset", "other decay", "other rest", "delayed"],
)
def test_wrong_dynamics_are_noticed(wrong: Callable[[Dynamics], Dynamics]) -> None:
    node = Equations(kind="LIF", threshold=0.5).node("m").double()
    dynamics = _described(node)
    x = _dyadic(40, 12)
    spikes, membranes = _run(node, x)
    found = snn_ext.functional.multistep(x, 0.0, wrong(dynamics))
    assert not (torch.equal(found.spikes, spikes) and torch.equal(found.membranes, membranes))


BUMPS = {
    "Sigmoid": 2.5,
    "ATan": 3.0,
    "PiecewiseQuadratic": 1.5,
    "Rect": 0.8,
}


def _gradients(y: Tensor, of: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return list(torch.autograd.grad((y * weights).sum(), of))


@pytest.mark.parametrize(
    ("name", "detach", "reset"), list(itertools.product(BUMPS, (False, True), (0.0, 0.3, None)))
)
def test_gradients_are_reproduced(name: str, detach: bool, reset: float | None) -> None:
    equations = Equations(
        kind="LIF", tau=2.7, reset=reset, detach=detach, surrogate=name, alpha=BUMPS[name], threshold=0.8
    )
    node = equations.node("m").double()
    dynamics = _described(node)
    x = (torch.randn(12, 3, *FEATURES, dtype=torch.float64) * 2).requires_grad_()
    v0 = torch.rand(3, *FEATURES, dtype=torch.float64, requires_grad=True)
    node.v = v0
    expected = _gradients(node(x), [x, v0])
    found = _gradients(snn_ext.functional.multistep(x, v0, dynamics).spikes, [x, v0])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)  # other order of operations
    other = replace(dynamics, surrogate=replace(dynamics.surrogate, alpha=BUMPS[name] * 1.1))
    wrong = _gradients(snn_ext.functional.multistep(x, v0, other).spikes, [x, v0])
    assert not torch.allclose(wrong[0], expected[0], rtol=1e-3)
    if not detach:
        other = replace(dynamics, detach_reset=True)
        wrong = _gradients(snn_ext.functional.multistep(x, v0, other).spikes, [x, v0])
        assert not torch.allclose(wrong[0], expected[0], rtol=1e-3)


def test_patched_neurons_are_described_alike() -> None:
    node = neuron.ParametricLIFNode(init_tau=2.0, v_threshold=0.7, v_reset=0.1, decay_input=False)
    before = _described(node)
    snn_ext.patch(node, imp=snn_ext.IMP(shape="layer"))
    assert _described(node) == before
    assert before.decay == before.decay.new_tensor(0.5)


class ScaledForward(neuron.IFNode):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2.0 * x)


class ScaledStep(neuron.LIFNode):
    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().single_step_forward(2.0 * x)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().multi_step_forward(2.0 * x_seq)


class OtherTransition(neuron.LIFNode):
    """Its single step is the parent's; what runs in 'm' mode is not."""

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        return super().multi_step_functional_forward((2.0 * inputs[0],), states, **kwargs)


class OtherStart(neuron.IFNode):
    """Adds something to every state it is given."""

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        v, *others = super().materialize_states(inputs, states, step_mode)
        return (v + 0.5, *others)


class OwnTransition(base.MemoryModule):
    def __init__(self) -> None:
        super().__init__()
        self.register_memory("v", 0.0)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        h = states[0] + inputs[0]
        return (h.sigmoid(),), (h,)


@pytest.mark.parametrize(
    "node",
    [
        ScaledForward(),
        ScaledStep(),
        OtherTransition(),
        OtherStart(),
        OwnTransition(),
        neuron.KLIFNode(),
        neuron.QIFNode(),
        neuron.ILIFNode(),
        neuron.LIAFNode(torch.relu, True),
        neuron.TernaryLIFNode(),
        neuron.HalfThresholdIFNode(),
        neuron.MPBNLIFNode(out_features=9),
        neuron.IFNode(surrogate_function=surrogate.Erf()),
        neuron.IFNode(surrogate_function=surrogate.Sigmoid(spiking=False)),
    ],
    ids=lambda node: f"{type(node).__name__}-{type(getattr(node, 'surrogate_function', None)).__name__}",
)
def test_nothing_inexact_is_described(node: nn.Module) -> None:
    """A description that is only nearly right would let a method replace the neuron's own step."""
    assert _described(node) is None


def test_thresholds_that_are_tensors_are_not_described() -> None:
    node = neuron.IFNode()
    node.v_threshold = torch.ones(9)
    assert _described(node) is None
