"""Early exit in both frameworks: leaving the batch changes nothing for those who stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn

import snn_ext
from snn_ext import BNTTExit, ConfidenceExit

STEPS, BATCH = 6, 9


def spikingjelly() -> nn.Module:
    return nn.Sequential(layer.Linear(4, 8), layer.BatchNorm1d(8), neuron.LIFNode(), layer.Linear(8, 3))


def snntorch() -> nn.Module:
    last = snn.Leaky(0.9, init_hidden=True, output=True)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), snn.Leaky(0.8, init_hidden=True), nn.Linear(8, 3), last
    )


METHODS: list[dict[str, Any]] = [{"imp": True}, {"imp": True, "bntt": True, "mpbn": True}]


@pytest.mark.parametrize("methods", METHODS, ids=lambda m: "+".join(m))
@pytest.mark.parametrize("make", [spikingjelly, snntorch])
def test_every_sample_gets_what_it_would_get_alone(
    make: Callable[[], nn.Module], methods: dict[str, Any]
) -> None:
    net, x = make(), torch.rand(STEPS, BATCH, 4) * 4
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    snn_ext.patch(net, timesteps=STEPS, **methods).eval()
    steps = set()
    for p in (0.4, 0.5, 0.6, 0.7):
        together = snn_ext.early_exit(net, x, rule=ConfidenceExit(p))
        steps |= set(together.steps.tolist())
        for b in range(BATCH):
            alone = snn_ext.early_exit(net, x[:, b : b + 1], rule=ConfidenceExit(p))
            assert alone.steps[0] == together.steps[b]
            # a matrix product over another batch size rounds differently
            torch.testing.assert_close(alone.scores[0], together.scores[b], rtol=1e-5, atol=1e-6)
        assert together.saved == pytest.approx(1 - together.steps.double().mean().item() / STEPS)
    assert len(steps) > 1, "samples do leave at different steps"


@pytest.mark.parametrize("make", [spikingjelly, snntorch])
def test_a_static_exit_equals_running_fewer_steps(make: Callable[[], nn.Module]) -> None:
    net, x = make(), torch.rand(STEPS, BATCH, 4) * 4
    snn_ext.patch(net, bntt=True, timesteps=STEPS).eval()
    norm = net.get_submodule("1")
    with torch.no_grad():
        for slot in list(norm.bntt)[1:]:  # type: ignore[arg-type]
            slot.weight.fill_(0.01)
    result = snn_ext.early_exit(net, x, rule=BNTTExit(0.1))
    assert result.steps.tolist() == [3] * BATCH
    fewer = snn_ext.early_exit(net, x[:3], rule=ConfidenceExit(1.0))
    assert torch.equal(result.scores, fewer.scores)
    assert "no exit" in str(snn_ext.early_exit(net, x, rule=BNTTExit(1e-6)))
