"""Neurons that users derive from snnTorch's: V0 acts exactly as a start value would, or they are refused.

The oracle is the unpatched class, given the membrane V0 as its explicit start value (below the
threshold, where snnTorch's own start values cause no reset).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.snntorch_nets import private_instances

FEATURES = 4
V0 = torch.tensor([0.75, 0.5, -0.5, 0.25])


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


class Scaled(snn.Leaky):
    """Its own signature: a gain, and keyword-only state."""

    def forward(self, x: Tensor, gain: float = 1.0, *, state: Tensor | None = None) -> Any:
        return super().forward(x * gain, state)


class StateFirst(snn.Leaky):
    """Its own order of arguments."""

    def forward(self, state: Tensor, current: Tensor) -> Any:
        return super().forward(current, mem=state)


class AsDict(snn.Leaky):
    """States in containers that no tensor check sees."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Any:
        spk, mem = snn.Leaky.forward(self, x, state["mem"])
        return {"spk": spk, "mem": mem}


class Derived(Scaled):
    """Two storeys below snnTorch."""


class Clamped(snn.Leaky):
    """What it returns is not the tensor that the framework stored."""

    def forward(self, x: Tensor, mem: Tensor) -> Any:
        spk, mem = super().forward(x, mem)
        return spk, mem.clamp(-4, 4)


class OwnStep(snn.Leaky):
    """A step of its own with an immediate reset: the framework's forward and mem_reset never run."""

    def forward(self, x: Tensor, mem: Tensor) -> Any:
        mem = self.beta * mem + x
        spk = self.fire(mem)
        return spk, mem - spk * self.threshold


class ResetAfterCharge(snn.Leaky):
    """It calls mem_reset, but after the charge."""

    def forward(self, x: Tensor, mem: Tensor) -> Any:
        self.mem = self.beta * mem + x
        spk = self.fire(self.mem)
        reset = self.mem_reset(self.mem)
        self.mem = self.mem - reset * self.threshold
        return spk, self.mem


class OwnReset(snn.Leaky):
    """Overrides the framework's reset signal (a soft one), as its method lookup allows."""

    def mem_reset(self, mem: Tensor) -> Tensor:
        return (mem - self.threshold).clamp(0, 1).detach()


class OwnCharge(snn.Leaky):
    """Overrides the charge: a quadratic leak."""

    def _base_state_function(self, x: Tensor) -> Tensor:
        return self.mem - 0.25 * self.mem * self.mem.abs() + x


class TwoSteps(snn.Leaky):
    """Two steps of the framework per call: V0 must enter before the first only."""

    def forward(self, x: Tensor, mem: Tensor) -> Any:
        _, mem = super().forward(x / 2, mem)
        return super().forward(x / 2, mem)


Step = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]


def _positional(neuron: Any, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
    spk, mem = neuron(x, mem)
    return spk, mem


STEPS: dict[type[snn.Leaky], Step] = {
    Scaled: lambda n, x, mem: n(x, 2.0, state=mem),
    StateFirst: lambda n, x, mem: n(mem, x),
    AsDict: lambda n, x, mem: tuple(n(x, {"mem": mem}).values()),
    Derived: lambda n, x, mem: n(x, gain=2.0, state=mem),
    OwnReset: _positional,
    OwnCharge: _positional,
    TwoSteps: _positional,
    Clamped: _positional,
    OwnStep: _positional,
    ResetAfterCharge: _positional,
}
# These never reach the framework's step as it is: acting right or refusing are both fine.
MAY_REFUSE = {Clamped, OwnStep, ResetAfterCharge}


def _run(neuron: Any, step: Step, x: Tensor, mem: Tensor) -> list[Tensor]:
    seen: list[Tensor] = []
    for x_t in x:
        spk, mem = step(neuron, x_t, mem)
        seen += [spk, mem]
    return seen


def _verdict(cls: type[snn.Leaky], step: Step, v0: Tensor) -> str:
    """What patching does to a class: "exact", "refused" or "silently wrong"."""
    torch.manual_seed(1)
    x = torch.randn(8, 3, FEATURES)
    zeros = torch.zeros(3, FEATURES)
    expected = _run(cls(0.5), step, x, v0 + zeros)
    assert sum(s.sum() for s in expected[::2]) > 0
    neuron = cls(0.5)
    try:
        snn_ext.patch(nn.Sequential(neuron), imp={"0": snn_ext.IMP(init=0.0, shape=(FEATURES,))})
        with torch.no_grad():
            neuron.imp.copy_(v0)
        seen = _run(neuron, step, x, zeros)
    except snn_ext.UnsupportedSiteError:
        return "refused"
    equal = all(torch.equal(a, b) for a, b in zip(expected, seen, strict=True))
    return "exact" if equal else "silently wrong"


@pytest.mark.parametrize("cls", STEPS)
def test_v0_is_a_start_value_or_the_class_is_refused(cls: type[snn.Leaky]) -> None:
    assert _verdict(cls, STEPS[cls], V0) in (("exact", "refused") if cls in MAY_REFUSE else ("exact",))


@pytest.mark.parametrize("cls", [c for c in STEPS if c not in MAY_REFUSE])
def test_wrong_twin_another_v0_is_seen_in_every_class(cls: type[snn.Leaky], monkeypatch: Any) -> None:
    copy_of = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda self, other: copy_of(self, other + 0.25))
    assert _verdict(cls, STEPS[cls], V0) == "silently wrong"


