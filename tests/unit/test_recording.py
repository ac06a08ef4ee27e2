"""Recording membranes, without any framework: toy neurons, and our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import (
    AdapterError,
    Dynamics,
    Leak,
    NeuronSpec,
    NothingMatchedError,
    OptionError,
    ShapeUnknownError,
    Time,
    UnsupportedSiteError,
    hookimpl,
)
from snn_ext.figures import membrane_distribution, record
from snn_ext.figures.replay import Membranes, difference, plan, replay
from snn_ext.neurons import SpikingNeuron
from tests.toy import LeadingNeuron, Odd, StepNeuron, ToyAdapter, leading_net, registered
from tests.traces import fingerprint


def by_hand(x: Tensor, v0: Tensor | float, *, decay: float, theta: float = 1.0, reset: str = "soft") -> Any:
    """H, S and V of a leaky neuron [T, B, N], written out."""
    v, found = torch.zeros_like(x[0]) + v0, ([], [], [])
    for x_t in x:
        h = decay * v + x_t
        s = (h >= theta).float()
        v = h - theta * s if reset == "soft" else torch.where(s > 0, torch.zeros_like(h), h)
        for part, value in zip(found, (h, s, v), strict=True):
            part.append(value)
    return [torch.stack(part) for part in found]


def test_whole_sequences_from_v0() -> None:
    net, x = leading_net(), torch.rand(5, 3, 4)
    snn_ext.patch(net, imp=True, example_input=x)
    before = fingerprint(net)
    found = record(net, x)
    assert fingerprint(net) == before
    assert torch.equal(found.output, net(x))
    assert not found.output.requires_grad
    assert list(found) == ["1", "3"]
    h, s, v = by_hand(net[0](x).detach(), net[1].imp.detach(), decay=0.5)
    for given, wanted in ((found["1"].h, h), (found["1"].spikes, s), (found["1"].v, v)):
        assert torch.equal(given, wanted)
    assert found["1"].spikes.any()
    _, _, from_zero = by_hand(net[0](x).detach(), 0.0, decay=0.5)
    assert not torch.equal(found["1"].v, from_zero), "the twin without V0"
    assert found["1"].normalised is None
    assert (found["1"].kind, found["1"].threshold, found["1"].calls) == ("LeadingNeuron", 1.0, 1)
    assert "1 (LeadingNeuron): [5, 3, 6]" in str(found)


@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
def test_steps_continue(patched: bool) -> None:
    """One step a call, of a new object that an adapter put in the place of a neuron; states are kept."""
    net, x = nn.Sequential(nn.Linear(4, 3), StepNeuron()), torch.rand(6, 2, 4) * 4
    if patched:
        snn_ext.patch(net, imp=snn_ext.IMP(init=0.5))
    h, s, v = by_hand(net[0](x).detach(), 0.5 if patched else 0.0, decay=0.5)
    net(x[0])
    net(x[1])
    before, state = fingerprint(net), net[1].v
    found = record(net, x[2:], per_step=True)
    assert fingerprint(net) == before
    assert net[1].v is state
    outputs = [net(x_t) for x_t in x[2:]]
    assert torch.equal(torch.stack(found.output), torch.stack(outputs))
    for given, wanted in ((found["1"].h, h), (found["1"].spikes, s), (found["1"].v, v)):
        torch.testing.assert_close(given, wanted[2:], rtol=0, atol=1e-6)  # another matrix product
    assert torch.equal(found["1"].spikes, torch.stack(outputs))
    assert found["1"].calls == 4
    assert found["1"].spikes.shape == (4, 2, 3)


@pytest.mark.parametrize("time", [Time.LEADING, Time.PER_CALL], ids=lambda t: t.name)
@pytest.mark.parametrize(
    "dynamics",
    [
        Dynamics(decay=0.5, reset="soft"),
        Dynamics(decay=0.9, reset="hard", rest=-0.1),
        Dynamics(leak=Leak(2.0), reset="soft"),
        Dynamics(decay=0.8, reset="soft", timing="delayed", fires_at_equality=False),
        Dynamics(decay=0.8, reset="hard", timing="delayed", threshold=torch.tensor([0.5, 1.0, 1.5])),
        Dynamics(reset="none"),
    ],
    ids=["soft", "hard", "leak", "delayed soft", "delayed hard", "none"],
)
def test_our_own_neurons(dynamics: Dynamics, time: Time) -> None:
    node = SpikingNeuron(dynamics, imp=snn_ext.IMP(), features=(3,), time=time)
    net, x = nn.Sequential(nn.Linear(4, 3), node), torch.rand(6, 2, 4) * 5
    before = fingerprint(net)
    found = record(net, x, per_step=time is Time.PER_CALL)
    assert fingerprint(net) == before
    outputs = torch.stack([net(x_t) for x_t in x]) if time is Time.PER_CALL else net(x)
    site = found["1"]
    assert torch.equal(site.spikes, outputs)
    assert torch.equal(site.v[-1], node.v)
    assert torch.equal(site.spikes, (site.h - site.threshold > 0).float()), "no membrane at the threshold"
    delayed = dynamics.timing == "delayed"
    assert torch.equal(site.v, site.h) == (delayed or dynamics.reset == "none")


def test_tied_neurons_are_recorded_on() -> None:
    node = StepNeuron()
    net = nn.Sequential(nn.Linear(4, 4), node, nn.Linear(4, 4), node)
    x = torch.rand(3, 2, 4) * 4
    found = record(net, x, per_step=True)
    assert list(found) == ["1"]
    assert found["1"].paths == ("1", "3")
    assert found["3"] is found["1"]
    assert "3" in found
    assert found["1"].calls == 6, "in the order in which it was called"
    assert torch.equal(found["1"].spikes[1::2], torch.stack(found.output))


def test_a_root_that_is_a_neuron() -> None:
    node, x = LeadingNeuron(), torch.rand(4, 2, 3) * 2
    assert torch.equal(record(node, x)[""].spikes, node(x))


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        raise KeyboardInterrupt


@pytest.mark.parametrize("training", [False, True])
def test_no_trace_after_an_exception(training: bool) -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), StepNeuron(), nn.Dropout(), Failing()).train(training)
    x = torch.rand(5, 4)
    net[1](x)
    before = fingerprint(net)
    with pytest.raises(KeyboardInterrupt):
        record(net, x)
    assert fingerprint(net) == before


def test_the_fingerprint_sees_traces() -> None:
    """The twin: without taking anything back, it does change."""
    net = nn.Sequential(nn.BatchNorm1d(4), StepNeuron())
    x = torch.rand(5, 4)
    for touch in (
        lambda: net(x),
        lambda: net.register_forward_hook(lambda *_: None),
        lambda: torch.rand(1),
        net.eval,
        lambda: net[0].weight.sum().backward(),
    ):
        before = fingerprint(net)
        touch()
        assert fingerprint(net) != before


def test_random_layers_draw_the_same() -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3), LeadingNeuron()).train()
    x = torch.rand(4, 3, 4) * 5
    torch.manual_seed(5)
    found = record(net, x).output
    assert torch.equal(found, net(x))


class Liar(StepNeuron):
    """Says that it is a StepNeuron, and is not."""

    def __init__(self, lie: str) -> None:
        super().__init__()
        self.lie = lie

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.lie == "membrane":
            assert self.v is not None
            self.v = self.v - 0.01
        return 1 - y if self.lie == "spikes" else y[:1] if self.lie == "shape" else y


@pytest.mark.parametrize(
    ("lie", "why"), [("spikes", "of 6 spikes differ"), ("membrane", "membrane"), ("shape", "it gave")]
)
def test_neurons_that_do_something_else_are_an_error(lie: str, why: str) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), Liar(lie)), torch.rand(2, 4)
    before = fingerprint(net)
    with pytest.raises(UnsupportedSiteError, match=why) as caught:
        record(net, x)
    assert "1 (Liar)" in str(caught.value)
    assert fingerprint(net) == before
    assert not record(nn.Sequential(net, LeadingNeuron()), x[None], exclude="0.1", per_step=True).skipped


def test_neurons_without_known_equations_are_skipped_or_refused() -> None:
    net, x = nn.Sequential(LeadingNeuron(), Odd(), LeadingNeuron()), torch.rand(4, 2, 3)
    found = record(net, x)
    assert list(found) == ["0", "2"]
    assert "equations" in found.skipped["1"]
    assert "1: not recorded" in str(found)
    with pytest.raises(UnsupportedSiteError, match="equations"):
        record(net, x, include="1")
    with pytest.raises(NothingMatchedError, match="equations"):
        found["1"]


def test_neurons_that_are_not_called_are_skipped() -> None:
    net = leading_net()
    net.unused = LeadingNeuron()
    net.forward = lambda x: net[1](net[0](x))
    found = record(net, torch.rand(2, 2, 4))
    assert list(found) == ["1"]
    assert set(found.skipped) == {"3", "unused"}
    assert "never called" in found.skipped["unused"]


def test_one_neuron_of_several_shapes_is_skipped() -> None:
    node = LeadingNeuron()
    net = nn.Sequential(nn.Linear(4, 3), node, nn.Linear(3, 2), node)
    found = record(net, torch.rand(3, 2, 4))
    assert "different shapes" in found.skipped["1"]
    assert not found.sites


def test_selection_and_wrong_inputs_teach() -> None:
    net, x = leading_net(), torch.rand(3, 2, 4)
    assert list(record(net, x, include="3")) == ["3"]
    assert list(record(net, x, exclude=["3"])) == ["1"]
    for wrong in ({"include": "5"}, {"exclude": "5"}, {"exclude": "*"}):
        with pytest.raises(NothingMatchedError):
            record(net, x, **wrong)  # type: ignore[arg-type]
    with pytest.raises(NothingMatchedError, match="adapter"):
        record(nn.Linear(4, 3), x)
    for not_a_sequence in ([x], torch.rand(()), x[:0]):
        with pytest.raises(OptionError, match="per_step"):
            record(net, not_a_sequence, per_step=True)
    with pytest.raises(ShapeUnknownError, match="without a shape"):
        record(nn.Sequential(nn.LazyLinear(3), LeadingNeuron()), x)
    with pytest.raises(UnsupportedSiteError):
        record(nn.DataParallel(net), x)
    with pytest.raises(NothingMatchedError, match="recorded"):
        record(net, x)["nowhere"]


class Mine(nn.Module):
    """Of another framework than the toy one."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 1).float()


