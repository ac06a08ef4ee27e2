"""The task and the network of the convergence study. Nothing here knows snn-ext."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

Reset = Literal["soft", "hard"]

WIDTHS = (16, 256, 256, 256, 16)
INPUTS = 1024


@dataclass(frozen=True)
class Task:
    """Random inputs [1024, 16] in 0..1, each with a random label of 16: there is nothing to understand."""

    inputs: Tensor
    labels: Tensor

    def sequence(self, steps: int) -> Tensor:
        """[T, 1024, 16]: the same inputs at every step."""
        return self.inputs.expand(steps, *self.inputs.shape)


def network(reset: Reset) -> nn.Module:
    """An ordinary SpikingJelly MLP, [T, B, 16] -> scores [T, B, 16]; integrate-and-fire, threshold 1."""
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        modules.append(layer.Linear(inputs, outputs, bias=False))
        modules.append(
            neuron.IFNode(
                v_reset=None if reset == "soft" else 0.0, surrogate_function=surrogate.Sigmoid(alpha=4.0)
            )
        )
    net = nn.Sequential(*modules[:-1])  # the last layer does not spike: its output is the scores
    functional.set_step_mode(net, "m")
    return net


def draw(seed: int, reset: Reset = "soft") -> tuple[nn.Module, Task]:
    """Network, inputs and labels, drawn in this order: a seed fixes all three, whatever T is."""
    torch.manual_seed(seed)
    net = network(reset)
    inputs = torch.rand(INPUTS, WIDTHS[0])
    return net, Task(inputs, torch.randint(WIDTHS[-1], (INPUTS,)))
