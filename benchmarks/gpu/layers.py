"""One layer of neurons in every way there is on this machine, and the least that memory traffic allows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from ways import LEAKY, LIF, Step, Way, inputs, ours, spikingjelly, start, stepwise, train

from gpu.bench import Bench

__all__ = ["FLOOR", "OURS", "Layer", "layer"]

OURS, FLOOR = "snn-ext", "copy floor"


@dataclass
class Layer:
    """Inputs, and what to do with them."""

    x: Tensor
    gradient: Tensor
    steps: dict[str, Step]
    missing: dict[str, str] = field(default_factory=dict)
    """Ways that cannot be tried here, and why."""

    @property
    def units(self) -> int:
        """Neuron-steps."""
        return self.x.numel()

    def ways(self) -> dict[str, Way]:
        """Forward and backward of each."""
        return {name: train(step, self.x, self.gradient) for name, step in self.steps.items()}

    def floor(self) -> Way:
        """Copies as many bytes as the best kernel must read and write: x twice, spikes, their gradient and
        the gradient of x, 5 numbers of every neuron and step; a copy reads half of them and writes half."""
        count = 5 * self.x.numel() * self.x.itemsize // 2
        source = torch.ones(count, dtype=torch.uint8, device=self.x.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)


def layer(bench: Bench, kind: str, steps: int, count: int, dtype: torch.dtype) -> Layer:
    """N neurons of a batch, over T steps, through LIF (SpikingJelly's) or Leaky (snnTorch's)."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        x, gradient = inputs(steps, count, dtype)
        v0 = start(count)
    dynamics = LIF if kind == "LIF" else LEAKY
    made = Layer(
        x,
        gradient,
        {OURS: ours(bench.backend, dynamics), f"{OURS} + IMP": ours(bench.backend, dynamics, v0)},
    )
    framework, peers = ("spikingjelly", _lif) if kind == "LIF" else ("snntorch", _leaky)
    if importlib.util.find_spec(framework) is None:
        made.missing[framework] = f"{framework} is not installed"
    else:
        made.steps |= peers(bench, x)
    return made


def _lif(bench: Bench, x: Tensor) -> dict[str, Step]:
    """In float32 a node runs SpikingJelly's fused operator (Triton on CUDA). With half-width inputs, as
    under autocast, it falls to its loop over single steps; the operator would take them with a float32
    membrane, which a node never hands it."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    def node(mode: str) -> Any:
        return neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode=mode).to(bench.device)

    if x.dtype is torch.float32:
        single = spikingjelly(_Each(node("s")))
        return {"SpikingJelly, fused": spikingjelly(node("m")), "SpikingJelly, loop": single}
    bump = surrogate.ATan()

    def with_float32_state(x: Tensor) -> Tensor:
        v = torch.zeros(x.shape[1:], dtype=torch.float32, device=x.device)
        spikes: Tensor = functional.lif_multi_step(x, v, surrogate_function=bump)[0]
        return spikes

    return {
        "SpikingJelly, as it is": spikingjelly(node("m")),
        "SpikingJelly, float32 state": with_float32_state,
    }


class _Each(nn.Module):
    """A single-step node over a sequence."""

    def __init__(self, node: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.node(x_t) for x_t in x.unbind(0)])


def _leaky(bench: Bench, x: Tensor) -> dict[str, Step]:
    import snntorch as snn

    return {"snnTorch, loop": stepwise(snn.Leaky(beta=0.9).to(bench.device))}