class Answers(ToyAdapter):
    name = "answers"

    @hookimpl
    def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | None:
        return NeuronSpec(Time.PER_CALL) if type(module) is Mine else None

    @hookimpl
    def snn_ext_call(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return "a call"


def test_an_adapter_that_answers_something_else() -> None:
    net, x = Mine(), torch.rand(3, 2)
    before = fingerprint(net)
    with registered(Answers()), pytest.raises(AdapterError, match="snn_ext_call"):
        record(net, x)
    assert fingerprint(net) == before


def test_arguments_and_keywords_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = LeadingNeuron()

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"spikes": self.node(a + b)}

    net, a, b = Two(), torch.rand(3, 2, 4), torch.rand(3, 2, 4)
    for x in ((a, b), {"a": a, "b": b}):
        found = record(net, x)
        assert torch.equal(found.output["spikes"], found["node"].spikes)


# --- distributions --------------------------------------------------------------------------------------


def test_distributions_are_those_of_numpy() -> None:
    net, x = leading_net(), torch.rand(5, 3, 4) * 2
    recording = record(net, x)
    found = membrane_distribution(net, x, bins=10)
    assert list(found) == ["1", "3"]
    for path, layer in found.items():
        h = recording[path].h.double().flatten(1).numpy()
        assert (layer.path, layer.kind, layer.threshold) == (path, "LeadingNeuron", 1.0)
        assert layer.after is None
        assert layer.before.counts.shape == (5, 10)
        assert (layer.before.counts.sum(1) == h.shape[1]).all(), "every neuron is somewhere"
        for t, step in enumerate(h):
            inside = [
                (step >= a) & (step < b)
                for a, b in zip(layer.before.edges, layer.before.edges[1:], strict=False)
            ]
            inside[-1] |= step == layer.before.edges[-1]
            assert layer.before.counts[t].tolist() == [int(i.sum()) for i in inside]
        assert np.allclose(layer.before.mean, h.mean(1), rtol=1e-12)
        assert np.allclose(layer.before.std, h.std(1), rtol=1e-12)
    again = membrane_distribution(recording, bins=10)
    assert all(np.array_equal(again[p].before.counts, found[p].before.counts) for p in found)


