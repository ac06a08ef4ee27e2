"""Norms of spiking networks: MPBN, BNTT and TEBN against plain batch norm and SpikingJelly's versions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from harness import Case, main
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import snn_ext
from snn_ext.norms import BatchNormThroughTime, TemporalEffectiveBatchNorm

Way = Callable[[], Any]
STEPS, BATCH, CHANNELS, SIZE = 4, 16, 64, 16


def train(module: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Way:
    def way() -> None:
        x.grad = None
        module(x).backward(gradient)

    return way


def resetting(node: Any) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)  # type: ignore[no-any-return]

    return step


def inputs(batch: int, size: int) -> tuple[Tensor, Tensor]:
    shape = (STEPS, batch, CHANNELS, size, size)
    return torch.randn(shape).mul_(2).requires_grad_(), torch.randn(shape)


def patched_mpbn(x: Tensor, backend: str | None = None) -> nn.Module:
    node = neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan(), step_mode="m")
    return snn_ext.patch(node, mpbn=True, example_input=x.detach(), backend=backend)


def mpbn_training(batch: int, size: int) -> Mapping[str, Way]:
    x, gradient = inputs(batch, size)
    theirs = neuron.MPBNLIFNode(
        out_features=CHANNELS, out_channels=CHANNELS, surrogate_function=surrogate.ATan(), step_mode="m"
    )
    ways = {
        "SpikingJelly MPBNLIFNode": theirs,
        "snn-ext MPBN": patched_mpbn(x),
        "snn-ext MPBN, step by step": patched_mpbn(x, "framework"),
    }
    return {name: train(resetting(node), x, gradient) for name, node in ways.items()}


def mpbn_inference(batch: int, size: int) -> Mapping[str, Way]:
    x, _ = inputs(batch, size)
    theirs = neuron.MPBNLIFNode(
        out_features=CHANNELS, out_channels=CHANNELS, surrogate_function=surrogate.ATan(), step_mode="m"
    ).eval()
    ours = patched_mpbn(x)
    functional.reset_net(ours)
    ours(x.detach())
    ours.eval()
    functional.reset_net(ours)
    folded = snn_ext.fold(ours)
    ways = {"SpikingJelly MPBNLIFNode": theirs, "snn-ext MPBN, folded": folded}

    def infer(node: nn.Module) -> Way:
        step = resetting(node)

        def way() -> None:
            with torch.no_grad():
                step(x)

        return way

    return {name: infer(node) for name, node in ways.items()}


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
    ways: dict[str, Any] = {
        "plain batch norm": Plain(CHANNELS),
        "snn-ext BNTT": BatchNormThroughTime(STEPS, CHANNELS, bias=True),
        "BNTT, one reshaped call": Reshaped(),
        "SpikingJelly BNTT": layer.BatchNormThroughTime2d(STEPS, CHANNELS, step_mode="m"),
        "snn-ext TEBN": TemporalEffectiveBatchNorm(STEPS, CHANNELS),
        "SpikingJelly TEBN": layer.TemporalEffectiveBatchNorm2d(STEPS, CHANNELS, step_mode="m"),
    }
    return {name: train(resetting(module), x, gradient) for name, module in ways.items()}


def cases(quick: bool) -> list[Case]:
    """Every case; the goals are those of docs/kernels.md."""
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
                {"snn-ext MPBN": 2.0},
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
