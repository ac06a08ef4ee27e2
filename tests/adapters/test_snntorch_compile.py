"""torch.compile without a graph break, which is a promise of snnTorch: patched nets keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import snn_ext
from snn_ext_snntorch import neurons
from tests.adapters.snntorch_nets import T5, private_instances, t6s
from tests.adapters.test_snntorch_equations import _always_adds


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    torch._dynamo.reset()
    with private_instances():
        yield


def _t5(start: str) -> nn.Module:
    torch.manual_seed(2)
    net = T5(8, 12, 5, 3, start)
    with torch.no_grad():
        net.fc2.weight.mul_(3)
    return snn_ext.patch(net, imp=snn_ext.IMP(init=(-0.5, 1.5)), example_input=torch.randn(3, 8))


def _results(net: nn.Module, run: Callable[[Tensor], Any], sizes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(7)
    results: list[Tensor] = []
    for size in sizes:
        net.zero_grad()
        spikes, membranes = run(torch.randn(size, 8) * 5)
        (membranes.square().sum() + spikes.sum()).backward()
        results += [spikes.detach(), membranes.detach(), *(p.grad.clone() for p in net.parameters())]
    return results


@pytest.mark.parametrize(
    ("start", "backend", "sizes"),
    [
        ("init_leaky", "aot_eager", (4, 4)),
        ("zeros", "aot_eager", (4, 4)),
        ("init_leaky", "eager", (4, 3)),  # init_leaky() returns the batch size of the call before
        ("reset_mem", "eager", (4, 4)),
    ],
)
def test_compiled_t5_equals_eager_without_a_graph_break(
    start: str, backend: str, sizes: tuple[int, ...]
) -> None:
    net = _t5(start)
    eager = _results(net, net, sizes)
    compiled_net = _t5(start)
    compiled = _results(compiled_net, torch.compile(compiled_net, fullgraph=True, backend=backend), sizes)
    assert eager[0].sum() > 0
    assert sum(k.endswith("imp") for k, _ in net.named_parameters()) == 2
    assert torch.equal(eager[0], compiled[0])
    assert torch.equal(eager[1], compiled[1])
    for ours, theirs in zip(eager, compiled, strict=True):
        # The same operations; AOT autograd may sum gradients in another order.
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_wrong_twin_an_extra_v0_is_seen_by_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _t5("zeros")
    eager = _results(net, net, (4,))
    monkeypatch.setattr(neurons.IMP, "mem_reset", _always_adds)
    wrong_net = _t5("zeros")
    wrong = _results(wrong_net, torch.compile(wrong_net, fullgraph=True, backend="eager"), (4,))
    assert not torch.equal(eager[1], wrong[1])


class _Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = snn.Leaky(0.5, threshold=100.0)

    def forward(self, x: Tensor, mem: Tensor) -> Tensor:
        out: Tensor = self.lif(x, mem)[1]
        return out


def test_a_compiled_step_in_an_outer_loop_knows_starts_from_continuations() -> None:
    """The mark of the membrane leaves and re-enters the compiled graph."""
    step = _Step()
    snn_ext.patch(step, imp=snn_ext.IMP(init=1.0, shape=(3,)))
    for run in (step, torch.compile(step, fullgraph=True, backend="eager")):
        seen = []
        for _ in range(2):
            mem = torch.zeros(2, 3)
            for _ in range(3):
                mem = run(torch.zeros(2, 3), mem)
                seen.append(float(mem.detach()[0, 0]))
        assert seen == [0.5, 0.25, 0.125] * 2


def test_a_compiled_sequential_with_hidden_state_starts_at_every_reset() -> None:
    net = nn.Sequential(nn.Flatten(), snn.Leaky(0.5, threshold=100.0, init_hidden=True, output=True))
    snn_ext.patch(net, imp=snn_ext.IMP(init=1.0, shape=(3,)))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    seen = []
    for _ in range(2):
        utils.reset(net)
        seen += [float(compiled(torch.zeros(2, 3))[1].detach()[0, 0]) for _ in range(3)]
    assert seen == [0.5, 0.25, 0.125] * 2


class _Detaching(nn.Module):
    def __init__(self, carry: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lif, self.carry = snn.Leaky(0.5, threshold=100.0), carry

    def forward(self, x: Tensor) -> Tensor:
        mem, steps = self.lif.init_leaky(), []
        for t in range(3):
            _, mem = self.lif(x, self.carry(mem) if t else mem)
            steps.append(mem)
        return torch.stack(steps)


def test_a_detached_state_inside_a_compiled_loop_goes_on_when_declared() -> None:
    net = _Detaching(lambda mem: snn_ext.carried(mem.detach()))
    snn_ext.patch(net, imp=snn_ext.IMP(init=1.0, shape=(3,)))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for run in (net, compiled):
        assert run(torch.zeros(2, 3))[:, 0, 0].tolist() == [0.5, 0.25, 0.125]


def test_a_state_detached_in_place_inside_a_compiled_loop_goes_on() -> None:
    net = _Detaching(lambda mem: mem.detach_())
    snn_ext.patch(net, imp=snn_ext.IMP(init=1.0, shape=(3,)))
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for run in (net, compiled):
        assert run(torch.zeros(2, 3))[:, 0, 0].tolist() == [0.5, 0.25, 0.125]


def test_a_compiled_net_of_one_step_trains_like_eager() -> None:
    """T6s compiled, the loop outside: gradients of V0 through several calls of one graph."""
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(3)
        net = t6s(2, 3, 16)
        snn_ext.patch(net, imp=snn_ext.IMP(init=(-0.2, 0.6)), example_input=torch.zeros(2, 1, 16, 16))
        call = torch.compile(net, fullgraph=True, backend="eager") if compiled else net
        utils.reset(net)
        x = torch.randn(3, 2, 1, 16, 16) * 8
        torch.stack([call(step)[1] for step in x]).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    assert sum(g.abs().sum() for g in gradients[0]) > 0
