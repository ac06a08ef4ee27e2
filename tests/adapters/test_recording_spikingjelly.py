"""Recorded membranes are SpikingJelly's own, bit for bit, and recording changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import IMP, MPBN, TEBN, UnsupportedSiteError
from snn_ext.figures import membrane_distribution, record
from tests.adapters.spikingjelly_nets import functional, layer, memopt, neuron, surrogate
from tests.traces import fingerprint

T = 5
NODES: dict[str, Callable[[], nn.Module]] = {
    "IF": neuron.IFNode,
    "IF soft": lambda: neuron.IFNode(v_reset=None, v_threshold=0.8),
    "LIF": lambda: neuron.LIFNode(v_reset=0.1),
    "LIF direct": lambda: neuron.LIFNode(tau=4.0, decay_input=False, v_reset=None),
    "PLIF": neuron.ParametricLIFNode,
}
METHODS: dict[str, dict[str, Any]] = {
    "unpatched": {},
    "IMP": {"imp": IMP(init=(-0.5, 0.9))},
    "MPBN": {"imp": True, "mpbn": MPBN(carry="normalised")},
    "BNTT": {"imp": True, "mpbn": True, "bntt": True},
    "TEBN": {"tebn": TEBN(stats="step")},
}


def net_of(node: Callable[[], nn.Module], mode: str, methods: dict[str, Any], x: Tensor) -> nn.Sequential:
    net = nn.Sequential(layer.Linear(4, 6), node(), layer.Linear(6, 3), node())
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    functional.set_step_mode(net, mode)
    if methods:
        snn_ext.patch(net, timesteps=T, example_input=x if mode == "m" else x[0], **methods)
    return net


def played(net: nn.Module, x: Tensor, mode: str) -> Tensor:
    return net(x) if mode == "m" else torch.stack([net(x_t) for x_t in x])


def own_membranes(net: nn.Module, x: Tensor, mode: str) -> dict[str, Tensor]:
    """What the framework itself keeps: `v_seq`, or v after every step."""
    net = copy.deepcopy(net)
    nodes = {path: m for path, m in net.named_modules() if isinstance(m, neuron.BaseNode)}
    if mode == "m":
        for node in nodes.values():
            node.store_v_seq = True
        net(x)
        return {path: node.v_seq for path, node in nodes.items()}
    kept: dict[str, list[Tensor]] = {path: [] for path in nodes}
    for x_t in x:
        net(x_t)
        for path, node in nodes.items():
            kept[path].append(node.v.clone())
    return {path: torch.stack(vs) for path, vs in kept.items()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("mode", ["m", "s"])
def test_membranes_are_the_frameworks_own(mode: str, node: str, methods: str, training: bool) -> None:
    x = torch.rand(T, 4, 4) * 3 - 0.5
    net = net_of(NODES[node], mode, METHODS[methods], x).train(training)
    x.requires_grad_()
    before = fingerprint(net)
    found = record(net, x, per_step=mode == "s")
    assert fingerprint(net) == before
    with torch.no_grad():
        own = own_membranes(net, x, mode)
    output = found.output if mode == "m" else torch.stack(found.output)
    assert torch.equal(output, played(net, x, mode).detach())
    assert torch.equal(output, found["3"].spikes)
    assert found["1"].spikes.any()
    for path, v in own.items():
        site = found[path]
        assert torch.equal(site.v, v)
        decided = site.h if site.normalised is None else site.normalised
        assert (site.normalised is not None) == ("mpbn" in METHODS[methods])
        assert torch.equal(site.spikes, (decided >= site.threshold).float())
        carried = site.h if methods != "MPBN" else decided
        reset = net[1].v_reset
        s = site.spikes
        after = carried - site.threshold * s if reset is None else carried * (1 - s) + reset * s
        torch.testing.assert_close(site.v, after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["m", "s"])
def test_charged_membranes_are_the_equation(mode: str) -> None:
    """H of SpikingJelly's documentation, in double precision; without V0 it differs."""
    x = torch.rand(T, 4, 4) * 3
    net = net_of(neuron.LIFNode, mode, {"imp": IMP(init=(-0.5, 0.9))}, x)
    site = record(net, x, per_step=mode == "s", include="1")["1"]
    current = (
        torch.stack([net[0](x_t) for x_t in x]).detach().double()
        if mode == "s"
        else net[0](x).detach().double()
    )
    v0 = net[1].imp.detach().double().expand(1, 4, 6)
    last = torch.cat([v0, site.v[:-1].double()])
    torch.testing.assert_close(site.h.double(), last + (current - last) / 2, rtol=0, atol=1e-6)
    assert (site.h[0] - current[0] / 2).abs().max() > 0.1, "V0 is in it"


@pytest.mark.parametrize("backend", ["host", "torch", "framework"])
def test_every_backend_is_recorded_alike(backend: str) -> None:
    x = torch.rand(T, 4, 4) * 3
    net = net_of(neuron.LIFNode, "m", {"imp": True}, x)
    reference = record(net, x)
    if backend == "host" and not any(b.name == "host" and b.available for b in snn_ext.backends()):
        pytest.skip("no compiler")
    with snn_ext.use_backend(backend):
        found = record(net, x)
        assert torch.equal(found.output, net(x))
    assert torch.equal(found["1"].v, reference["1"].v)


def test_folded_norms_are_recorded() -> None:
    x = torch.rand(T, 4, 4) * 3
    net = net_of(neuron.LIFNode, "m", {"imp": True, "mpbn": True}, x)
    net(x)
    snn_ext.reset(net)
    snn_ext.fold(net.eval())
    found = record(net, x)
    assert found["1"].normalised is None, "it is in the thresholds"
    assert torch.equal(found["1"].v, own_membranes(net, x, "m")["1"])
    assert torch.equal(found.output, net(x))


