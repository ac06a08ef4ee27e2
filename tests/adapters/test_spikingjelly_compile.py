"""`torch.compile(fullgraph=True)` of patched SpikingJelly networks equals eager, outputs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import (
    TIMESTEPS,
    base,
    conv_net,
    functional,
    neuron,
    neurons_of,
    surrogate,
)

OPTION = snn_ext.IMP(init=(-0.5, 0.9))


def _x() -> Tensor:
    return torch.rand(TIMESTEPS, 3, 2, 6, 6) * 6


def _patched(net: nn.Module) -> nn.Module:
    return snn_ext.patch(net, imp=OPTION, example_input=_x())


def _loss(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


def _assert_same_gradients(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert all(node.imp.grad.any() for node in neurons_of(a))


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("framework_step")
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("shape", ["neuron", "channel", "layer"])
def test_compiled_without_graph_breaks(backend: str, shape: str) -> None:
    x = _x()
    option = snn_ext.IMP(init=(0.2, 0.8), shape=shape, squash="sigmoid")
    net = snn_ext.patch(conv_net(), imp=option, example_input=x)
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for _ in range(2):
        y, expected = compiled(x), twin(x)
        assert torch.equal(y, expected)
        _loss(y).backward()
        _loss(expected).backward()
        functional.reset_net(net)
        functional.reset_net(twin)
    _assert_same_gradients(twin, net)


@pytest.mark.usefixtures("framework_step")
@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize(
    "make",
    [
        lambda: neuron.ParametricLIFNode(v_reset=None),
        lambda: neuron.IFNode(surrogate_function=surrogate.Rect()),
        lambda: neuron.QIFNode(),
        lambda: neuron.KLIFNode(),
    ],
    ids=["PLIF", "IF with Rect", "QIF", "KLIF"],
)
def test_other_neurons_compile_too(make: Callable[[], nn.Module]) -> None:
    x = _x()
    net = _patched(conv_net(make))
    twin = copy.deepcopy(net)
    y = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    expected = twin(x)
    assert torch.equal(y, expected)
    _loss(y).backward()
    _loss(expected).backward()
    for node, other in zip(neurons_of(net), neurons_of(twin), strict=True):
        assert torch.equal(node.imp.grad, other.imp.grad)


@pytest.mark.usefixtures("_fresh_dynamo")
def test_a_compiled_training_step_sees_the_new_v0() -> None:
    x = _x()
    net = _patched(conv_net())
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    first = compiled(x)
    functional.reset_net(net)
    with torch.no_grad():
        for node in neurons_of(net):
            node.imp.add_(torch.rand_like(node.imp) * 3)
    second = compiled(x)
    functional.reset_net(net)
    assert not torch.equal(first, second)
    assert torch.equal(second, net(x))


@pytest.mark.usefixtures("_fresh_dynamo")
def test_compiled_networks_carry_states_and_take_smaller_batches() -> None:
    net = _patched(conv_net()).eval()
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for batch in (3, 3, 2):  # fresh, carried, restarted from V0 without a reset
        x = _x()[:, :batch]
        y, expected = compiled(x), twin(x)
        assert torch.equal(y, expected)
        assert all(map(torch.equal, base.extract_memories(net), base.extract_memories(twin)))
        for model in (net, twin):
            functional.detach_net(model)
