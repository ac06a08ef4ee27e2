"""Recorded membranes are what snnTorch's neurons return, bit for bit, and recording changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import IMP, MPBN, TEBN
from snn_ext.figures import record
from tests.traces import fingerprint

pytest.importorskip("snntorch", reason="snnTorch is an optional dependency")

import snntorch as snn
from snntorch import surrogate, utils

from tests.adapters.snntorch_nets import CASES, REG1, T5, LayerLog, play, private_instances

T = 6


@pytest.fixture(autouse=True)
def _private() -> Iterator[None]:
    with private_instances():
        yield


METHODS: dict[str, dict[str, Any]] = {
    "unpatched": {},
    "IMP": {"imp": IMP(init=(-0.5, 1.5))},
    "MPBN": {"imp": True, "mpbn": MPBN(carry="normalised")},
    "BNTT": {"imp": True, "mpbn": True, "bntt": True},
    "TEBN": {"tebn": TEBN(stats="step")},
}


@pytest.mark.parametrize("methods", ["unpatched", "IMP", "BNTT"])
@pytest.mark.parametrize("name", CASES)
def test_tutorial_networks(name: str, methods: str) -> None:
    """Loops in the user's forward (every way to begin one), outer loops, vector thresholds, no reset."""
    case = CASES[name]
    net, x = case.fresh(), case.batch(4)
    options = dict(METHODS[methods])
    if isinstance(net, REG1):
        options.pop("mpbn", None)  # its last layer has no reset, and one neuron
    if options:
        snn_ext.patch(net, timesteps=12, example_input=case.example(x), **options)
    with torch.no_grad():
        case.run(net, x)  # states of an earlier sequence
    utils.reset(net)
    snn_ext.reset(net)
    before = fingerprint(net)
    found = record(net, x, per_step=case.run is play)
    assert fingerprint(net) == before
    log = LayerLog(net)
    with torch.no_grad():
        spikes, membranes = case.run(net, x)
    output = (
        [torch.stack(part) for part in zip(*found.output, strict=True)] if case.run is play else found.output
    )
    assert torch.equal(output[0], spikes)
    assert torch.equal(output[1], membranes)
    assert list(found) == list(log.spikes)
    for path, site in found.items():
        assert torch.equal(site.spikes, torch.stack(log.spikes[path]))
        assert torch.equal(site.v, torch.stack(log.membranes[path]))
        decided = site.h if site.normalised is None else site.normalised
        assert torch.equal(site.spikes, (decided > site.threshold).float())
    assert any(site.spikes.any() for site in found.values())


def one(reset: str, *, hidden: bool, neuron: Callable[..., nn.Module] = snn.Leaky) -> nn.Sequential:
    last = neuron(beta=0.8, reset_mechanism=reset, init_hidden=hidden, output=True)
    net = nn.Sequential(nn.Linear(4, 6), last)
    with torch.no_grad():
        net[0].weight.mul_(3)
    return net


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_resets_and_methods(reset: str, methods: str, training: bool) -> None:
    net, x = one(reset, hidden=True).train(training), torch.rand(T, 5, 4) * 3
    if METHODS[methods]:
        snn_ext.patch(net, timesteps=T, example_input=x[0], **METHODS[methods])
    before = fingerprint(net)
    found = record(net, x, per_step=True)["1"]
    assert fingerprint(net) == before
    with torch.no_grad():
        spikes, membranes = map(torch.stack, zip(*(net(x_t) for x_t in x), strict=True))
    assert torch.equal(found.spikes, spikes)
    assert torch.equal(found.v, membranes)
    assert spikes.any()
    if methods in ("unpatched", "IMP", "TEBN"):
        assert torch.equal(found.v, found.h), "the reset acts in the next step"
        assert found.normalised is None
    if methods == "MPBN":
        assert found.normalised is not None
        assert torch.equal(found.v, found.normalised)
        assert not torch.equal(found.v, found.h)


