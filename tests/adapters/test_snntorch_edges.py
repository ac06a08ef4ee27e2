"""Odd but legal uses of a neuron: V0 is there once, and nothing that worked before stops working."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import snn_ext
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.test_snntorch_idioms import FEATURES, START, X, pass_mem, patch, value, witness


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


@pytest.mark.parametrize(
    ("make", "begin"),
    [
        (lambda: snn.Synaptic(0.5, 0.5, threshold=100.0), "init_synaptic"),
        (lambda: snn.Lapicque(R=1.0, C=2.0, threshold=100.0), "init_lapicque"),
        (lambda: snn.RLeaky(0.5, all_to_all=False, threshold=100.0), "init_rleaky"),
        (lambda: snn.RSynaptic(0.5, 0.5, all_to_all=False, threshold=100.0), "init_rsynaptic"),
    ],
    ids=["Synaptic", "Lapicque", "RLeaky", "RSynaptic"],
)
@pytest.mark.parametrize("detach", [False, True])
def test_every_class_starts_from_its_own_init(make: Callable[[], Any], begin: str, detach: bool) -> None:
    neuron = make()
    patch(nn.Sequential(neuron))
    seen = []
    for _ in range(2):
        states = getattr(neuron, begin)()
        states = states if isinstance(states, tuple) else (states,)
        for _ in range(3):
            output = neuron(X, *(s.detach() if detach else s for s in states))
            states = output[1:] if begin in ("init_synaptic", "init_lapicque") else output
            seen.append(value(states[-1]))
    assert seen == START + START


@pytest.mark.parametrize("shape", [(FEATURES,), (1,), "layer", "neuron", "channel"])
def test_unbatched_input_in_every_shape_of_v0(shape: Any) -> None:
    """Leaky takes one sample [N]; so does its V0, however its shape was given."""
    net = nn.Sequential(nn.Linear(1, FEATURES), witness())
    snn_ext.patch(net, imp=snn_ext.IMP(init=1.0, shape=shape))
    _, mem = net[1](torch.zeros(FEATURES), torch.zeros(FEATURES))
    assert value(mem) == 0.5


def test_a_passed_state_with_init_hidden_is_refused_as_before() -> None:
    net = patch(nn.Sequential(witness(init_hidden=True)))
    with pytest.raises(TypeError, match="should not be passed"):
        net[0](X, torch.zeros_like(X))


def test_a_declared_but_unused_neuron_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.spare = witness(init_hidden=True), witness(init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lif(x)
            return out

    net = snn_ext.patch(Net(), imp=True, example_input=X)
    assert [name for name, _ in net.named_parameters()] == ["lif.imp"]


def test_mem_reset_called_by_the_user_changes_nothing() -> None:
    """It is a public method; asking for the reset signal is not a step."""
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    stock = witness()
    assert torch.equal(net[0].mem_reset(X), stock.mem_reset(X))  # before the first forward
    utils.reset(net)
    net(X)
    utils.reset(net)
    net[0].mem_reset(net[0].mem)
    assert value(net(X)[1]) == 0.5


def test_an_interrupted_step_adds_nothing() -> None:
    """Ctrl-C in the middle of the first step, then the cell is run again: still one V0."""
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    charge = net[0].state_function

    def interrupted(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    net[0].state_function = interrupted
    with pytest.raises(KeyboardInterrupt):
        net(X)
    net[0].state_function = charge
    assert value(net(X)[1]) == 0.5


def test_input_that_is_the_membrane_itself_is_not_taken_for_a_state() -> None:
    """Feeding the last membrane back as *input* while the state starts anew."""
    net = patch(nn.Sequential(witness()))
    mem = pass_mem(net[0], torch.zeros_like(X))
    _, again = net[0](mem, torch.zeros_like(X))
    assert value(again) == 0.5 + 0.5
    # As a start value of another neuron, a tensor that once was an input counts like any other.
    _, third = net[0](X, mem.detach().clone())
    assert value(third) == 0.25 + 0.5
