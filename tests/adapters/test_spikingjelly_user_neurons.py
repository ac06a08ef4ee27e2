"""Neurons that users derive from SpikingJelly's: either V0 acts in them, or they are refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import TIMESTEPS, base, functional, neuron, steps

FEATURES = (3, 8)


class LeakyStep(neuron.LIFNode):
    """Overrides the single step only; in 'm' mode SpikingJelly 2.0 runs the parent's kernel instead."""

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        h = 0.9 * states[0] + inputs[0]
        spike = self.surrogate_function(h - self.v_threshold)
        return (spike,), (h - spike, *states[1:])


class BothSteps(LeakyStep):
    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        return base.MemoryModule.multi_step_functional_forward(self, inputs, states, **kwargs)


class ScaledInput(neuron.IFNode):
    """A forward of its own that leaves the step to the framework."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2.0 * x)


class OldParent(neuron.IFNode):
    """The same, with the parent named instead of super()."""

    def forward(self, x: Tensor) -> Tensor:
        return neuron.IFNode.forward(self, x)


class OwnForward(neuron.IFNode):
    """Never asks the framework for a state."""

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            v = v + x_t
            spikes.append(self.surrogate_function(v - self.v_threshold))
            v = v - spikes[-1]
        return torch.stack(spikes)


class OwnForwardWithGain(OwnForward):
    """Calls the `forward` of something else."""

    def __init__(self) -> None:
        super().__init__(step_mode="m")
        self.gain = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain.forward(x)
        v, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            v = v + x_t
            spikes.append(self.surrogate_function(v - self.v_threshold))
            v = v - spikes[-1]
        return torch.stack(spikes)


class OwnMultiStep(neuron.IFNode):
    """Sets its membrane itself, in the multi-step path only."""

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.v = torch.zeros_like(x_seq[0])
        spikes = []
        for x in x_seq:
            self.v = self.v + x
            spikes.append(self.surrogate_function(self.v - self.v_threshold))
            self.v = self.v - spikes[-1]
        return torch.stack(spikes)


class OwnSingleStep(neuron.IFNode):
    """Sets its membrane itself, in the single-step path only."""

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        v = self.v if isinstance(self.v, Tensor) else torch.zeros_like(x)
        self.v = v + x
        spike = self.surrogate_function(self.v - self.v_threshold)
        self.v = self.v - spike
        return spike


class SimpleWithLoop(neuron.SimpleIFNode):
    """'m' mode delegates to a single step that never asks for a state."""

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        spikes = []
        for x in x_seq:
            spikes.append(self.single_step_forward(x))
        return torch.stack(spikes)


def _twice(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


class DecoratedForward(neuron.IFNode):
    forward = _twice(neuron.IFNode.forward)


class DecoratedOwnForward(OwnForward):
    forward = _twice(OwnForward.forward)


class OwnTransition(base.MemoryModule):
    """Built on the bare memory module, asking for its state where SpikingJelly's own neurons do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("v", 0.0)

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        return (states[0] if isinstance(states[0], Tensor) else torch.full_like(x, states[0]),)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: object
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        h = states[0] + inputs[0]
        return (h.sigmoid(),), (h * 0.5,)


class IntegerReset(OwnTransition):
    def __init__(self) -> None:
        base.MemoryModule.__init__(self)
        self.register_memory("v", 0)


class OwnStepForward(OwnTransition):
    """Asks for its state in a step of its own, without the functional interface."""

    single_step_functional_forward = base.MemoryModule.single_step_functional_forward

    def single_step_forward(self, x: Tensor) -> Tensor:
        (v,) = self.materialize_states((x,), (self.v,), "s")
        self.v = 0.5 * v + x
        return self.v.sigmoid()

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        outputs = []
        for x in x_seq:
            outputs.append(self.single_step_forward(x))
        return torch.stack(outputs)


