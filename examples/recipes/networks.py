"""The networks: ordinary SpikingJelly and snnTorch modules; nothing here knows snn-ext.

All of them take a sequence [T, B, C, H, W] and return the scores of every step, [T, B, classes].
"""

from __future__ import annotations

from collections.abc import Callable

import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model.sew_resnet import sew_resnet18
from torch import Tensor, nn

from recipes.presets import Neuron, Preset
from recipes.surrogates import Tanh, flat_triangle

_SURROGATES: dict[str, Callable[[], nn.Module]] = {
    "ATan": surrogate.ATan,
    "triangle": lambda: surrogate.PiecewiseQuadratic(alpha=1.0),
    "tanh": Tanh,
}


def node(spec: Neuron) -> nn.Module:
    """A neuron of SpikingJelly; its LIF has decay 1 - 1/tau."""
    common = {
        "v_threshold": spec.threshold,
        "v_reset": 0.0 if spec.reset == "hard" else None,
        "surrogate_function": _SURROGATES[spec.surrogate](),
        "detach_reset": spec.detach_reset,
    }
    if spec.decay == 1:
        return neuron.IFNode(**common)
    return neuron.LIFNode(tau=1 / (1 - spec.decay), decay_input=False, **common)


def vgg11(spec: Neuron, size: int, classes: int) -> nn.Module:
    """TET's VGGSNN for event frames: eight convolutions with bias and batch norm, four average pools."""
    layers: list[nn.Module] = []
    channels = 2
    for width in (64, 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if isinstance(width, str):
            layers.append(layer.AvgPool2d(2))
            continue
        layers += [layer.Conv2d(channels, width, 3, padding=1), layer.BatchNorm2d(width), node(spec)]
        channels = width
    side = size // 16
    layers += [layer.Flatten(), layer.Dropout(0.25), layer.Linear(channels * side * side, classes)]
    return _initialised(nn.Sequential(*layers))


class Block(nn.Module):
    """Two convolutions with batch norm; what they add up to with the shortcut fires."""

    def __init__(self, spec: Neuron, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layer.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = layer.BatchNorm2d(outputs)
        self.sn1 = node(spec)
        self.conv2 = layer.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = layer.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                layer.Conv2d(inputs, outputs, 1, stride=stride, bias=False), layer.BatchNorm2d(outputs)
            )
        self.sn2 = node(spec)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        spikes: Tensor = self.sn2(inner + self.shortcut(x))
        return spikes


def resnet20(spec: Neuron, size: int, classes: int) -> nn.Module:
    """ResNet-20 for CIFAR: a first convolution, 3 times 3 blocks of 16, 32 and 64 channels."""
    layers = [layer.Conv2d(3, 16, 3, padding=1, bias=False), layer.BatchNorm2d(16), node(spec)]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for first in (stride, 1, 1):
            layers.append(Block(spec, channels, width, first))
            channels = width
    layers += [layer.AdaptiveAvgPool2d(1), layer.Flatten(), layer.Linear(channels, classes)]
    return _initialised(nn.Sequential(*layers))


def sew18(spec: Neuron, size: int, classes: int) -> nn.Module:
    """SpikingJelly's SEW-ResNet-18 with ADD, and an average pool in the stem."""
    network: nn.Module = sew_resnet18(cnf="ADD", spiking_neuron=lambda: node(spec), num_classes=classes)
    network.maxpool = layer.AvgPool2d(3, stride=2, padding=1)
    functional.set_step_mode(network, "m")
    return network


class Leaky(snntorch.Leaky):
    """snnTorch's neuron with BNTT's reset by subtraction: what was subtracted decays too, and resets are
    detached, H[t] = beta (H[t-1] - threshold S[t-1]) + x[t]. (snnTorch's own delayed reset subtracts after
    the decay; its immediate one is not detached, and a membrane still above the threshold cannot fire again.)
    """

    def _base_sub(self, input_: Tensor) -> Tensor:
        return self.beta.clamp(0, 1) * (self.mem - self.reset * self.threshold) + input_


class VGG9(nn.Module):
    """BNTT's VGG9, as snnTorch's tutorials write networks: a loop over time, states by hand.

    No layer has a bias. The last one does not fire; its outputs are the scores.
    """

    def __init__(self, spec: Neuron, size: int, classes: int) -> None:
        super().__init__()
        self.synapses, self.norms, self.neurons = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 3
        for width in (64, 64, 128, 128, 256, 256, 256):
            self.synapses.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.norms.append(nn.BatchNorm2d(width, eps=1e-4))
            channels = width
        self.synapses.append(nn.Linear(channels * (size // 8) ** 2, 1024, bias=False))
        self.norms.append(nn.BatchNorm1d(1024, eps=1e-4))
        for _ in self.synapses:
            self.neurons.append(Leaky(spec.decay, spec.threshold, spike_grad=flat_triangle))
        self.pooled = (1, 3, 6)  # layers whose spikes are averaged over 2x2
        self.pool = nn.AvgPool2d(2)
        self.last = nn.Linear(1024, classes, bias=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight, gain=2)

    def forward(self, frames: Tensor) -> Tensor:
        membranes = [lif.init_leaky() for lif in self.neurons]
        scores = []
        for x in frames:
            for i, (synapse, norm, lif) in enumerate(
                zip(self.synapses, self.norms, self.neurons, strict=True)
            ):
                x = x.flatten(1) if isinstance(synapse, nn.Linear) else x
                x, membranes[i] = lif(norm(synapse(x)), membranes[i])
                x = self.pool(x) if i in self.pooled else x
            scores.append(self.last(x))
        return torch.stack(scores)


def _initialised(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    functional.set_step_mode(network, "m")
    return network


NETWORKS: dict[str, Callable[[Neuron, int, int], nn.Module]] = {
    "vgg11": vgg11,
    "resnet20": resnet20,
    "sew-resnet18": sew18,
    "vgg9": VGG9,
}


def build(preset: Preset, classes: int) -> nn.Module:
    """The preset's network, without any of its methods."""
    return NETWORKS[preset.network](preset.neuron, preset.size, classes)