def test_the_equation_by_hand() -> None:
    """H = beta * H - theta * S + x, from V0; the twin that resets in the same step differs."""
    net, x = one("subtract", hidden=True), torch.rand(T, 5, 4) * 3
    snn_ext.patch(net, imp=IMP(init=(-0.5, 1.5)), example_input=x[0])
    found = record(net, x, per_step=True)["1"]
    current = torch.stack([net[0](x_t) for x_t in x]).detach().double()
    mem, spk, late, at_once = net[1].imp.detach().double().expand(5, 6), torch.zeros(5, 6), [], []
    for x_t in current:
        mem = 0.8 * mem + x_t - spk
        spk = (mem > 1).double()
        late.append(mem)
    torch.testing.assert_close(found.h.double(), torch.stack(late), rtol=0, atol=1e-5)
    mem = net[1].imp.detach().double().expand(5, 6)
    for x_t in current:
        mem = 0.8 * mem + x_t
        at_once.append(mem)
        mem = mem - (mem > 1).double()
    assert (found.h - torch.stack(at_once)).abs().max() > 0.1


class Explicit(nn.Module):
    """The membrane as a keyword, detached between the steps, from a start of the user's own."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.fc, self.node = nn.Linear(4, 6), node

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, spikes, membranes = torch.full((x.shape[1], 6), 1.7), [], []
        for x_t in x:
            spk, mem = self.node(self.fc(x_t) * 3, mem=mem)
            mem = mem.detach()
            spikes.append(spk)
            membranes.append(mem)
        return torch.stack(spikes), torch.stack(membranes)


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
@pytest.mark.parametrize(
    "node",
    [
        lambda: snn.Leaky(beta=0.9),
        lambda: snn.Leaky(beta=torch.rand(6), threshold=torch.rand(6), learn_threshold=True, learn_beta=True),
        lambda: snn.Leaky(beta=0.9, graded_spikes_factor=0.5),
        lambda: snn.Leaky(beta=0.9, spike_grad=surrogate.straight_through_estimator()),
        lambda: snn.Lapicque(beta=0.9),
        lambda: snn.Lapicque(R=2.0, C=3.0, time_step=0.5),
    ],
    ids=["Leaky", "learnable", "graded", "any surrogate", "Lapicque", "Lapicque R C"],
)
def test_explicit_membranes(node: Callable[[], nn.Module], patched: bool) -> None:
    net, x = Explicit(node()), torch.rand(T, 3, 4)
    if patched:
        snn_ext.patch(net, imp=True, example_input=x)
    before = fingerprint(net)
    found = record(net, x)
    assert fingerprint(net) == before
    spikes, membranes = net(x)
    assert torch.equal(found.output[0], spikes)
    assert torch.equal(found["node"].spikes, spikes)
    assert torch.equal(found["node"].v, membranes)


@pytest.mark.parametrize(
    "node",
    [
        snn.Synaptic(alpha=0.9, beta=0.8, init_hidden=True),
        snn.Leaky(beta=0.9, inhibition=True, init_hidden=True),
        snn.Leaky(beta=0.9, reset_delay=False, init_hidden=True),
        snn.RLeaky(beta=0.9, linear_features=4, init_hidden=True),
        snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True),
        snn.Lapicque(beta=0.9, reset_mechanism="zero", init_hidden=True),
    ],
    ids=["Synaptic", "inhibition", "same step", "recurrent", "Alpha", "charges twice"],
)
def test_other_neurons_are_skipped(node: nn.Module) -> None:
    net = nn.Sequential(node, snn.Leaky(beta=0.9, init_hidden=True))
    found = record(net, torch.rand(3, 5, 4), per_step=True)
    assert list(found) == ["1"]
    assert "equations" in found.skipped["0"]


@pytest.mark.parametrize("start", ["init_leaky", "zeros", "reset_mem"])
def test_a_model_recorded_twice(start: str) -> None:
    net, x = T5(12, 16, 5, T, start), torch.rand(4, 12) * 5
    snn_ext.patch(net, imp=IMP(init=0.8))
    first, second = record(net, x), record(net, x)
    assert torch.equal(first["lif2"].v, second["lif2"].v)
    spikes, membranes = net(x)
    assert torch.equal(first.output[0], spikes)
    assert torch.equal(second["lif2"].v, membranes)


def test_half_inputs_are_recorded_in_float32() -> None:
    net, x = one("subtract", hidden=True).half(), (torch.rand(T, 5, 4) * 3).half()
    snn_ext.patch(net, imp=True, example_input=x[0])
    found = record(net, x, per_step=True)["1"]
    assert found.v.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(found.v, torch.stack([net(x_t)[1] for x_t in x]))
