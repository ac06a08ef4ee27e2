"""Neurons inside SpikingJelly's containers: some see one step a call, some see time merged into the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import Time
from tests.adapters.spikingjelly_nets import TIMESTEPS, functional, layer, neuron

FEATURES = 6


def _linear() -> nn.Linear:
    return nn.Linear(FEATURES, FEATURES)


class NamedTwice(nn.Module):
    """Keeps a handle on the neuron before it disappears in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.spikes = neuron.LIFNode()
        self.block = layer.SeqToANNContainer(_linear(), self.spikes)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


MERGING: dict[str, Callable[[], nn.Module]] = {
    "SeqToANNContainer": lambda: nn.Sequential(layer.SeqToANNContainer(_linear(), neuron.LIFNode())),
    "as the root": lambda: layer.SeqToANNContainer(_linear(), neuron.LIFNode()),
    "deeper inside": lambda: nn.Sequential(
        layer.SeqToANNContainer(nn.Sequential(_linear(), nn.Sequential(neuron.LIFNode())))
    ),
    "named outside first": NamedTwice,
    "TLastSeqToANNContainer": lambda: nn.Sequential(
        layer.TLastSeqToANNContainer(_linear(), neuron.LIFNode())
    ),
    "StepModeContainer, stateless": lambda: nn.Sequential(
        layer.StepModeContainer(False, "m", _linear(), neuron.LIFNode())
    ),
}


@pytest.mark.parametrize("name", MERGING)
def test_neurons_without_time_are_refused(name: str) -> None:
    """Their one call sees [T*N, *]: V0 would act in every step."""
    net = MERGING[name]()
    site = next(path for path, m in net.named_modules() if isinstance(m, neuron.LIFNode))
    before = {path: type(m) for path, m in net.named_modules()}
    with pytest.raises(snn_ext.UnsupportedSiteError) as caught:
        snn_ext.patch(net, imp=snn_ext.IMP(shape="layer"), include=site)
    assert "T*B" in caught.value.why
    assert {path: type(m) for path, m in net.named_modules()} == before


@pytest.mark.parametrize("name", MERGING)
def test_neurons_without_time_are_skipped_with_a_reason(name: str) -> None:
    net = nn.ModuleDict({"free": neuron.LIFNode(), "net": MERGING[name]()})
    plan = snn_ext.plan(net, imp=snn_ext.IMP(shape="layer"))
    free, merged = plan.decisions
    assert "imp" in free.methods
    assert not merged.methods
    assert "T*B" in merged.reason
    assert merged.site.spec.time is Time.MERGED
    assert "1 of 2 sites" in str(plan)


def _multi_step() -> nn.Module:
    return layer.MultiStepContainer(_linear(), neuron.LIFNode())


def _stateful() -> nn.Module:
    return layer.StepModeContainer(True, "m", _linear(), neuron.LIFNode())


def _nested() -> nn.Module:
    return nn.Sequential(layer.SeqToANNContainer(_linear()), layer.MultiStepContainer(neuron.LIFNode()))


def _element_wise() -> nn.Module:
    return layer.ElementWiseRecurrentContainer(neuron.LIFNode(), torch.add, step_mode="m")


def _linear_recurrent() -> nn.Module:
    return layer.LinearRecurrentContainer(neuron.LIFNode(), FEATURES, FEATURES, step_mode="m")


STEPPING = [_multi_step, _stateful, _nested, _element_wise, _linear_recurrent]


@pytest.mark.parametrize("make", STEPPING, ids=lambda make: make.__name__.strip("_"))
def test_neurons_called_once_a_step_take_v0(make: Callable[[], nn.Module]) -> None:
    plain = make()
    x = torch.rand(TIMESTEPS, 3, FEATURES) * 4
    patched = snn_ext.patch(copy.deepcopy(plain), imp=snn_ext.IMP(init="rest"), example_input=x)
    (node,) = [m for m in patched.modules() if isinstance(m, neuron.LIFNode)]
    assert node.imp.shape == (FEATURES,)
    y, expected = patched(x), plain(x)
    assert expected.any()
    assert torch.equal(y, expected)
    y.sum().backward()
    assert node.imp.grad.any()
    with torch.no_grad():
        node.imp.fill_(0.9)
    functional.reset_net(patched)
    moved = patched(x)
    assert not torch.equal(moved, expected)
    functional.reset_net(patched)
    assert torch.equal(patched(x), moved)


def test_a_container_and_a_multi_step_neuron_agree() -> None:
    x = torch.rand(TIMESTEPS, 3, FEATURES) * 2
    inside = layer.MultiStepContainer(neuron.LIFNode())
    whole = neuron.LIFNode(step_mode="m")
    for net in (inside, whole):
        snn_ext.patch(net, imp=snn_ext.IMP(init=0.6), example_input=x)
    assert torch.equal(inside(x), whole(x))
    assert torch.equal(inside[0].v, whole.v)


def test_time_last_containers_step_too() -> None:
    x = torch.rand(3, FEATURES, TIMESTEPS) * 2
    inside = layer.TLastMultiStepContainer(neuron.LIFNode())
    whole = neuron.LIFNode(step_mode="m")
    snn_ext.patch(inside, imp=snn_ext.IMP(init=0.6), example_input=x)
    snn_ext.patch(whole, imp=snn_ext.IMP(init=0.6), example_input=x.movedim(-1, 0))
    assert inside[0].imp.shape == (FEATURES,)
    assert torch.equal(inside(x).movedim(-1, 0), whole(x.movedim(-1, 0)))


def test_one_neuron_for_two_widths_needs_one_value() -> None:
    """Works in SpikingJelly; one V0 per neuron cannot serve both places."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sn = neuron.IFNode(step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            return self.sn(torch.cat([self.sn(x), x], -1))

    x = torch.rand(TIMESTEPS, 3, FEATURES)
    net = Shared()
    with pytest.raises(snn_ext.ShapeUnknownError, match="different features") as caught:
        snn_ext.patch(net, imp=True, example_input=x)
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")
    assert type(net.sn) is neuron.IFNode
    snn_ext.patch(net, imp=snn_ext.IMP(shape="layer"), example_input=x)
    net(x).sum().backward()
    assert net.sn.imp.grad.any()


def test_a_tied_neuron_has_one_v0() -> None:
    node = neuron.IFNode(step_mode="m")
    net = nn.Sequential(_linear(), node, _linear(), node)
    snn_ext.patch(net, imp=True, example_input=torch.rand(TIMESTEPS, 3, FEATURES))
    assert net[1] is net[3] is node
    assert sum(name.endswith("imp") for name, _ in net.named_parameters()) == 1
    assert {"1.imp", "3.imp"} <= set(net.state_dict())
    assert net.state_dict()["1.imp"].data_ptr() == net.state_dict()["3.imp"].data_ptr()
