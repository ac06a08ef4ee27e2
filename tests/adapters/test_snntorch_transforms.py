"""Transforms of whole nets: what runs on a stock snnTorch net runs, with V0, on a patched one.

snnTorch's own surrogates refuse torch.func; with ``surrogate_disable=True`` a stock net takes part in
per-sample gradients, forward derivatives and ensembles.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import snn_ext
from tests.adapters.snntorch_nets import private_instances


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


class Net(nn.Module):
    """The class loop, with explicit states."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(3, 4), snn.Leaky(0.5, surrogate_disable=True)

    def forward(self, x: Tensor) -> Tensor:
        mem, steps = torch.zeros(x.shape[0], 4), []
        for _ in range(3):
            _, mem = self.lif(self.fc(x), mem)
            steps.append(mem)
        return torch.stack(steps)


def _net(patched: bool) -> nn.Module:
    torch.manual_seed(1)
    net: nn.Module = Net()
    return snn_ext.patch(net, imp=snn_ext.IMP(init=(0.2, 0.8))) if patched else net


def _parameters(net: nn.Module) -> dict[str, Tensor]:
    return {k: p.detach() for k, p in net.named_parameters()}


def _loss(net: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    out: Tensor = functional_call(net, parameters, (x,))
    return out.square().sum()


@pytest.mark.parametrize("patched", [False, True])
def test_func_grad_equals_backward(patched: bool) -> None:
    net, x = _net(patched), torch.randn(5, 3)
    net(x).square().sum().backward()
    gradients = grad(lambda p: _loss(net, p, x))(_parameters(net))
    assert set(gradients) == {"fc.weight", "fc.bias"} | ({"lif.imp"} if patched else set())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("patched", [False, True])
def test_per_sample_gradients(patched: bool) -> None:
    net, x = _net(patched), torch.randn(5, 3)
    per_sample = vmap(grad(lambda p, one: _loss(net, p, one[None])), (None, 0))(_parameters(net), x)
    for name, gradients in per_sample.items():
        for sample, gradient in enumerate(gradients):
            net.zero_grad()
            net(x[sample : sample + 1]).square().sum().backward()
            torch.testing.assert_close(gradient, dict(net.named_parameters())[name].grad)


@pytest.mark.parametrize("patched", [False, True])
def test_forward_derivative(patched: bool) -> None:
    net, x, direction = _net(patched).double(), torch.randn(5, 3).double(), torch.randn(5, 3).double()
    parameters = _parameters(net)
    value, slope = jvp(lambda x_: functional_call(net, parameters, (x_,)), (x,), (direction,))
    torch.testing.assert_close(value, net(x).detach())
    step = 1e-6
    numeric = (net(x + step * direction) - net(x - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, numeric.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patched", [False, True])
def test_ensembles_of_one_architecture(patched: bool) -> None:
    nets = [_net(patched) for _ in range(3)]
    for index, net in enumerate(nets):
        for parameter in net.parameters():
            parameter.data += index / 10
    x = torch.randn(5, 3)
    stacked, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0])
    outputs = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(stacked, buffers)
    for net, output in zip(nets, outputs, strict=True):
        torch.testing.assert_close(output, net(x))


TRACERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "jit.trace": lambda net, x: torch.jit.trace(net, x, check_trace=False),
    "make_fx": lambda net, x: make_fx(net)(x),
    "export": lambda net, x: torch.export.export(net, (x,)).module(),
}


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and says so at length
@pytest.mark.parametrize("tracer", TRACERS)
def test_traced_nets_hold_v0(tracer: str) -> None:
    net, x = _net(True).eval(), torch.randn(5, 3)
    with torch.no_grad():
        traced = TRACERS[tracer](net, x)
        again = torch.randn(5, 3)
        torch.testing.assert_close(traced(again), net(again))
        expected = _net(False)(again)
        assert not torch.allclose(traced(again), expected)


def test_shapes_without_values() -> None:
    """Fake tensors have no memory that could be compared."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert _net(True)(torch.randn(5, 3)).shape == (3, 5, 4)


def test_counted_operations_are_those_of_the_net() -> None:
    counts = []
    for patched in (False, True):
        with FlopCounterMode(display=False) as counter:
            _net(patched)(torch.randn(5, 3))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
