"""No phantom reset: a V0 above the threshold is no spike of the past.

snnTorch resets at step t what was above the threshold after step t - 1. V0 was not charged by an input,
so nothing is reset at step 1; the neuron fires there if the charge, V0's share included, exceeds the
threshold. The numbers are worked out by hand: threshold 1, V0 = 1.5, decay 1, no input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext.patching.sequence import is_carried
from snn_ext_snntorch import neurons
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.test_snntorch_equations import _adds_before_the_reset, drive

NEURONS: dict[str, Callable[..., Any]] = {
    "Leaky": lambda **o: snn.Leaky(1.0, **o),
    "Synaptic": lambda **o: snn.Synaptic(0.5, 1.0, **o),
    # 1 - dt/(RC) is never 1: V0 = 2 and a decay of 3/4 charge to the same 1.5.
    "Lapicque": lambda **o: snn.Lapicque(R=1.0, C=4.0, **o),
    "RLeaky": lambda **o: snn.RLeaky(1.0, V=0.0, all_to_all=False, **o),
    "RSynaptic": lambda **o: snn.RSynaptic(0.5, 1.0, V=0.0, all_to_all=False, **o),
}
WITHOUT_DELAY = ("Leaky", "Synaptic", "RLeaky")

# (spikes, carried membranes) of three steps without input.
DELAYED = {
    "subtract": ([1, 0, 0], [1.5, 0.5, 0.5]),
    "zero": ([1, 0, 0], [1.5, 0.0, 0.0]),
    "none": ([1, 1, 1], [1.5, 1.5, 1.5]),
}
AT_ONCE = {
    "subtract": ([1, 0, 0], [0.5, 0.5, 0.5]),
    "zero": ([1, 0, 0], [0.0, 0.0, 0.0]),
    "none": ([1, 1, 1], [1.5, 1.5, 1.5]),
}


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def _run(kind: str, v0: float, **options: Any) -> tuple[list[float], list[float]]:
    neuron = NEURONS[kind](output=bool(options.get("init_hidden")), **options)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=v0, shape="layer"))
    with torch.no_grad():
        spikes, membranes = drive(neuron, torch.zeros(3, 1, 1))
    return spikes.flatten().tolist(), membranes.flatten().tolist()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("reset", DELAYED)
@pytest.mark.parametrize("kind", [k for k in NEURONS if k != "Lapicque"])
def test_v0_above_the_threshold_fires_at_step_one_and_is_reset_after(
    kind: str, reset: str, hidden: bool
) -> None:
    seen = _run(kind, 1.5, reset_mechanism=reset, init_hidden=hidden)
    assert seen == DELAYED[reset]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        ("subtract", ([1, 0, 0], [1.5, 0.125, 0.09375])),
        ("zero", ([1, 0, 0], [1.5, 0.0, 0.0])),
        ("none", ([1, 1, 0], [1.5, 1.125, 0.84375])),
    ],
)
def test_lapicque_fires_at_step_one(
    reset: str, expected: tuple[list[int], list[float]], hidden: bool
) -> None:
    assert _run("Lapicque", 2.0, reset_mechanism=reset, init_hidden=hidden) == expected


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("reset", AT_ONCE)
@pytest.mark.parametrize("kind", WITHOUT_DELAY)
def test_without_reset_delay_v0_fires_once_and_is_reset_at_once(kind: str, reset: str, hidden: bool) -> None:
    seen = _run(kind, 1.5, reset_mechanism=reset, init_hidden=hidden, reset_delay=False)
    assert seen == AT_ONCE[reset]


def test_an_inhibiting_input_still_prevents_the_first_spike() -> None:
    """What fires is the charge, not V0: 1.5 - 0.5 is exactly the threshold, and the comparison strict."""
    neuron = snn.Leaky(1.0)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=1.5, shape="layer"))
    spikes, mem = neuron(torch.tensor([[-0.5]]), neuron.init_leaky())
    assert (spikes.item(), mem.item()) == (0, 1.0)
    # Nothing fired, so nothing is reset.
    spikes, mem = neuron(torch.tensor([[0.25]]), mem)
    assert (spikes.item(), mem.item()) == (1, 1.25)


@pytest.mark.parametrize("v0", [-3.0, 0.999, 1.0, 1.001, 40.0])
def test_the_first_membrane_is_v0_plus_input_for_every_v0(v0: float) -> None:
    for reset in DELAYED:
        neuron = snn.Leaky(0.5, reset_mechanism=reset)
        snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=v0, shape="layer"))
        _, mem = neuron(torch.full((2, 3), 0.25), neuron.init_leaky())
        assert torch.equal(mem, torch.full((2, 3), 0.5) * v0 + 0.25)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_gradient_flows_through_a_v0_above_the_threshold(reset: str) -> None:
    """With the phantom reset, "zero" would wipe V0 and its gradient at once."""
    neuron = snn.Leaky(0.5, reset_mechanism=reset)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=1.5, shape="layer"))
    _, mem = neuron(torch.zeros(2, 3), neuron.init_leaky())
    mem.sum().backward()
    assert neuron.imp.grad.item() == 6 * 0.5


def test_the_pending_reset_of_a_users_own_start_value_stays_stock() -> None:
    """A start value of the user that is above the threshold does reset in snnTorch; V0 changes nothing
    about that, even where their sum would not be above the threshold."""
    neuron = snn.Leaky(1.0)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=-1.0, shape="layer"))
    spikes, mem = neuron(torch.zeros(1, 1), torch.tensor([[1.75]]))
    assert (spikes.item(), mem.item()) == (0, 1.75 - 1.0 - 1.0)


def _never_resets_at_all(self: Any, mem: Tensor) -> Tensor:
    reset = snn.SpikingNeuron.mem_reset(self, mem)
    if not is_carried(self.mem):
        self.mem = self.mem + self.imp
    return torch.zeros_like(reset)


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("wrong", [_adds_before_the_reset, _never_resets_at_all])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("kind", [k for k in NEURONS if k != "Lapicque"])
def test_wrong_twins_are_caught(kind: str, reset: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons.IMP, "mem_reset", wrong)
    assert _run(kind, 1.5, reset_mechanism=reset) != DELAYED[reset]


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_wrong_twin_without_reset_delay_is_caught(reset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "subtract" the phantom reset would make the neuron silent for ever."""
    monkeypatch.setattr(neurons.IMP, "mem_reset", _adds_before_the_reset)
    spikes, _ = _run("Leaky", 1.5, reset_mechanism=reset, reset_delay=False)
    assert spikes == [0, 0, 0]
