"""Every neuron class of SpikingJelly either takes V0, with an effect and a gradient, or is refused with a
reason. Classes are found by introspection, so that one nobody thought of is judged by the same rule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import (
    CHANNELS,
    ONE_MODE,
    SIDE,
    TAKES_V0,
    TAKING,
    TIMESTEPS,
    every_neuron_class,
    make_neuron,
    neuron,
    steps,
)

CLASSES = every_neuron_class()
SHAPE = (CHANNELS, SIDE, SIDE)
# Judged by their subclasses: on their own they raise NotImplementedError or have no step at all.
ABSTRACT = {
    "AdaptBaseNode",
    "BaseNode",
    "ILCBaseNode",
    "MPBNBaseNode",
    "NoisyBaseNode",
    "NoisyILCBaseNode",
    "NoisyNonSpikingBaseNode",
    "NonSpikingBaseNode",
    "SimpleBaseNode",
}
REFUSED = [cls for cls in CLASSES if cls.__name__ not in TAKES_V0 | ABSTRACT]


def _input() -> Tensor:
    return (torch.rand(TIMESTEPS, 2, *SHAPE) * 2).requires_grad_()


def _patched(node: nn.Module, mode: str, option: snn_ext.IMP) -> nn.Module:
    x = torch.zeros(TIMESTEPS, 2, *SHAPE)
    return snn_ext.patch(node, imp=option, example_input=x if mode == "m" else x[0])


def _run(node: nn.Module, x: Tensor, mode: str) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Spikes, last membrane, and the gradients of the input and of the node's own parameters."""
    own = [p for name, p in node.named_parameters() if name != "imp"]
    spikes = steps(node, x, mode)
    weights = torch.linspace(-1, 1, spikes.numel()).view_as(spikes)
    grads = torch.autograd.grad((spikes * weights).sum() + node.v.sum(), [x, *own], allow_unused=True)
    return spikes, node.v, list(grads)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def test_every_class_of_the_framework_is_judged() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert names >= TAKES_V0 | ABSTRACT
    assert len(CLASSES) >= 45  # the search itself must not silently find less


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize(("cls", "mode"), TAKING)
def test_neutral_start_changes_nothing(cls: type[nn.Module], mode: str) -> None:
    plain = make_neuron(cls, mode)
    patched = _patched(copy.deepcopy(plain), mode, snn_ext.IMP(init="rest"))
    x = _input()
    spikes, v, grads = _run(plain, x, mode)
    spikes2, v2, grads2 = _run(patched, x, mode)
    assert spikes.any()
    assert torch.equal(spikes, spikes2)
    assert torch.equal(v, v2)
    assert all(map(_same, grads, grads2))
    assert all(map(torch.equal, plain.buffers(), patched.buffers()))  # statistics of MPBN nodes
    assert patched.imp.grad is None  # autograd.grad was not asked for it


@pytest.mark.parametrize(("cls", "mode"), TAKING)
def test_v0_has_a_gradient(cls: type[nn.Module], mode: str) -> None:
    node = _patched(make_neuron(cls, mode), mode, snn_ext.IMP())
    steps(node, _input(), mode).sum().backward()
    assert node.imp.grad is not None
    assert node.imp.grad.shape == SHAPE
    assert node.imp.grad.abs().sum() > 0


@pytest.mark.parametrize(("cls", "mode"), TAKING)
def test_v0_acts_on_the_first_step_and_on_the_output(cls: type[nn.Module], mode: str) -> None:
    node = _patched(make_neuron(cls, mode), mode, snn_ext.IMP(init="rest"))
    x = _input().detach()
    shift = torch.rand(SHAPE) * 6 - 3
    first, outputs = [], []
    for start in (0.0, shift):
        with torch.no_grad():
            node.imp.add_(start)
        if cls.__name__ not in ONE_MODE:  # (GatedLIFNode has a fixed number of steps)
            snn_ext.reset(node)
            steps(node, x[:1], mode)
            first.append(node.v.detach().clone())
        snn_ext.reset(node)
        outputs.append(steps(node, x, mode).detach())
    assert cls.__name__ in ONE_MODE or not torch.equal(*first)
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_other_classes_are_refused_with_a_reason(cls: type[nn.Module], mode: str) -> None:
    try:
        node = make_neuron(cls, mode)
    except ValueError:  # some know 'm' only
        node = make_neuron(cls, "m")
    model = nn.Sequential(neuron.IFNode(), node)
    before = dict(node.__dict__)

    with pytest.raises(snn_ext.UnsupportedSiteError) as caught:
        snn_ext.patch(model, imp=snn_ext.IMP(shape="layer"), include="1")
    assert caught.value.why
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")

    snn_ext.patch(model, imp=snn_ext.IMP(shape="layer"))
    taken, skipped = snn_ext.plan(model, imp=snn_ext.IMP(shape="layer")).decisions
    assert "imp" in taken.methods
    assert not skipped.methods
    assert skipped.reason == caught.value.why
    assert type(node) is cls
    assert node.__dict__ == before
    assert [name for name, _ in model.named_parameters() if name.endswith("imp")] == ["0.imp"]


def test_a_wrong_start_would_be_noticed() -> None:
    """The neutral check must fail for a start that is off by little."""
    plain = make_neuron(neuron.LIFNode)
    patched = _patched(copy.deepcopy(plain), "m", snn_ext.IMP(init=1e-3))
    x = _input()
    _, v, grads = _run(plain, x, "m")
    _, v2, grads2 = _run(patched, x, "m")
    assert not torch.equal(v, v2)
    assert not torch.equal(grads[0], grads2[0])
