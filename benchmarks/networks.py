"""Whole networks: forward, backward and reset of one batch, patched against unpatched."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import torch
from harness import Case, main
from torch import Tensor, nn
from ways import Way

import snn_ext
from snn_ext import IMP

NEUTRAL = IMP(init="rest")  # every network computes the same
CLASSES, STEPS, LOOPS = 10, 4, 8
Made = tuple[nn.Module, Tensor]
"""A network, and a batch for it."""


def conv_net(batch: int, size: int) -> Made:
    """SpikingJelly: a small convolutional network that sees whole sequences."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    net = nn.Sequential(
        layer.Conv2d(3, 32, 3, padding=1, bias=False),
        layer.BatchNorm2d(32),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.MaxPool2d(2),
        layer.Conv2d(32, 64, 3, padding=1, bias=False),
        layer.BatchNorm2d(64),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.AdaptiveAvgPool2d(1),
        layer.Flatten(),
        layer.Linear(64, CLASSES),
    )
    functional.set_step_mode(net, "m")
    return net, sequence(batch, size)


def sew(batch: int, size: int) -> Made:
    """SpikingJelly's zoo: SEW-ResNet-18."""
    from spikingjelly.activation_based import functional, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet

    net = sew_resnet.sew_resnet18(
        spiking_neuron=neuron.IFNode,
        cnf="ADD",
        num_classes=CLASSES,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    functional.set_step_mode(net, "m")
    return net, sequence(batch, size)


def sequence(batch: int, size: int) -> Tensor:
    """The same pictures at every step."""
    return torch.rand(batch, 3, size, size).expand(STEPS, -1, -1, -1, -1).contiguous()


class Loop(nn.Module):
    """snnTorch: the tutorials' convolutional network, with its loop over time."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(3, 32, 5), snn.Leaky(beta=0.9)
        self.conv2, self.lif2 = nn.Conv2d(32, 64, 5), snn.Leaky(beta=0.9)
        self.fc, self.lif3 = nn.Linear(64 * 25, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        out = []
        for _ in range(LOOPS):
            spk1, mem1 = self.lif1(nn.functional.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(nn.functional.max_pool2d(self.conv2(spk1), 2), mem2)
            _, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            out.append(mem3)
        return torch.stack(out)


def loop(batch: int) -> Made:
    return Loop(), torch.rand(batch, 3, 32, 32)


def train(net: nn.Module, x: Tensor, labels: Tensor, amp: bool) -> Way:
    """A training step without the optimizer, which is the same for all."""

    def way() -> Tensor:
        net.zero_grad(set_to_none=True)
        snn_ext.reset(net)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            out = net(x)
        scores = out[-1] if isinstance(out, tuple) else out  # snnTorch's return (spikes, membranes)
        loss = nn.functional.cross_entropy(scores.float().mean(0), labels)
        loss.backward()
        return loss.detach()

    return way


def setup(make: Callable[[], Made], amp: bool, *, tebn: bool) -> Mapping[str, Way]:
    """The same network several times: as it is, and with methods."""
    plain, x = make()
    labels = torch.randint(0, CLASSES, (x.shape[1] if x.ndim == 5 else len(x),))

    def patched(**options: object) -> nn.Module:
        return snn_ext.patch(copy.deepcopy(plain), example_input=x, **options)

    nets = {
        "unpatched": plain,
        "IMP": patched(imp=NEUTRAL),
        "IMP, framework's step": patched(imp=NEUTRAL, backend="framework"),
    }
    if tebn:
        nets["IMP + TEBN"] = patched(imp=NEUTRAL, tebn=True)
    return {name: train(net, x, labels, amp) for name, net in nets.items()}


def cases(quick: bool) -> list[Case]:
    """Neurons are a small part of a network on a CPU; patching must not make it slower."""
    rounds = 2 if quick else 7
    batch = 2 if quick else 8
    make = functools.partial
    conv, small = make(conv_net, batch, 32), make(loop, batch)
    named = {
        "conv net (SpikingJelly) T=4": make(setup, conv, False, tebn=True),
        "conv net (SpikingJelly) T=4 bf16 autocast": make(setup, conv, True, tebn=True),
        "conv net (snnTorch) T=8": make(setup, small, False, tebn=False),
    }
    result = [Case(name, ways, "unpatched", batch, {"IMP": 1.0}, rounds) for name, ways in named.items()]
    if not quick:
        ways = make(setup, make(sew, 4, 32), False, tebn=True)
        result.append(Case("SEW-ResNet-18 T=4", ways, "unpatched", 4, {"IMP": 1.0}, 5))
    return result


if __name__ == "__main__":
    main("networks", cases)
