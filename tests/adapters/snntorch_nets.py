"""The snnTorch networks that patching must leave alone, and one way to run each of them.

The shapes of T5, T6, T6s, REG1 and STM are facts from snnTorch's tutorials; every size is an argument,
so that tests can run them small. `CASES` holds a small instance of each, driven strongly enough to make
every layer fire: an equality between silent networks proves nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CASES", "REG1", "T5", "T6", "Case", "LayerLog", "play", "private_instances", "stm", "t6s"]


class T5(nn.Module):
    """Two dense layers, static input [B, inputs], the time loop in forward, returns recordings.

    `start` is how the loop begins: ``"init_leaky"``, ``"zeros"``, or ``"reset_mem"``, which never
    passes a membrane although ``init_hidden=False``.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden: int = 1000,
        classes: int = 10,
        steps: int = 25,
        start: str = "init_leaky",
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.lif1 = snn.Leaky(beta=0.95)
        self.fc2 = nn.Linear(hidden, classes)
        self.lif2 = snn.Leaky(beta=0.95)
        self.steps, self.start = steps, start

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self._begin(x)
        spikes, membranes = [], []
        for _ in range(self.steps):
            if self.start == "reset_mem":
                spk1, _ = self.lif1(self.fc1(x))
                spk2, mem2 = self.lif2(self.fc2(spk1))
            else:
                spk1, mem1 = self.lif1(self.fc1(x), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)

    def _begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.start == "zeros":
            return x.new_zeros(x.size(0), self.fc1.out_features), x.new_zeros(
                x.size(0), self.fc2.out_features
            )
        if self.start == "init_leaky":
            return self.lif1.init_leaky(), self.lif2.init_leaky()
        return self.lif1.reset_mem(), self.lif2.reset_mem()


