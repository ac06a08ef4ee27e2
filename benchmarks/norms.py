"""Norms of spiking networks: MPBN, BNTT and TEBN against plain batch norm and SpikingJelly's versions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from harness import Case, main
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from ways import Way, all_of, spikingjelly

import snn_ext
from snn_ext import MPBN
from snn_ext.norms import BatchNormThroughTime, TemporalEffectiveBatchNorm

STEPS, CHANNELS = 4, 64


def inputs(batch: int, size: int) -> tuple[Tensor, Tensor]:
    shape = (STEPS, batch, CHANNELS, size, size)
    return torch.randn(shape).mul_(2).requires_grad_(), torch.randn(shape)


def patched_mpbn(x: Tensor, mpbn: MPBN, backend: str | None = None) -> nn.Module:
    node = neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan(), step_mode="m")
    return snn_ext.patch(node, mpbn=mpbn, example_input=x.detach(), backend=backend)


def their_mpbn() -> nn.Module:
    return neuron.MPBNLIFNode(out_channels=CHANNELS, surrogate_function=surrogate.ATan(), step_mode="m")


def mpbn_training(batch: int, size: int) -> Mapping[str, Way]:
    """Their neuron, ours with their equations, and ours as we advise it, which can be folded."""
    x, gradient = inputs(batch, size)
    theirs = MPBN(carry="normalised")
    nodes = {
        "SpikingJelly MPBNLIFNode": their_mpbn(),
        "snn-ext MPBN, normalised": patched_mpbn(x, theirs),
        "snn-ext MPBN, step by step": patched_mpbn(x, theirs, "framework"),
        "snn-ext MPBN": patched_mpbn(x, MPBN()),
    }
    return all_of({name: spikingjelly(node) for name, node in nodes.items()}, x, gradient)


def mpbn_inference(batch: int, size: int) -> Mapping[str, Way]:
    """Both with statistics of one batch. Theirs normalises every membrane, ours folds the norm away."""
    x, _ = inputs(batch, size)
    theirs, ours = their_mpbn(), patched_mpbn(x, MPBN())
    for node in (theirs, ours):
        node(x.detach())
        functional.reset_net(node.eval())
    nodes = {"SpikingJelly MPBNLIFNode": theirs, "snn-ext MPBN, folded": snn_ext.fold(ours)}

    def infer(node: nn.Module) -> Way:
        step = spikingjelly(node)

        def way() -> Tensor:
            with torch.no_grad():
                return step(x)

        return way

    return {name: infer(node) for name, node in nodes.items()}


class Plain(nn.BatchNorm2d):
    """A plain batch norm over time and batch, the cheapest norm there is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view_as(x)


class Reshaped(nn.Module):
    """BNTT as one call: every step's channels are channels of their own, which copies the input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(STEPS * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        y = self.bn(x.transpose(0, 1).flatten(1, 2))
        return y.unflatten(1, (steps, -1)).transpose(0, 1).contiguous()


def over_time(batch: int, size: int) -> Mapping[str, Way]:
    x, gradient = inputs(batch, size)
    modules: dict[str, Any] = {
        "plain batch norm": Plain(CHANNELS),
        "snn-ext BNTT": BatchNormThroughTime(STEPS, CHANNELS, bias=True),
        "BNTT, one reshaped call": Reshaped(),
        "SpikingJelly BNTT": layer.BatchNormThroughTime2d(STEPS, CHANNELS, step_mode="m"),
        "snn-ext TEBN": TemporalEffectiveBatchNorm(STEPS, CHANNELS),
        "SpikingJelly TEBN": layer.TemporalEffectiveBatchNorm2d(STEPS, CHANNELS),
    }
    return all_of({name: spikingjelly(module) for name, module in modules.items()}, x, gradient)


def cases(quick: bool) -> list[Case]:
    """Every case, with its goals."""
    rounds = 3 if quick else 15
    sizes = [(4, 8)] if quick else [(4, 8), (16, 16)]
    result = []
    for batch, size in sizes:
        units = STEPS * batch * CHANNELS * size * size
        shape = f"[{STEPS}, {batch}, {CHANNELS}, {size}, {size}]"
        make = functools.partial
        result += [
            Case(
                f"MPBN training {shape}",
                make(mpbn_training, batch, size),
                "SpikingJelly MPBNLIFNode",
                units,
                {"snn-ext MPBN": 2.0, "snn-ext MPBN, normalised": 2.0},
                rounds,
            ),
            Case(
                f"MPBN inference {shape}",
                make(mpbn_inference, batch, size),
                "SpikingJelly MPBNLIFNode",
                units,
                {"snn-ext MPBN, folded": 4.0},
                rounds,
            ),
            Case(
                f"norms over time {shape}",
                make(over_time, batch, size),
                "plain batch norm",
                units,
                {"snn-ext BNTT": 0.8},
                rounds,
            ),
        ]
    return result


if __name__ == "__main__":
    main("norms", cases)
