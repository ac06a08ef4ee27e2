"""Networks for the compliance suite: both step modes, and containers that hide time from their norms."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from snn_ext.testing import Case

__all__ = ["cases"]


def _dense(mode: str) -> nn.Module:
    net = nn.Sequential(
        layer.Linear(4, 6),
        layer.BatchNorm1d(6),
        neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()),
        layer.Linear(6, 5),
        neuron.ParametricLIFNode(init_tau=2.0, v_reset=None, surrogate_function=surrogate.Sigmoid()),
        layer.Linear(5, 5),
        neuron.QIFNode(),
        layer.Linear(5, 3),
        neuron.IFNode(v_reset=0.25, detach_reset=True),
        layer.Linear(3, 3),
    )
    functional.set_step_mode(net, mode)
    return _driven(net)


def _contained() -> nn.Module:
    """The layout of the Spikformer family: time is folded into the batch for weights and norms."""
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
        neuron.LIFNode(tau=2.0, step_mode="m"),
        layer.MultiStepContainer(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)),
        neuron.IFNode(step_mode="m"),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(12, 3)),
    )
    return _driven(net)


def _driven(net: nn.Module) -> nn.Module:
    """So that every neuron fires now and then."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.mul_(5)
    return net


def _loop(net: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([net(x_t) for x_t in x])


def _stepwise(node: Any, x: Tensor) -> Tensor:
    node.step_mode = "s"
    return _loop(node, x)


def cases() -> tuple[Case, ...]:
    """Made when asked for: SpikingJelly is imported here."""

    def sequences(batch: int) -> Tensor:
        return torch.rand(6, batch, 4) * 4 - 1

    dense = ("2", "4", "6", "8")
    return (
        Case(
            name="spikingjelly-multi-step",
            make_model=lambda: _dense("m"),
            make_input=sequences,
            play_steps=_stepwise,
            reset=functional.reset_net,
            neurons=dense,
        ),
        Case(
            name="spikingjelly-single-step",
            make_model=lambda: _dense("s"),
            make_input=sequences,
            run=_loop,
            play=_loop,
            reset=functional.reset_net,
            example=lambda x: x[0],
            neurons=dense,
        ),
        Case(
            name="spikingjelly-containers",
            make_model=_contained,
            make_input=lambda batch: torch.rand(6, batch, 2, 4, 4) * 4 - 1,
            play_steps=_stepwise,
            reset=functional.reset_net,
            neurons=("1", "3"),
        ),
    )
