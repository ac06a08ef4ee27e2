"""Whole networks: one training step, patched against unpatched."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import snntorch as snn
import torch
from harness import Case, main
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet
from torch import Tensor, nn

import snn_ext

Way = Callable[[], Any]
CLASSES = 10


def conv_net(steps: int) -> nn.Module:
    """SpikingJelly: a small convolutional network that sees whole sequences."""
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
    return net


def sew(steps: int) -> nn.Module:
    """SpikingJelly's zoo: SEW-ResNet-18."""
    net = sew_resnet.sew_resnet18(
        spiking_neuron=neuron.IFNode,
        cnf="ADD",
        num_classes=CLASSES,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    functional.set_step_mode(net, "m")
    return net


class Loop(nn.Module):
    """snnTorch: the tutorials' convolutional network, with its loop over time."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.conv1, self.lif1 = nn.Conv2d(3, 32, 5), snn.Leaky(beta=0.9)
        self.conv2, self.lif2 = nn.Conv2d(32, 64, 5), snn.Leaky(beta=0.9)
        self.fc, self.lif3 = nn.Linear(64 * 25, CLASSES), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        out = []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(nn.functional.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(nn.functional.max_pool2d(self.conv2(spk1), 2), mem2)
            _, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            out.append(mem3)
        return torch.stack(out)


def step(net: nn.Module, x: Tensor, labels: Tensor, amp: bool) -> Way:
    def way() -> None:
        net.zero_grad(set_to_none=True)
        snn_ext.reset(net)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            scores = net(x).float().mean(0)
        nn.functional.cross_entropy(scores, labels).backward()

    return way


def setup(
    make: Callable[[int], nn.Module], steps: int, batch: int, size: int, amp: bool
) -> Mapping[str, Way]:
    """The same network four times: as it is, and with methods."""
    plain = make(steps)
    x = torch.rand(batch, 3, size, size)
    x = x if isinstance(plain, Loop) else x.expand(steps, *x.shape).contiguous()
    labels = torch.randint(0, CLASSES, (batch,))
    nets = {
        "unpatched": plain,
        "IMP": snn_ext.patch(copy.deepcopy(plain), imp=True, example_input=x),
        "IMP, framework's step": snn_ext.patch(
            copy.deepcopy(plain), imp=True, example_input=x, backend="framework"
        ),
    }
    if not isinstance(plain, Loop):
        nets["IMP + TEBN"] = snn_ext.patch(copy.deepcopy(plain), imp=True, tebn=True, example_input=x)
    return {name: step(net, x, labels, amp) for name, net in nets.items()}


def cases(quick: bool) -> list[Case]:
    """Neurons are a small part of a network on a CPU: 1.1x is a lot."""
    rounds = 2 if quick else 7
    batch = 2 if quick else 8
    make = functools.partial
    result = [
        Case(
            "conv net (SpikingJelly) T=4",
            make(setup, conv_net, 4, batch, 32, False),
            "unpatched",
            batch,
            {"IMP": 1.0},
            rounds,
        ),
        Case(
            "conv net (SpikingJelly) T=4 bf16 autocast",
            make(setup, conv_net, 4, batch, 32, True),
            "unpatched",
            batch,
            {"IMP": 1.0},
            rounds,
        ),
        Case(
            "conv net (snnTorch) T=8",
            make(setup, Loop, 8, batch, 32, False),
            "unpatched",
            batch,
            {"IMP": 1.0},
            rounds,
        ),
    ]
    if not quick:
        result.append(
            Case("SEW-ResNet-18 T=4", make(setup, sew, 4, 4, 32, False), "unpatched", 4, {"IMP": 1.0}, 5)
        )
    return result


if __name__ == "__main__":
    main("networks", cases)