@pytest.mark.parametrize("cls", [c for c in STEPS if c not in MAY_REFUSE])
def test_user_classes_keep_their_class_and_their_neutral(cls: type[snn.Leaky]) -> None:
    assert _verdict(cls, STEPS[cls], torch.zeros(FEATURES)) == "exact"
    neuron = cls(0.5)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(shape="layer"))
    assert isinstance(neuron, cls)
    snn_ext.unpatch(neuron)
    assert type(neuron) is cls


def test_a_state_dict_argument_survives_detach() -> None:
    neuron = AsDict(0.5, threshold=100.0)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=1.0, shape="layer"))
    x, mem = torch.zeros(1, 1), torch.zeros(1, 1)
    seen = []
    for _ in range(3):
        mem = neuron(x, {"mem": mem.detach()})["mem"]
        seen.append(mem.item())
    assert seen == [0.5, 0.25, 0.125]


class _Net(nn.Module):
    """The usual loop, around a neuron that gets its state before its input."""

    def __init__(self, call: Step, neuron: snn.Leaky) -> None:
        super().__init__()
        self.fc, self.lif, self.call = nn.Linear(6, FEATURES), neuron, call

    def forward(self, x: Tensor) -> Tensor:
        mem, steps = self.lif.init_leaky(), []
        for _ in range(3):
            _, mem = self.call(self.lif, self.fc(x), mem)
            steps.append(mem)
        return torch.stack(steps)


@pytest.mark.parametrize(
    ("neuron", "call"),
    [
        (lambda: snn.Leaky(0.5), lambda n, x, mem: n(mem=mem, input_=x)),
        (lambda: StateFirst(0.5), STEPS[StateFirst]),
        (lambda: Scaled(0.5), lambda n, x, mem: n(state=mem, x=x)),
        (lambda: snn.Leaky(0.5), lambda n, x, mem: n(x, mem)),
    ],
    ids=["keywords", "state first", "own keywords", "stock"],
)
def test_the_shape_is_traced_from_the_input_wherever_it_stands(neuron: Any, call: Step) -> None:
    """The state comes first, and on a fresh net init_leaky() returns a tensor of shape [0]."""
    net = _Net(call, neuron())
    snn_ext.patch(net, imp=True, example_input=torch.randn(2, 6))
    assert net.lif.imp.shape == (FEATURES,)


def _attached(neuron: snn.Leaky) -> Any:
    """`state_function` is an instance attribute of snnTorch, and people set it."""
    neuron.state_function = lambda x: 0.5 * neuron.mem + x  # type: ignore[method-assign]
    return neuron


@pytest.mark.parametrize(
    "neuron",
    [
        lambda: _attached(snn.Leaky(0.5)),
        lambda: snn.Leaky(0.5, spike_grad=snn.surrogate.fast_sigmoid(slope=0)),
        lambda: snn.Leaky(0.5, spike_grad=snn.surrogate.straight_through_estimator()),
        lambda: snn.Leaky(0.5, spike_grad=lambda u: (u > 0).float()),
        lambda: snn.Leaky(0.5, state_quant=lambda u: u),
        lambda: snn.Leaky(0.5, surrogate_disable=True),
        lambda: snn.Leaky(1, threshold=1),  # integer buffers
    ],
    ids=["state_function", "slope 0", "straight through", "lambda", "quantiser", "no surrogate", "integers"],
)
def test_neurons_that_cannot_be_described_can_be_patched(neuron: Callable[[], Any]) -> None:
    """IMP delegates to the neuron's own step, so it needs no description of it."""
    expected = _run(neuron(), _positional, torch.zeros(3, 2, FEATURES), torch.full((2, FEATURES), 0.5))
    patched = neuron()
    snn_ext.patch(nn.Sequential(patched), imp=snn_ext.IMP(init=0.5, shape="layer"))
    seen = _run(patched, _positional, torch.zeros(3, 2, FEATURES), torch.zeros(2, FEATURES))
    assert all(torch.equal(a, b) for a, b in zip(expected, seen, strict=True))
    assert seen[1].abs().sum() > 0