def _conv_out(size: int) -> int:
    return ((size - 4) // 2 - 4) // 2


class T6(nn.Module):
    """Convolutional, static input [B, 1, size, size], the time loop in forward."""

    def __init__(self, c1: int = 12, c2: int = 64, size: int = 28, steps: int = 50) -> None:
        super().__init__()
        bump = surrogate.fast_sigmoid(slope=25)
        self.conv1 = nn.Conv2d(1, c1, 5)
        self.lif1 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.conv2 = nn.Conv2d(c1, c2, 5)
        self.lif2 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.fc1 = nn.Linear(c2 * _conv_out(size) ** 2, 10)
        self.lif3 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.steps = steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes, membranes = [], []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(F.max_pool2d(self.conv1(x), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.flatten(1)), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


def t6s(c1: int = 12, c2: int = 64, size: int = 28) -> nn.Sequential:
    """The layers of T6 as a Sequential of one step: ``init_hidden=True``, the last ``output=True``."""
    bump = surrogate.fast_sigmoid(slope=25)
    return nn.Sequential(
        nn.Conv2d(1, c1, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.5, spike_grad=bump, init_hidden=True),
        nn.Conv2d(c1, c2, 5),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.5, spike_grad=bump, init_hidden=True),
        nn.Flatten(),
        nn.Linear(c2 * _conv_out(size) ** 2, 10),
        snn.Leaky(beta=0.5, spike_grad=bump, init_hidden=True, output=True),
    )


class REG1(nn.Module):
    """Regression on a sequence [T, B, 1]: vector, learnable beta, vector thresholds, a last layer
    without reset."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(1, hidden)
        self.lif1 = snn.Leaky(beta=torch.rand(hidden), threshold=torch.rand(hidden), learn_beta=True)
        self.fc2 = nn.Linear(hidden, hidden)
        self.lif2 = snn.Leaky(beta=torch.rand(hidden), threshold=torch.rand(hidden), learn_beta=True)
        self.fc3 = nn.Linear(hidden, 1)
        self.lif3 = snn.Leaky(beta=torch.rand(1), learn_beta=True, reset_mechanism="none")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes, membranes = [], []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


def stm(c1: int = 32, c2: int = 64) -> nn.Sequential:
    """The event-camera net: one step takes [B, 2, 10, 10]."""
    return nn.Sequential(
        nn.Conv2d(2, c1, 4),
        snn.Leaky(beta=0.95, init_hidden=True),
        nn.Conv2d(c1, c2, 3),
        snn.Leaky(beta=0.95, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(c2 * 4, 10),
        snn.Leaky(beta=0.95, init_hidden=True, output=True),
    )


def play(net: nn.Module, sequence: Tensor) -> tuple[Tensor, Tensor]:
    """The outer loop of nets of one step: ``utils.reset``, then every step of [T, B, ...]."""
    utils.reset(net)
    spikes, membranes = zip(*(net(x) for x in sequence), strict=True)
    return torch.stack(spikes), torch.stack(membranes)


def _call(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    spikes, membranes = net(x)
    return spikes, membranes


@dataclass(frozen=True)
class Case:
    """A small instance of a net: `fresh` makes it, `run` runs it on a `batch`, `example` patches it.

    Inputs are scaled by `scale`; spikes are not, so the weights behind the first neuron are, by `gain`.
    """

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    shape: Callable[[int], tuple[int, ...]]
    scale: float
    gain: float = 1.0

    def fresh(self) -> nn.Module:
        """A new net; seed before it for equal weights."""
        net = self.build()
        layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        with torch.no_grad():
            for layer in layers[1:]:
                layer.weight.mul_(self.gain)
        return net

    def batch(self, size: int) -> Tensor:
        """Random input for `size` samples."""
        return torch.randn(self.shape(size)) * self.scale

    def example(self, batch: Tensor) -> Tensor:
        """What ``net(...)`` takes: a batch, or its first step where the loop is outside."""
        return batch[0] if self.run is play else batch


def _t5(start: str) -> Case:
    return Case(lambda: T5(30, 40, 10, 8, start), _call, lambda b: (b, 30), 5.0, 2.0)


CASES: dict[str, Case] = {
    "T5-init_leaky": _t5("init_leaky"),
    "T5-zeros": _t5("zeros"),
    "T5-reset_mem": _t5("reset_mem"),
    "T6": Case(lambda: T6(4, 8, 20, 6), _call, lambda b: (b, 1, 20, 20), 5.0, 4.0),
    "T6s": Case(lambda: t6s(4, 8, 20), play, lambda b: (6, b, 1, 20, 20), 5.0, 4.0),
    "REG1": Case(lambda: REG1(16), _call, lambda b: (10, b, 1), 5.0, 5.0),
    "STM": Case(lambda: stm(4, 6), play, lambda b: (7, b, 2, 10, 10), 10.0, 2.0),
}


class LayerLog:
    """Spikes and membrane of every neuron at every step, by module name: hidden layers included."""

    def __init__(self, net: nn.Module) -> None:
        self.spikes: dict[str, list[Tensor]] = {}
        self.membranes: dict[str, list[Tensor]] = {}
        for name, module in net.named_modules():
            if isinstance(module, snn.SpikingNeuron):
                module.register_forward_hook(self._note(name))

    def _note(self, name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, _: object, output: object) -> None:
            spikes = output[0] if isinstance(output, tuple) else output
            self.spikes.setdefault(name, []).append(spikes.detach().clone())
            self.membranes.setdefault(name, []).append(module.mem.detach().clone())

        return hook

    def rates(self) -> dict[str, float]:
        """Share of spikes per neuron layer, over all steps and samples."""
        return {
            name: sum(s.sum().item() for s in steps) / sum(s.numel() for s in steps)
            for name, steps in self.spikes.items()
        }


@contextlib.contextmanager
def private_instances() -> Iterator[None]:
    """snnTorch lists every neuron of the process, and ``utils.reset`` walks that list: keep the neurons
    of one test (half-built and broken ones too) out of all others."""
    kept = snn.SpikingNeuron.instances
    snn.SpikingNeuron.instances = []
    try:
        yield
    finally:
        snn.SpikingNeuron.instances = kept
