"""Inside snntorch.backprop, which chooses spikes or membranes by the name of the loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from torch import Tensor, nn

import snn_ext
from tests.adapters.snntorch_nets import play, private_instances, t6s

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

OBJECTIVES: list[Any] = ["sdt", "tet", "tet-s", "lts", snn_ext.TET(lam=0.1)]
T = 4


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def _dense(make: Callable[..., nn.Module]) -> nn.Sequential:
    """Both neurons of one class: snntorch.backprop detaches one class only."""
    hidden, last = make(init_hidden=True), make(init_hidden=True, output=True)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 12), hidden, nn.Linear(12, 10), last)


NETS: dict[str, Callable[[], nn.Sequential]] = {
    "T6s": lambda: t6s(4, 6, 16),
    "Leaky": lambda: _dense(lambda **o: snn.Leaky(0.7, **o)),
    "Synaptic": lambda: _dense(lambda **o: snn.Synaptic(0.5, 0.7, **o)),
    "Lapicque": lambda: _dense(lambda **o: snn.Lapicque(beta=0.7, **o)),
}


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    sizes = (3, 3, 2)
    return [
        (torch.randn(T, b, 1, 16, 16, generator=generator) * 10, torch.arange(b) + batch)
        for batch, b in enumerate(sizes)
    ]


def _net(name: str, imp: snn_ext.IMP | None) -> nn.Sequential:
    torch.manual_seed(2)
    net = NETS[name]()
    with torch.no_grad():
        net[-2].weight.mul_(4)
    if imp is not None:
        snn_ext.patch(net, imp=imp, example_input=torch.zeros(2, 1, 16, 16))
    return net


def _recordings(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Spikes and membranes of the last neuron, whose class decides how much it returns."""
    if isinstance(net[-1], snn.Synaptic):
        snn_ext.reset(net)
        steps = [net(step) for step in x]
        return tuple(torch.stack(r) for r in zip(*steps, strict=True))
    return play(net, x)


IMP = snn_ext.IMP(init=(-0.3, 0.8))


@pytest.mark.parametrize("on", ["membrane", "spikes"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("name", ["T6s", "Synaptic"])
def test_bptt_computes_the_value_that_the_loss_has(name: str, objective: Any, on: str) -> None:
    """No step of the optimiser, so the mean over the batches can be computed beside it."""
    net = _net(name, IMP)
    crit = snn_ext.loss(net, objective, on=on)
    direct = [crit(_recordings(net, x), y).detach() for x, y in _batches()]
    other = snn_ext.loss(net, objective, on="spikes" if on == "membrane" else "membrane")
    assert not torch.allclose(other(_recordings(net, _batches()[0][0]), _batches()[0][1]), direct[0])
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    seen = backprop.BPTT(net, _batches(), still, crit)
    torch.testing.assert_close(seen.detach(), torch.stack(direct).mean())


@pytest.mark.parametrize("on", ["membrane", "spikes"])
@pytest.mark.parametrize("name", NETS)
def test_bptt_trains_like_a_loop_written_out(name: str, on: str) -> None:
    """The same three optimiser steps, V0 included, as without snntorch.backprop."""
    nets = [_net(name, IMP) for _ in range(2)]
    start = {k: p.detach().clone() for k, p in nets[0].named_parameters()}
    for index, net in enumerate(nets):
        crit = snn_ext.loss(net, "tet", on=on)
        optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.1))
        if index == 0:
            backprop.BPTT(net, _batches(), optimizer, crit)
            continue
        for x, y in _batches():
            value = crit(_recordings(net, x), y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for (key, ours), theirs in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
        assert not torch.equal(ours, start[key]), key
    assert any(k.endswith("imp") for k in start)


def test_bptt_with_static_data_a_regulariser_and_batches_first() -> None:
    net = _net("T6s", IMP)
    crit = snn_ext.loss(net, "tet-s", on="spikes")
    (x, y), *_ = _batches()
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    spikes, membranes = play(net, torch.stack([x[0]] * 3))
    expected = crit((spikes, membranes), y) + SF.l1_rate_sparsity(1e-3)(spikes)
    seen = backprop.BPTT(
        net,
        [(x[0], y)],
        still,
        crit,
        num_steps=3,
        time_var=False,
        regularization=SF.l1_rate_sparsity(1e-3),
    )
    torch.testing.assert_close(seen.detach(), expected.detach())
    # [B, T, ...]
    expected = crit(play(net, x), y)
    seen = backprop.BPTT(net, [(x.transpose(0, 1), y)], still, crit, time_first=False)
    torch.testing.assert_close(seen.detach(), expected.detach())


def test_tbptt_adds_v0_in_the_first_chunk_only() -> None:
    """Truncated after every second step; the loss sees two steps at a time."""
    net = _net("T6s", IMP)
    crit = snn_ext.loss(net, "tet")
    (x, y), *_ = _batches()
    _, membranes = play(net, torch.stack([x[0]] * T))
    chunks = [crit(m, y).detach() for m in membranes.split(2)]
    still = torch.optim.SGD(net.parameters(), lr=0.0)
    seen = backprop.TBPTT(net, [(x[0], y)], still, crit, num_steps=T, time_var=False, K=2)
    torch.testing.assert_close(seen.detach(), torch.stack(chunks).mean())


def test_the_name_is_what_snntorch_looks_for() -> None:
    net = _net("T6s", None)
    assert snn_ext.loss(net, "tet").__name__ == "ce_max_membrane_loss"
    assert snn_ext.loss(net, "tet", on="spikes").__name__ == "ce_rate_loss"


@pytest.mark.parametrize("on", ["membrane", "spikes"])
def test_wrong_twin_the_other_name_gives_another_value(on: str) -> None:
    """BPTT would hand over the other recording; the comparison above would see it."""
    net = _net("T6s", IMP)
    crit: Any = snn_ext.loss(net, "tet", on=on)
    direct = torch.stack([crit(_recordings(net, x), y).detach() for x, y in _batches()]).mean()
    crit.__name__ = snn_ext.loss(net, "tet", on="spikes" if on == "membrane" else "membrane").__name__
    seen = backprop.BPTT(net, _batches(), torch.optim.SGD(net.parameters(), lr=0.0), crit)
    assert not torch.allclose(seen, direct)
