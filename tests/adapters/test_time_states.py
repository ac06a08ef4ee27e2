"""Which step it is in per-step loops, however the user handles states: right, or a typed error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model.spike_dhs import save_v_LIFNode
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, TimestepError, UnsupportedSiteError

STEPS = 4
Net = nn.Sequential


def steps_net(at: str) -> Net:
    """SpikingJelly in step mode 's', with a norm whose slot t multiplies by t + 1."""
    net = nn.Sequential(layer.Linear(3, 4), layer.BatchNorm1d(4), neuron.IFNode(v_threshold=1e9))
    option = BNTT(bias=True, at=at, eps=1e-9)
    snn_ext.patch(net.eval(), bntt=option, timesteps=STEPS, example_input=torch.ones(2, 3))
    slots = [net[1], *net[1].bntt] if at == "norm" else list(net[2].bntt.slots)
    for t, slot in enumerate(slots):
        nn.init.constant_(slot.weight, t + 1.0)
    return net


@pytest.fixture(params=["norm", "neuron"])
def net(request: pytest.FixtureRequest) -> Net:
    return steps_net(request.param)


def charges(net: Net, x: Tensor) -> Tensor:
    """One step; by how much the membrane of the first neuron of the first sample moved."""
    v = net[2].v
    before = v[0, 0] if isinstance(v, Tensor) else torch.tensor(v)
    net(x)
    return net[2].v[0, 0] - before


def unit(net: Net, x: Tensor) -> Tensor:
    """What step 1 adds; step t adds t times as much."""
    functional.reset_net(net)
    first = charges(net, x)
    functional.reset_net(net)
    assert first != 0
    return first


def close(value: Tensor, expected: Tensor) -> bool:
    return torch.allclose(value, expected, rtol=1e-5)  # sums of different size were subtracted


def test_states_put_aside_and_back_keep_their_time(net: Net) -> None:
    x = torch.rand(2, 3)
    first = unit(net, x)
    net(x)
    net(x)
    aside = net[2].v
    functional.reset_net(net)
    assert close(charges(net, x), first)
    net[2].v = aside
    assert close(charges(net, x), 3 * first)


def test_twin_without_the_mark_the_time_is_lost(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3)
    unit(net, x)
    net(x)
    net(x)
    aside = net[2].v.clone()
    functional.reset_net(net)
    net(x)
    net[2].v = aside
    with pytest.raises(TimestepError, match="set by hand"):
        net(x)


def test_a_membrane_set_by_hand_after_a_reset_begins_a_sequence(net: Net) -> None:
    x = torch.rand(2, 3)
    first = unit(net, x)
    for _ in range(STEPS):
        net(x)
    functional.reset_net(net)
    net[2].v = torch.full((2, 4), 0.5)
    assert close(charges(net, x), first)
    assert close(charges(net, x), 2 * first)


def test_a_membrane_changed_by_hand_says_what_it_was_made_from(net: Net) -> None:
    x = torch.rand(2, 3)
    first = unit(net, x)
    net(x)
    net[2].v = snn_ext.carried(net[2].v * 0.5, of=net[2].v)
    assert close(charges(net, x), 2 * first)
    net[2].v.mul_(0.5)  # written in place: still the same sequence
    assert close(charges(net, x), 3 * first)


@pytest.mark.parametrize("move", [lambda n: n.double(), functional.detach_net], ids=["to", "detach"])
def test_moves_keep_the_time(net: Net, move: Callable[[Net], Any]) -> None:
    x = torch.rand(2, 3)
    first = unit(net, x)
    net(x)
    move(net)
    x = x.to(net[0].weight.dtype)
    assert close(charges(net, x).float(), 2 * first)


class Twice(nn.Module):
    """One neuron object for two layers: two steps of its state per step of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2, self.lif = layer.BatchNorm1d(3), layer.BatchNorm1d(3), neuron.IFNode()

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.bn2(self.lif(self.bn1(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("only", ["*", "bn1"])
def test_a_neuron_called_twice_per_step_is_an_error_and_no_wrong_slot(only: str) -> None:
    net, x = Twice().eval(), torch.rand(2, 3)
    snn_ext.patch(net, bntt=BNTT(bias=True), include=only, timesteps=9, example_input=x)
    net(x)
    with pytest.raises(TimestepError, match="step 3"):
        net(x)


def test_a_longer_sequence_is_still_an_error(net: Net) -> None:
    x = torch.rand(2, 3)
    for _ in range(STEPS):
        net(x)
    with pytest.raises(TimestepError, match="step 5"):
        net(x)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_neurons_with_a_step_of_their_own_are_normalised_too(mode: str) -> None:
    node = save_v_LIFNode(step_mode=mode)
    net = nn.Sequential(layer.Linear(3, 4, step_mode=mode), node)
    snn_ext.patch(net, bntt=BNTT(at="neuron"), timesteps=STEPS)
    x = torch.randn(STEPS, 5, 3)
    net(x) if mode == "m" else [net(x_t) for x_t in x]
    assert [int(slot.num_batches_tracked) for slot in node.bntt.slots] == [1] * STEPS


# --- snnTorch: user classes ------------------------------------------------------------------------


class TwoSteps(snn.Leaky):
    """Two steps of the framework per call."""

    def forward(self, x: Tensor, mem: Tensor) -> Any:
        _, mem = super().forward(x, mem)
        return super().forward(x, mem)


class Halves(snn.Leaky):
    """Charges in two halves."""

    def _base_sub(self, input_: Tensor) -> Tensor:
        self.mem = self._base_state_function(input_ / 2)
        return self._base_state_function(input_ / 2) - self.reset * self.threshold


class Leaking(snn.Leaky):
    """Charges without the framework's charge."""

    def _base_sub(self, input_: Tensor) -> Tensor:
        return self.mem - 0.1 * self.mem.sign() + input_


def test_two_steps_in_one_call_are_two_steps() -> None:
    node = TwoSteps(1.0, threshold=1e9)
    net = nn.Sequential(nn.Linear(3, 3), node).eval()
    snn_ext.patch(net, bntt=BNTT(bias=True, at="neuron", eps=1e-9), timesteps=4)
    for t, slot in enumerate(node.bntt.slots):
        nn.init.constant_(slot.weight, t + 1.0)
    x, mem = torch.ones(2, 3), torch.zeros(2, 3)
    seen = []
    for _ in range(2):
        _, mem = node(x, mem)
        seen.append(float(mem.detach()[0, 0]))
    assert seen == pytest.approx([1 + 2, 1 + 2 + 3 + 4])
    with pytest.raises(TimestepError, match="step 5"):
        node(x, mem)


@pytest.mark.parametrize("cls", [Halves, Leaking])
def test_charges_of_their_own_are_refused(cls: type[snn.Leaky]) -> None:
    net = nn.Sequential(nn.Linear(3, 3), cls(0.5, init_hidden=True))
    for option in (
        {"bntt": {"1": BNTT(at="neuron")}},
        {"tebn": {"1": snn_ext.TEBN(stats="step", at="neuron")}},
    ):
        with pytest.raises(UnsupportedSiteError, match="overrides _base_sub"):
            snn_ext.patch(net, timesteps=2, **option)
    snn_ext.patch(net, imp=True)
