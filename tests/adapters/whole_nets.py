"""Small versions of whole networks of both frameworks, for tests of all methods together.

Every network is the framework's own class (or the tutorial's) with fewer channels and steps; `CASES` says
how each is run, what it takes, and what it can be trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from tests.adapters import snntorch_nets
from tests.adapters.snntorch_nets import REG1, T5, T6, stm, t6s
from tests.adapters.spikingjelly_nets import (
    StepLoop,
    conv_net,
    functional,
    layer,
    neuron,
    neurons_of,
    parametric_lif_net,
    sew_resnet,
    spiking_resnet,
    spiking_vgg,
)
from tests.adapters.test_spikingjelly_neutral import ZOO

__all__ = ["CASES", "CLASSES", "Case", "T", "call", "outer_loop", "sequences"]

T = 3
CLASSES = 5

Loss = Callable[[nn.Module, Any, int], Tensor]
"""From the network, its outputs and the batch size."""


# --- how they are run and trained ------------------------------------------------------------------------


def call(net: nn.Module, x: Tensor) -> Any:
    return net(x)


def outer_loop(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One static input, T times. ``utils.reset`` does not reach copies and loaded networks,
    `snn_ext.reset` does."""
    return each_step(net, x.expand(T, *x.shape))


def each_step(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    utils.reset(net)
    snn_ext.reset(net)
    spikes, membranes = zip(*(net(x_t) for x_t in x), strict=True)
    return torch.stack(spikes), torch.stack(membranes)


def sequences(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return net(x)  # type: ignore[no-any-return]


def classify(net: nn.Module, outputs: Any, batch: int) -> Tensor:
    """On the spikes of every step, so that every new parameter has a part in the loss."""
    loss: Tensor = snn_ext.loss(net, "tet", on="spikes")(outputs, torch.arange(batch) % CLASSES)
    return loss


def regress(net: nn.Module, outputs: Any, batch: int) -> Tensor:
    """On membranes as well: they are what a regression reads, and the last neuron's MPBN shows in its
    spikes only."""
    spikes, membranes = outputs
    target = torch.linspace(-1, 1, spikes.numel()).view_as(spikes)
    return (membranes - target).square().mean() + (spikes - target).square().mean()


@dataclass(frozen=True)
class Case:
    """A network: how it is built and run, what it takes, and whether it is called once per step.

    Args:
        shape: of the data; `batch` is the axis of samples.
        first_step: `patch` is shown the first step of the data instead of all of it.
        dense: every neuron is a channel of its own.
        rate: learning rate at which it stays in a range where everything has an effect.
    """

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Any]
    shape: tuple[int, ...]
    per_call: bool = True
    batch: int = 0
    first_step: bool = False
    dense: bool = False
    loss: Loss = classify
    rate: float = 0.05
    scale: float = 4.0

    def data(self) -> Tensor:
        return torch.randn(self.shape) * self.scale

    def example(self) -> Tensor:
        x = torch.rand(self.shape)
        return x[0] if self.first_step else x

    def loss_of(self, net: nn.Module) -> Tensor:
        """On new data."""
        return self.loss(net, self.run(net, self.data()), self.shape[self.batch])


# --- snnTorch --------------------------------------------------------------------------------------------


class T6WithNorms(nn.Module):
    """The convolutional tutorial network with batch norms before its pools; the loop in forward."""

    def __init__(self) -> None:
        super().__init__()
        bump = surrogate.fast_sigmoid(slope=25)
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.lif1 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.lif2 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.fc1 = nn.Linear(6, CLASSES)
        self.lif3 = snn.Leaky(beta=0.5, spike_grad=bump)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes, membranes = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(F.max_pool2d(self.bn1(self.conv1(x)), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.bn2(self.conv2(spk1)), 2), mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.flatten(1)), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


def one_step(*, norms: bool) -> nn.Sequential:
    """A Sequential of one step, with ``init_hidden``."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4) if norms else nn.Identity(),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.8, init_hidden=True),
        nn.Flatten(),
        nn.Linear(36, CLASSES),
        snn.Leaky(beta=0.8, init_hidden=True, output=True),
    )


def driven(name: str, build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Behind spikes the weights of a small network are larger, so that its last neurons fire."""
    known = snntorch_nets.CASES[name]
    return snntorch_nets.Case(build, known.run, known.shape, known.scale, known.gain).fresh


# --- SpikingJelly ----------------------------------------------------------------------------------------


def narrowed(net: nn.Module, by: int = 8) -> nn.Module:
    """The same network with fewer channels, all of its layers made new (`net` may be on the meta device)."""

    def width(n: int) -> int:
        return n if n in (1, 3, CLASSES) else n // by  # colours and classes stay

    def anew(old: nn.Module) -> nn.Module | None:
        if isinstance(old, layer.Conv2d):
            sizes: Any = (old.kernel_size, old.stride, old.padding)
            return layer.Conv2d(
                width(old.in_channels), width(old.out_channels), *sizes, bias=old.bias is not None
            )
        if isinstance(old, layer.BatchNorm2d):
            return layer.BatchNorm2d(width(old.num_features), momentum=0.5)
        if isinstance(old, layer.Linear):
            return layer.Linear(width(old.in_features), width(old.out_features))
        return None

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            new = anew(child)
            if new is not None:
                setattr(parent, name, new)
    return net


def lively(net: nn.Module, threshold: float = 0.25) -> nn.Module:
    """Deep neurons fire too, so that outputs depend on what is in front of them."""
    for node in neurons_of(net):
        node.v_threshold = threshold
    functional.set_step_mode(net, "m")
    return net


def small_sew_resnet18() -> nn.Module:
    with torch.device("meta"):
        net = sew_resnet.sew_resnet18(num_classes=CLASSES, cnf="ADD", spiking_neuron=neuron.IFNode)
    return lively(narrowed(net))


def small_spiking_resnet18() -> nn.Module:
    """Adds in place to the outputs of its norms; soft reset."""
    with torch.device("meta"):
        net = spiking_resnet.spiking_resnet18(
            num_classes=CLASSES, spiking_neuron=neuron.LIFNode, v_reset=None
        )
    return lively(narrowed(net))


def small_vgg11() -> nn.Module:
    with torch.device("meta"):
        net = spiking_vgg.spiking_vgg11_bn(
            num_classes=CLASSES, init_weights=False, spiking_neuron=neuron.LIFNode
        )
    net.avgpool = layer.AdaptiveAvgPool2d((1, 1))
    net.classifier[0] = layer.Linear(512, 512)
    net.classifier[3] = layer.Linear(512, 256)
    net.classifier[6] = layer.Linear(256, CLASSES)
    return lively(narrowed(net))


def small_mnist_net() -> nn.Module:
    """Its last neurons vote in groups of ten."""
    net = parametric_lif_net.MNISTNet(channels=4, spiking_neuron=neuron.ParametricLIFNode, init_tau=3.0)
    net.conv_fc[10] = layer.Linear(4 * 7 * 7, 64)
    net.conv_fc[13] = layer.Linear(64, 10 * CLASSES)
    with torch.no_grad():
        for i in (10, 13):
            net.conv_fc[i].weight.mul_(4)
    return lively(net)


def small_spikformer() -> nn.Module:
    net = lively(ZOO["spikformer"].make())
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
    return net


def _sequences(build: Callable[[], nn.Module], *shape: int, batch: int = 3) -> Case:
    return Case(build, sequences, (T, batch, *shape), per_call=False, batch=1)


# The last layers of ResNets see one pixel. With three samples a channel is often constant, so that every
# norm multiplies gradients by 1 / sqrt(eps) = 316, and twenty norms in a row are beyond float32.
SAMPLES = 6

CASES = {
    "T5": Case(lambda: T5(12, 16, CLASSES, T), call, (4, 12), dense=True),
    "T6": Case(driven("T6", lambda: T6(4, 6, 16, T)), call, (4, 1, 16, 16)),
    "T6 with norms": Case(T6WithNorms, call, (4, 1, 10, 10)),
    "T6s": Case(driven("T6s", lambda: t6s(4, 6, 16)), outer_loop, (4, 1, 16, 16)),
    "Sequential": Case(lambda: one_step(norms=False), outer_loop, (4, 1, 8, 8)),
    "Sequential with norms": Case(lambda: one_step(norms=True), outer_loop, (4, 1, 8, 8)),
    "REG1": Case(
        driven("REG1", lambda: REG1(12)), call, (T, 4, 1), batch=1, dense=True, loss=regress, rate=0.002
    ),
    "STM": Case(
        driven("STM", lambda: stm(4, 6)), each_step, (T, 4, 2, 10, 10), batch=1, first_step=True, scale=8.0
    ),
    "conv_net in a loop": Case(lambda: StepLoop(conv_net(mode="s")), sequences, (T, 4, 2, 6, 6), batch=1),
    "sew_resnet18": _sequences(small_sew_resnet18, 3, 16, 16, batch=SAMPLES),
    "spiking_resnet18": _sequences(small_spiking_resnet18, 3, 16, 16, batch=SAMPLES),
    "spiking_vgg11_bn": _sequences(small_vgg11, 3, 32, 32),
    "MNISTNet": _sequences(small_mnist_net, 1, 28, 28),
    "spikformer": _sequences(small_spikformer, 3, 16, 16),
}
