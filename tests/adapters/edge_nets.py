"""One small network in every idiom of both frameworks, with the norm and the methods to be chosen.

Conv, norm, neuron, flatten, linear, neuron: [T, B, 1, 6, 6] -> [T, B, 5], spikes of the last neuron in
SpikingJelly, its membrane in snnTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from snntorch import utils
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import snn_ext
from snn_ext import BNTT, MPBN, TEBN

__all__ = [
    "IDIOMS",
    "METHODS",
    "NEUTRAL",
    "Idiom",
    "T",
    "images",
    "make",
    "normalised",
    "norms",
    "patch",
    "run",
    "the_norm",
    "train_step",
]

T = 4
C = 3


@dataclass(frozen=True)
class Idiom:
    """How a network is built around a norm, and run; `whole` if modules are given whole sequences."""

    build: Callable[[nn.Module], nn.Module]
    play: Callable[[nn.Module, Tensor], Tensor]
    whole: bool = False


def jelly(norm: Any, mode: str, *, contained: bool = False) -> nn.Module:
    if contained:
        front: list[nn.Module] = [layer.SeqToANNContainer(nn.Conv2d(1, C, 3), norm)]
    else:  # the framework's own class, with the settings of `norm`
        settings = (norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        front = [layer.Conv2d(1, C, 3), layer.BatchNorm2d(C, *settings)]
    nodes = [neuron.LIFNode(v_threshold=0.25, v_reset=None) for _ in range(2)]
    net = nn.Sequential(*front, nodes[0], layer.Flatten(), layer.Linear(16 * C, 5), nodes[1])
    functional.set_step_mode(net, mode)
    return net


def whole(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return net(x)  # type: ignore[no-any-return]


def each(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return torch.stack([net(x_t) for x_t in x])


class Loop(nn.Module):
    """snnTorch: the class net of the tutorials."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.lif1 = nn.Conv2d(1, C, 3), norm, snn.Leaky(beta=0.75, threshold=0.5)
        self.fc, self.lif2 = nn.Linear(16 * C, 5), snn.Leaky(beta=0.75, threshold=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for x_t in x:
            spk1, mem1 = self.lif1(self.bn(self.conv(x_t)), mem1)
            spk2, mem2 = self.lif2(self.fc(spk1.flatten(1)), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def sequential(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, C, 3),
        norm,
        snn.Leaky(beta=0.75, threshold=0.5, init_hidden=True),
        nn.Flatten(),
        nn.Linear(16 * C, 5),
        snn.Leaky(beta=0.75, threshold=0.5, init_hidden=True, output=True),
    )


def both(outputs: tuple[Tensor, Tensor]) -> Tensor:
    """Spikes and membranes in one tensor: a loss on it reaches every parameter."""
    return outputs[0] + outputs[1]


def outer(net: nn.Module, x: Tensor) -> Tensor:
    utils.reset(net)
    return torch.stack([both(net(x_t)) for x_t in x])


IDIOMS = {
    "spikingjelly m": Idiom(lambda norm: jelly(norm, "m"), whole, True),
    "spikingjelly container": Idiom(lambda norm: jelly(norm, "m", contained=True), whole, True),
    "spikingjelly s": Idiom(lambda norm: jelly(norm, "s"), each),
    "snntorch loop": Idiom(Loop, lambda net, x: both(net(x))),
    "snntorch sequential": Idiom(sequential, outer),
}


def methods(*, whole: bool) -> dict[str, dict[str, Any]]:
    """Every norm at every place where it can be."""
    stats: Any = "joint" if whole else "step"
    return {
        "mpbn": {"mpbn": MPBN()},
        "bntt": {"bntt": BNTT()},
        "bntt with bias": {"bntt": BNTT(bias=True)},
        "tebn": {"tebn": TEBN(stats=stats)},
        "tebn by step": {"tebn": TEBN(stats="step")},
        "bntt at neurons": {"bntt": BNTT(at="neuron")},
        "tebn at neurons": {"tebn": TEBN(stats=stats, at="neuron")},
    }


METHODS = tuple(methods(whole=True))
NEUTRAL = ("bntt with bias", "tebn", "tebn by step")
"""Fresh, they change no bit in inference."""


def make(
    idiom: str, method: str | None, *, timesteps: int = T, norm: nn.Module | None = None, seed: int = 1
) -> nn.Module:
    """A network, patched with one method or not at all; the same weights for the same seed, its norms
    having seen data."""
    torch.manual_seed(seed)
    case = IDIOMS[idiom]
    net = case.build(nn.BatchNorm2d(C) if norm is None else norm)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, _BatchNorm) and m.affine:
                m.weight.uniform_(0.5, 1.5)
                m.bias.uniform_(0.2, 1.0)
            if isinstance(m, nn.Linear):
                m.weight.mul_(4)  # so that the last neurons fire
        for _ in range(3):
            case.play(net, images())
    snn_ext.reset(net)
    return net if method is None else patch(idiom, net, method, timesteps)


def patch(idiom: str, net: nn.Module, method: str, timesteps: int = T) -> nn.Module:
    return snn_ext.patch(net, **methods(whole=IDIOMS[idiom].whole)[method], timesteps=timesteps)


def images(steps: int = T, batch: int = 6) -> Tensor:
    return torch.rand(steps, batch, 1, 6, 6) * 4 + torch.arange(float(steps)).view(-1, 1, 1, 1, 1) / 2


def run(idiom: str, net: nn.Module, x: Tensor) -> Tensor:
    """Outputs of one sequence, from a reset on, without gradients."""
    snn_ext.reset(net)
    with torch.no_grad():
        y = IDIOMS[idiom].play(net, x)
    snn_ext.reset(net)
    return y


def train_step(idiom: str, net: nn.Module, x: Tensor) -> Tensor:
    """Outputs of one sequence, with gradients in the parameters."""
    snn_ext.reset(net)
    net.zero_grad()
    y = IDIOMS[idiom].play(net, x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    snn_ext.reset(net)
    return y.detach()


def norms(net: nn.Module) -> list[_BatchNorm]:
    return [m for m in net.modules() if isinstance(m, _BatchNorm)]


def the_norm(net: nn.Module) -> _BatchNorm:
    """The one that the network was built with."""
    return next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def normalised(idiom: str, net: nn.Module, x: Tensor) -> Tensor:
    """What the network's own norm puts out in one sequence, [T, B, C, 4, 4]."""
    seen: list[Tensor] = []
    handle = the_norm(net).register_forward_hook(lambda m, i, y: seen.append(y))
    run(idiom, net, x)
    handle.remove()
    return torch.cat([y.reshape(-1, C, 4, 4) for y in seen]).view(len(x), -1, C, 4, 4)