class NoNumber(OwnTransition):
    def __init__(self) -> None:
        base.MemoryModule.__init__(self)
        self.register_memory("v", None)

    def materialize_states(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        return super().materialize_states(inputs, (states[0] or 0.0,), step_mode)


class VoltageSecond(neuron.IFNode):
    def __init__(self) -> None:
        super().__init__()
        self._memories = {"trace": 0.0, **self._memories}
        self._memories_rv = {"trace": 0.0, **self._memories_rv}


class HasImp(neuron.IFNode):
    def __init__(self) -> None:
        super().__init__()
        self.imp = 3


def _inputs() -> Tensor:
    return torch.rand(TIMESTEPS, 2, *FEATURES) * 1.5


def _patch(node: nn.Module, mode: str, option: snn_ext.IMP) -> nn.Module:
    node.step_mode = mode
    x = _inputs()
    return snn_ext.patch(node, imp=option, example_input=x if mode == "m" else x[0], include="")


def _acts(node: nn.Module, mode: str) -> bool:
    """V0 changes the output, and gets a gradient."""
    x = _inputs()
    snn_ext.reset(node)
    before = steps(node, x, mode)
    if before.requires_grad:
        before.sum().backward()
    with torch.no_grad():
        node.imp.add_(torch.rand_like(node.imp) * 8 - 4)
    snn_ext.reset(node)
    after = steps(node, x, mode)
    moved = not torch.equal(before, after)
    learns = node.imp.grad is not None and bool(node.imp.grad.any())
    assert moved == learns, f"moved: {moved}, gradient: {learns}"
    return moved


def _taken_or_refused(node: nn.Module, mode: str) -> str:
    try:
        _patch(node, mode, snn_ext.IMP(init="rest"))
    except snn_ext.UnsupportedSiteError as error:
        return "refused" if error.why else "refused without a reason"
    assert _acts(node, mode), "silent no-op"
    return "taken"


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(
    "make",
    [LeakyStep, BothSteps, ScaledInput, OldParent, OwnTransition, IntegerReset, OwnStepForward],
    ids=lambda make: make.__name__,
)
def test_neurons_that_ask_for_their_state_take_v0(make: type[nn.Module], mode: str) -> None:
    plain = make()
    plain.step_mode = mode
    patched = _patch(copy.deepcopy(plain), mode, snn_ext.IMP(init="rest"))
    x = _inputs()
    assert torch.equal(steps(plain, x, mode), steps(patched, x, mode))
    assert torch.equal(plain.v, patched.v)
    snn_ext.reset(patched)
    assert _acts(patched, mode)


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        (OwnForward, "m"),
        (OwnForwardWithGain, "m"),
        (OwnMultiStep, "m"),
        (OwnSingleStep, "s"),
        (SimpleWithLoop, "m"),
        (DecoratedOwnForward, "m"),
        (NoNumber, "m"),
        (VoltageSecond, "m"),
        (HasImp, "m"),
    ],
    ids=[
        "own forward",
        "own forward that calls another forward",
        "own multi step",
        "own single step",
        "simple node in a loop",
        "decorated own forward",
        "no number to reset to",
        "v is not the first memory",
        "has an imp of its own",
    ],
)
def test_neurons_that_cannot_take_v0_are_refused(make: Callable[[], nn.Module], mode: str) -> None:
    node = make()
    cls = type(node)
    assert _taken_or_refused(node, mode) == "refused"
    assert type(node) is cls


def test_a_decorated_forward_of_the_framework_is_never_a_silent_no_op() -> None:
    assert _taken_or_refused(DecoratedForward(), "m") in ("taken", "refused")


@pytest.mark.parametrize(("make", "first", "then"), [(OwnSingleStep, "m", "s"), (OwnMultiStep, "s", "m")])
def test_a_later_switch_of_the_step_mode_is_not_a_silent_no_op(
    make: type[nn.Module], first: str, then: str
) -> None:
    """Users switch with `set_step_mode` after patching. Either patching refuses, or the switched neuron
    says that it cannot start from V0."""
    node = make()
    try:
        _patch(node, first, snn_ext.IMP(init="rest"))
    except snn_ext.UnsupportedSiteError:
        return
    functional.set_step_mode(node, then)
    try:
        acts = _acts(node, then)
    except snn_ext.SnnExtError:
        return
    assert acts, "V0 is silently ignored after set_step_mode"


@pytest.mark.parametrize("parent", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode])
@pytest.mark.parametrize("name", ["neuronal_charge", "neuronal_fire", "neuronal_reset"])
def test_overrides_the_framework_ignores_are_named(parent: type[nn.Module], name: str) -> None:
    node = type("Legacy", (parent,), {name: lambda self, x: x})(step_mode="m")
    net = nn.Sequential(nn.Identity(), node)
    with pytest.warns(UserWarning, match=f"1 .*Legacy.*{name}.*never calls") as caught:
        snn_ext.patch(net, imp=True, example_input=_inputs())
    assert len(caught) == 1
    assert _acts(node, "m")


@pytest.mark.filterwarnings("error")
def test_no_warning_without_such_an_override() -> None:
    snn_ext.patch(nn.Sequential(neuron.LIFNode(step_mode="m")), imp=True, example_input=_inputs())


@pytest.mark.parametrize("make", [OwnTransition, OwnStepForward, LeakyStep], ids=lambda make: make.__name__)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_functional_forward_of_user_neurons_still_works(make: type[nn.Module], mode: str) -> None:
    """Whatever path `to_functional_forward` finds for the plain neuron must work for the patched one."""
    plain = make()
    plain.step_mode = mode
    x = _inputs()
    x = x if mode == "m" else x[0]
    rest = plain.get_reset_value("v")
    expected, _ = base.to_functional_forward(plain)((x,), (rest,))
    patched = _patch(copy.deepcopy(plain), mode, snn_ext.IMP(init="rest"))
    outputs, (v,) = base.to_functional_forward(patched)((x,), (rest,))
    assert torch.equal(outputs[0], expected[0])
    (outputs[0].sum() + v.sum()).backward()
    assert patched.imp.grad.any()
