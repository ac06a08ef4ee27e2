"""snn_ext.reset, copies, and patching in the middle of a sequence.

snnTorch's ``utils.reset`` sees direct children only, misses copies and resets other networks as well;
``snn_ext.reset`` resets what is inside the model it is given, and nothing else.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import snn_ext
from tests.adapters.snntorch_nets import private_instances

FEATURES = 3
X = torch.zeros(2, FEATURES)


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def witness(**options: Any) -> Any:
    """Membrane 1/2, 1/4, 1/8, ... after every start from V0 = 1."""
    options = {"init_hidden": True, "output": True, "surrogate_disable": True} | options
    return snn.Leaky(0.5, threshold=100.0, **options)


def patch(net: nn.Module) -> nn.Module:
    return snn_ext.patch(net, imp=snn_ext.IMP(init=1.0, shape=(FEATURES,)))


def run(net: nn.Module, steps: int) -> list[float]:
    return [float(net(X)[1].detach()[0, 0]) for _ in range(steps)]


def test_reset_reaches_nested_neurons() -> None:
    net = patch(nn.Sequential(nn.Sequential(nn.Sequential(witness()))))
    assert run(net, 2) == [0.5, 0.25]
    utils.reset(net)  # stock: no direct child is a neuron, so nothing happens
    assert run(net, 1) == [0.125]
    snn_ext.reset(net)
    assert run(net, 2) == [0.5, 0.25]


def test_reset_of_a_bare_neuron() -> None:
    neuron = patch(witness())
    assert run(neuron, 2) == [0.5, 0.25]
    snn_ext.reset(neuron)
    assert run(neuron, 1) == [0.5]


def test_reset_does_not_touch_other_nets() -> None:
    """utils.reset does, which is what it is compared with."""
    mine, other, stock = patch(nn.Sequential(witness())), patch(nn.Sequential(witness())), witness()
    stock.mem = torch.ones_like(X)
    run(mine, 1), run(other, 1)
    held = other[0].mem
    snn_ext.reset(mine)
    assert other[0].mem is held
    assert torch.equal(stock.mem, torch.ones_like(X))
    assert run(mine, 1) == [0.5]
    assert run(other, 1) == [0.25]
    utils.reset(mine)
    assert run(other, 1) == [0.5]


def test_reset_of_a_part_leaves_its_siblings() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Sequential(witness()), nn.Sequential(witness())

    net = patch(Net())
    run(net.left, 1), run(net.right, 1)
    snn_ext.reset(net.left)
    assert run(net.left, 1) == [0.5]
    assert run(net.right, 1) == [0.25]


@pytest.mark.parametrize(
    ("make", "states"),
    [
        (lambda **o: snn.Leaky(0.5, **o), ("mem",)),
        (lambda **o: snn.Lapicque(beta=0.5, **o), ("mem",)),
        (lambda **o: snn.Synaptic(0.5, 0.5, **o), ("syn", "mem")),
        (lambda **o: snn.RLeaky(0.5, linear_features=FEATURES, **o), ("spk", "mem")),
        (lambda **o: snn.RSynaptic(0.5, 0.5, linear_features=FEATURES, **o), ("spk", "syn", "mem")),
        # not patchable, but a neuron of the model all the same
        (lambda **o: snn.Alpha(0.5, 0.4, **o), ("syn_exc", "syn_inh", "mem")),
        (lambda **o: snn.SLSTM(FEATURES, FEATURES, **o), ("syn", "mem")),
    ],
    ids=["Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic", "Alpha", "SLSTM"],
)
def test_reset_clears_every_state_and_cuts_the_graph(make: Any, states: tuple[str, ...]) -> None:
    neuron = make(init_hidden=True)
    net = patch(
        nn.Sequential(nn.Linear(FEATURES, FEATURES), neuron, nn.Linear(FEATURES, FEATURES), witness())
    )
    for _ in range(3):  # a second backward fails if any state keeps the first graph
        net(torch.randn(2, FEATURES) * 4)[1].sum().backward()
        assert any(getattr(neuron, s).abs().sum() > 0 for s in states)
        snn_ext.reset(net)
        for name in states:
            state = getattr(neuron, name)
            assert not state.requires_grad
            assert torch.equal(state, torch.zeros_like(X))


def test_reset_before_the_first_forward_is_harmless() -> None:
    net = patch(nn.Sequential(witness()))
    snn_ext.reset(net)
    assert net[0].mem.shape == (0,)
    assert run(net, 2) == [0.5, 0.25]


def test_reset_works_without_any_patch() -> None:
    net = nn.Sequential(nn.Sequential(witness()))
    net[0][0].mem = torch.ones_like(X)
    snn_ext.reset(net)
    assert torch.equal(net[0][0].mem, torch.zeros_like(X))


def _copies(net: nn.Module) -> dict[str, nn.Module]:
    return {"deepcopy": copy.deepcopy(net), "pickle": pickle.loads(pickle.dumps(net))}


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_have_their_own_v0_and_their_own_sequence(how: str) -> None:
    net = patch(nn.Sequential(witness()))
    with torch.no_grad():
        run(net, 1)
        twin = _copies(net)[how]
        # A copy made in the middle of a sequence goes on, independently.
        assert run(twin, 2) == [0.25, 0.125]
        assert run(net, 1) == [0.25]
        twin[0].imp.fill_(8.0)
        utils.reset(twin)  # stock resets only what it has in its list: the original
        assert run(twin, 1) == [0.0625]
        assert run(net, 1) == [0.5]
        snn_ext.reset(twin)
        assert run(twin, 1) == [4.0]


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_train_like_the_original(how: str) -> None:
    torch.manual_seed(5)
    net = patch(nn.Sequential(nn.Linear(4, FEATURES), witness(surrogate_disable=True)))
    twin = _copies(net)[how]
    x = torch.randn(4, 2, 4)
    for model in (net, twin):
        for _ in range(2):  # two iterations: without a reset the second backward would fail
            snn_ext.reset(model)
            torch.stack([model(step)[1] for step in x]).square().sum().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert ours is not theirs
        assert torch.equal(ours.grad, theirs.grad)


def test_patching_in_the_middle_of_a_sequence_adds_nothing_until_the_next_start() -> None:
    net = nn.Sequential(witness())
    net[0].mem = torch.ones_like(X)
    assert run(net, 1) == [0.5]
    patch(net)
    assert run(net, 2) == [0.25, 0.125]
    utils.reset(net)
    assert run(net, 1) == [0.5]


def test_patching_between_two_steps_of_an_explicit_loop() -> None:
    lif = witness(init_hidden=False)
    _, mem = lif(X, torch.ones_like(X))
    patch(nn.Sequential(lif))
    for expected in (0.25, 0.125):
        _, mem = lif(X, mem)
        assert float(mem.detach()[0, 0]) == expected
    _, mem = lif(X, torch.zeros_like(X))
    assert float(mem.detach()[0, 0]) == 0.5


def test_patching_with_an_example_in_the_middle_of_a_sequence_keeps_the_state() -> None:
    """The traced pass resets and overwrites the membrane; afterwards it is what it was."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = witness(init_hidden=False)

        def forward(self, x: Tensor) -> Tensor:
            mem = self.lif.reset_mem()
            for _ in range(2):
                _, mem = self.lif(x, mem)
            return mem

    net = Net()
    net(X)
    net.lif.mem = torch.full_like(X, 4.0)
    held = net.lif.mem
    snn_ext.patch(net, imp=snn_ext.IMP(init=1.0), example_input=torch.zeros(5, FEATURES))
    assert net.lif.mem is held
    assert torch.equal(held, torch.full_like(X, 4.0))
    assert float(net.lif(X)[1].detach()[0, 0]) == 2.0


def test_patching_after_a_finished_sequence_starts_the_next_one_from_v0() -> None:
    net = nn.Sequential(witness())
    run(net, 3)
    utils.reset(net)
    patch(net)
    assert run(net, 2) == [0.5, 0.25]


def test_unpatching_and_patching_again_in_the_middle_goes_on() -> None:
    net = patch(nn.Sequential(witness()))
    assert run(net, 1) == [0.5]
    snn_ext.unpatch(net)
    assert run(net, 1) == [0.25]
    patch(net)
    assert run(net, 1) == [0.125]
    snn_ext.unpatch(net)
    utils.reset(net)
    assert run(net, 1) == [0.0]