def test_distributions_refuse_what_they_cannot_count() -> None:
    net, x = leading_net(), torch.rand(5, 3, 4)
    for bins in (0, 2.5, True):
        with pytest.raises(OptionError, match="bins"):
            membrane_distribution(net, x, bins=bins)  # type: ignore[arg-type]
    x[0, 0, 0] = torch.inf
    with pytest.raises(OptionError, match="finite"):
        membrane_distribution(net, x)


# --- what passes for rounding ---------------------------------------------------------------------------


def membranes(margin: float, off: float = 0.0) -> tuple[Membranes, Tensor]:
    """One decision of twelve is another, so far from the threshold; and the last membrane."""
    wrong, h = torch.zeros(3, 2, 2, dtype=torch.bool), torch.full((3, 2, 2), 0.25)
    wrong[1, 0, 1] = True
    return Membranes(h, None, h, wrong, torch.full_like(h, margin)), h[-1] + off


@pytest.mark.parametrize(
    ("margin", "off", "exact", "why"),
    [
        (1e-6, 0.0, False, ""),
        (1e-6, 0.0, True, "1 of 12 spikes"),
        (1e-2, 0.0, False, "1 of 12 spikes"),
        (float("nan"), 0.0, False, "1 of 12 spikes"),
        (0.0, 1e-5, False, ""),
        (0.0, 1e-2, False, "membrane"),
        (0.0, float("nan"), False, "membrane"),
    ],
)
def test_on_cuda_decisions_may_differ_next_to_the_threshold(
    margin: float, off: float, exact: bool, why: str
) -> None:
    found, last = membranes(margin, off)
    assert why in difference(found, last, exact=exact)
    assert bool(why) == bool(difference(found, last, exact=exact))
    assert bool(difference(found, None, exact=exact)) == ("spikes" in why), "no membrane to compare with"


def test_the_neurons_own_spikes_reset_its_membrane() -> None:
    """So that one decision that rounding turned over does not change what follows."""
    x = torch.tensor([0.6, 0.6, 0.6]).view(3, 1, 1)
    node = SpikingNeuron(Dynamics(reset="soft"))
    planned = plan(node, node.call(x), whole=True)
    given = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    found = replay(node, planned, given, torch.float32)
    assert found.wrong.flatten().tolist() == [False, True, False]
    torch.testing.assert_close(found.h.flatten(), torch.tensor([0.6, 1.2, 1.8]))
    torch.testing.assert_close(found.v.flatten(), torch.tensor([0.6, 1.2, 0.8]))
    torch.testing.assert_close(found.margin.flatten(), torch.tensor([0.4, 0.2, 0.8]))