def test_a_sequence_goes_on_from_the_state() -> None:
    """A second recording without a reset goes on, and so would the model; with a reset it starts anew."""
    x = torch.rand(2 * T, 4, 4) * 3
    net = net_of(neuron.LIFNode, "m", {"imp": IMP(init=0.9)}, x)
    whole = record(net, x)
    net(x[:T])
    rest = record(net, x[T:])
    assert torch.equal(rest["1"].v, whole["1"].v[T:])
    assert torch.equal(record(net, x[T:])["1"].v, rest["1"].v), "recording it twice is the same"
    snn_ext.reset(net)
    assert not torch.equal(record(net, x[T:])["1"].v, rest["1"].v)


@pytest.mark.parametrize("methods", METHODS)
def test_another_batch_size_is_a_new_sequence(methods: str) -> None:
    x = torch.rand(T, 7, 4) * 3
    net = net_of(neuron.LIFNode, "m", METHODS[methods], x)
    with torch.no_grad():
        net(x[:, :4])
    found = record(net, x)
    assert torch.equal(found["1"].v, own_membranes(net, x, "m")["1"])
    assert torch.equal(found.output, net(x))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_other_precisions(patched: bool, dtype: torch.dtype, mode: str) -> None:
    x = torch.rand(T, 4, 4) * 3
    net = net_of(neuron.LIFNode, mode, {"imp": True} if patched else {}, x).to(dtype)
    x = x.to(dtype)
    found = record(net, x, per_step=mode == "s")
    assert torch.equal(found["1"].v, own_membranes(net, x, mode)["1"])
    assert found["1"].v.dtype == (torch.float32 if patched and dtype != torch.float64 else dtype)
    with torch.no_grad():
        again = played(net, x, mode)
    assert torch.equal(found["3"].spikes, again)


def test_autocast_is_recorded_as_it_runs() -> None:
    x = torch.rand(T, 4, 4) * 3
    net = net_of(neuron.LIFNode, "m", {"imp": True, "mpbn": True}, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = record(net, x)
        assert torch.equal(found.output, net(x))


def test_any_surrogate_will_do() -> None:
    x = torch.rand(T, 4, 4) * 3
    net = net_of(lambda: neuron.LIFNode(surrogate_function=surrogate.Erf()), "m", {}, x)
    assert torch.equal(record(net, x)["1"].v, own_membranes(net, x, "m")["1"])


class Doubled(neuron.LIFNode):
    """What comes out of it are not its spikes."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * super().forward(x, *args, **kwargs)


def test_neurons_with_other_steps_are_skipped() -> None:
    net = nn.Sequential(neuron.QIFNode(), neuron.IzhikevichNode(), Doubled(), neuron.IFNode())
    functional.set_step_mode(net, "m")
    found = record(net, torch.rand(T, 2, 3) * 3)
    assert list(found) == ["3"]
    assert set(found.skipped) == {"0", "1", "2"}
    with pytest.raises(UnsupportedSiteError, match="equations"):
        record(net, torch.rand(T, 2, 3), include="0")


def test_containers_and_tied_neurons() -> None:
    """Time folded into the batch, called T times by a container, and one node in two places."""
    node = neuron.LIFNode()
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Linear(4, 4), neuron.IFNode()),
        layer.MultiStepContainer(nn.Linear(4, 4), neuron.LIFNode()),
        neuron.IFNode(step_mode="m"),
        layer.MultiStepContainer(node, nn.Linear(4, 4), node),
    )
    x = torch.rand(T, 3, 4) * 4
    snn_ext.patch(net, imp=True, include=["1.*", "2"], example_input=x)
    before = fingerprint(net)
    found = record(net, x)
    assert fingerprint(net) == before
    assert torch.equal(found.output, net(x))
    assert found["0.1"].spikes.shape == (1, T * 3, 4), "as it sees it: one step"
    assert (found["1.1"].spikes.shape, found["1.1"].calls) == ((T, 3, 4), T)
    assert found["2"].calls == 1
    assert (found["3.0"].calls, found["3.0"].paths) == (2 * T, ("3.0", "3.2"))
    assert torch.equal(found["3.2"].spikes[1::2], found.output)
    assert torch.equal(found["1.1"].v[-1], net[1][1].v)


def test_memory_optimised_networks_run_as_ever() -> None:
    """Neurons that are run past all hooks are skipped, with a word about it."""
    x = torch.rand(T, 3, 4) * 3
    net = net_of(neuron.IFNode, "m", {"imp": True}, x)
    net[1] = memopt.checkpoint_module(net[1])
    before = fingerprint(net)
    found = record(net, x)
    assert fingerprint(net) == before
    assert torch.equal(found.output, net(x))
    assert "3" in found
    inside = next(path for path in {*found, *found.skipped} if path.startswith("1"))
    assert inside in found or "past all hooks" in found.skipped[inside]


def test_distributions_before_and_after_the_norm() -> None:
    x = torch.rand(T, 64, 4) * 3
    net = net_of(neuron.LIFNode, "m", {"mpbn": True}, x).train()
    found = membrane_distribution(net, x)["1"]
    assert found.after is not None
    assert found.before.mean.shape == (T,)
    assert abs(found.after.mean).max() < 1e-5, "normalised by the statistics of the batch, every step"
    assert abs(found.after.std - 1).max() < 1e-2
    assert abs(found.before.mean).max() > 0.05
