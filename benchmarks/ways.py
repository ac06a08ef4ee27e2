"""Ways to run one layer of neurons: ours and the frameworks', to be timed against each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import Dynamics, Leak
from snn_ext.kernels import Call
from snn_ext.kernels.candidates import BACKENDS
from snn_ext.surrogates import ATan, Surrogate

__all__ = [
    "BATCH",
    "LEAKY",
    "LIF",
    "Step",
    "Way",
    "all_of",
    "inputs",
    "leaky",
    "lif",
    "ours",
    "spikingjelly",
    "start",
    "stepwise",
    "train",
]

BATCH = 16  # samples, over which the initial potentials of a layer are shared
Step = Callable[[Tensor], Tensor]
Way = Callable[[], Any]


def lif(surrogate: Surrogate) -> Dynamics:
    """SpikingJelly's LIFNode."""
    return Dynamics(leak=Leak(2.0), surrogate=surrogate)


def leaky(surrogate: Surrogate) -> Dynamics:
    """snnTorch's Leaky with beta = 0.9."""
    return Dynamics(
        decay=0.9,
        reset="soft",
        timing="delayed",
        fires_at_equality=False,
        detach_reset=True,
        surrogate=surrogate,
    )


LIF, LEAKY = lif(ATan()), leaky(ATan())


def inputs(steps: int, count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """An input for so many neurons, all samples together, that makes them fire now and then; and a gradient
    of the output. That is dense: an expanded one, as of a sum, costs every kernel extra."""
    shape = (steps, BATCH, count // BATCH)
    return torch.randn(shape).add_(0.5).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)


def start(count: int) -> nn.Parameter:
    """Learnable initial potentials for as many."""
    return nn.Parameter(torch.zeros(count // BATCH))


def train(step: Step, x: Tensor, gradient: Tensor) -> Way:
    """Forward and backward."""

    def way() -> None:
        x.grad = None
        step(x).backward(gradient)

    return way


def all_of(steps: Mapping[str, Step], x: Tensor, gradient: Tensor) -> dict[str, Way]:
    """The same input through every step."""
    return {name: train(step, x, gradient) for name, step in steps.items()}


def ours(backend: str, dynamics: Dynamics, v0: nn.Parameter | None = None) -> Step:
    """A kernel, without what a patched module does around it."""
    run = BACKENDS[backend].run

    def step(x: Tensor) -> Tensor:
        if v0 is not None:
            v0.grad = None
        return run(Call(x, dynamics, v0=v0)).spikes

    return step


def spikingjelly(node: Any) -> Step:
    """A node or layer of SpikingJelly (in step mode "m"), patched or not, with its reset."""
    from spikingjelly.activation_based import functional

    def step(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)  # type: ignore[no-any-return]

    return step


def stepwise(node: Any) -> Step:
    """A neuron of snnTorch in the loop that its tutorials write."""

    def step(x: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            spk, mem = node(x_t, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    return step
