"""V0 and the membranes it starts stay float32 under autocast and half inputs, float64 in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn

import snn_ext
from tests.adapters.snntorch_nets import LayerLog, private_instances


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


@pytest.mark.parametrize("shape", ["neuron", "layer"])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_autocast_keeps_v0_and_membranes_in_float32(reset: str, shape: Any) -> None:
    torch.manual_seed(6)
    net = nn.Sequential(
        nn.Linear(8, 16),
        snn.Leaky(0.9, reset_mechanism=reset, init_hidden=True),
        nn.Linear(16, 4),
        snn.Leaky(0.9, reset_mechanism=reset, init_hidden=True, output=True),
    )
    snn_ext.patch(net, imp=snn_ext.IMP(init=(-0.2, 0.7), shape=shape))
    log = LayerLog(net)
    utils.reset(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net[0](torch.randn(2, 8)).dtype == torch.bfloat16
        outputs = [net(x * 5)[1] for x in torch.randn(4, 3, 8)]
    torch.stack(outputs).float().square().sum().backward()
    assert log.rates()["1"] > 0
    for steps in log.membranes.values():
        assert {mem.dtype for mem in steps} == {torch.float32}
    for index in (1, 3):
        assert net[index].imp.dtype == torch.float32
        assert net[index].imp.grad.dtype == torch.float32
        assert net[index].imp.grad.abs().sum() > 0


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_neutral_under_autocast(reset: str) -> None:
    """snnTorch's membranes are float32 there (through the reset's float32 spikes), and stay equal.

    Not so with reset "none": stock keeps a bfloat16 membrane, and snn-ext's state is float32 by contract.
    """
    runs = []
    for patched in (False, True):
        torch.manual_seed(6)
        net = nn.Sequential(
            nn.Linear(8, 16), snn.Leaky(0.9, reset_mechanism=reset, init_hidden=True, output=True)
        )
        if patched:
            snn_ext.patch(net, imp=snn_ext.IMP(init="rest"))
        x = torch.randn(5, 3, 8) * 5
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = [t for step in x for t in net(step)]
        outputs[-1].sum().backward()
        runs.append([*outputs, net[0].weight.grad])
    assert runs[0][0].sum() > 0
    for ours, theirs in zip(*runs, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", ["layer", (3,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_get_the_full_v0(dtype: torch.dtype, shape: Any) -> None:
    """V0 = 1 + 2^-12 is not a number of either half type; the membrane shows that it was not rounded."""
    v0 = 1 + 2.0**-12
    neuron = snn.Leaky(0.5, threshold=100.0)
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=v0, shape=shape))
    _, mem = neuron(torch.zeros(2, 3, dtype=dtype), torch.zeros(2, 3, dtype=dtype))
    assert mem.dtype == torch.float32
    assert torch.equal(mem, torch.full((2, 3), v0 / 2))


def test_float64_inputs_keep_float64() -> None:
    neuron = snn.Leaky(0.5, threshold=100.0, spike_grad=surrogate.atan())
    snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=0.75, shape="layer"))
    _, mem = neuron(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64))
    assert mem.dtype == torch.float64
    assert torch.equal(mem, torch.full((2, 3), 0.375, dtype=torch.float64))
