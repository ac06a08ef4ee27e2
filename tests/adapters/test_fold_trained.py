"""Folding networks that were trained: same scores and same predictions on the whole test set.

Training leaves every gamma positive, so some are made negative and zero first. Float32 may flip a spike
whose membrane is within rounding of the threshold; samples with such an event are counted, and left
out of the comparison of scores. In float64 nothing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

import snn_ext
from snn_ext.norms import FoldedMembraneNorm, MembraneBatchNorm
from tests.property.test_fold import rounding_bound

TRAIN, STEPS, BATCH, CHANNELS = 1000, 3, 50, 8


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    """snnTorch lists every neuron of the process."""
    kept = snn.SpikingNeuron.instances
    snn.SpikingNeuron.instances = []
    yield
    snn.SpikingNeuron.instances = kept


def digits() -> tuple[Tensor, Tensor]:
    """Images [N, 1, 8, 8] in [0, 1], and labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


# --- a SpikingJelly network ------------------------------------------------------------------------------


def sj_node() -> nn.Module:
    return neuron.LIFNode(decay_input=False, v_reset=None, surrogate_function=surrogate.ATan())


class Block(nn.Module):
    """SEW-ResNet's block: two convolutions, batch norms and neurons, and the spikes added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.sn1 = layer.BatchNorm2d(channels), sj_node()
        self.conv2 = layer.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2, self.sn2 = layer.BatchNorm2d(channels), sj_node()

    def forward(self, x: Tensor) -> Tensor:
        out = self.sn1(self.bn1(self.conv1(x)))
        return x + self.sn2(self.bn2(self.conv2(out)))  # type: ignore[no-any-return]


class SEWResNet(nn.Module):
    """A stem, two blocks and a linear layer; [B, 1, 8, 8] repeated over time -> scores [T, B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.sn = (
            layer.Conv2d(1, CHANNELS, 3, padding=1, bias=False),
            layer.BatchNorm2d(CHANNELS),
            sj_node(),
        )
        self.pool = layer.MaxPool2d(2)
        self.block1, self.block2 = Block(CHANNELS), Block(CHANNELS)
        self.flat, self.fc = layer.Flatten(), layer.Linear(16 * CHANNELS, 10)
        functional.set_step_mode(self, "m")

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        spikes = self.sn(self.bn(self.conv(x.expand(STEPS, *x.shape))))
        return self.fc(self.flat(self.block2(self.block1(self.pool(spikes)))))  # type: ignore[no-any-return]


# --- an snnTorch network ---------------------------------------------------------------------------------


class ConvLoop(nn.Module):
    """Two convolutions with neurons, and a last neuron whose membranes are the scores [T, B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, CHANNELS, 3, padding=1), snn.Leaky(beta=0.8)
        self.conv2, self.lif2 = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3), snn.Leaky(beta=0.8, reset_delay=False)
        self.fc = nn.Linear(18 * CHANNELS, 10)
        self.lif3 = snn.Leaky(beta=0.8, reset_mechanism="none")

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        scores = []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.conv1(x), mem1)
            spk2, mem2 = self.lif2(self.conv2(spk1), mem2)
            _, mem3 = self.lif3(self.fc(max_pool2d(spk2, 2).flatten(1)), mem3)
            scores.append(mem3)
        return torch.stack(scores)


# --- train, fold, compare --------------------------------------------------------------------------------


def train(net: nn.Module, x: Tensor, y: Tensor, epochs: int = 4) -> nn.Module:
    optimizer = torch.optim.Adam(snn_ext.param_groups(net, lr=1e-2))
    snn_ext.check_optimizer(net, optimizer)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(net(x[index]).mean(0), y[index]).backward()
            optimizer.step()
    return net


def norms(net: nn.Module) -> list[MembraneBatchNorm]:
    return [m for m in net.modules() if isinstance(m, MembraneBatchNorm)]


def disturb(net: nn.Module) -> int:
    """Turn a quarter of each norm's channels around their mean, and switch one off; returns how many."""
    with torch.no_grad():
        for norm in norms(net):
            assert bool((norm.bn.weight > 0).all()), "training left them positive, so nothing else is tested"
            norm.bn.weight[::4] *= -1
            norm.bn.weight[1] = 0.0
            norm.bn.weight[2] = -0.0
    return sum(int((norm.bn.weight <= 0).sum()) for norm in norms(net))


@dataclass
class Run:
    """Scores [B, 10] of one run, and the samples [B] in which rounding may have decided."""

    net: nn.Module
    x: Tensor
    scores: Tensor = field(init=False)
    near: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.near = torch.zeros(len(self.x), dtype=torch.bool)
        sites = [m for m in self.net.modules() if isinstance(getattr(m, "mpbn", None), MembraneBatchNorm)]
        handles = [site.mpbn.register_forward_hook(self._note(site)) for site in sites]
        with torch.no_grad():
            self.scores = self.net(self.x).mean(0)
        for handle in handles:
            handle.remove()

    def _note(self, site: Any) -> Callable[..., None]:
        theta = site.folded().threshold.double()

        def hook(norm: Any, args: tuple[Tensor], _: Tensor) -> None:
            h = args[0]
            near = (h.double() - theta).abs() <= rounding_bound(h, site.firing_rule().threshold, norm)
            self.near |= near.flatten(1).any(1)

        return hook


NETS: dict[str, Callable[[], nn.Module]] = {"SEW-ResNet": SEWResNet, "snnTorch conv": ConvLoop}


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    """A trained and disturbed net in eval mode, and the images of the test set."""
    torch.manual_seed(0)
    x, y = digits()
    net = NETS[name]()
    snn_ext.patch(net, mpbn=True, example_input=x[:2])
    train(net, x[:TRAIN], y[:TRAIN])
    x, y = x[TRAIN:], y[TRAIN:]
    learnt = Run(net.eval(), x).scores.argmax(1)
    assert (learnt == y).float().mean() > 0.6, "it learnt something"
    assert disturb(net) >= 3 * len(norms(net))
    return net, x


@pytest.mark.parametrize("name", NETS)
def test_a_trained_network_folds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    net, x = prepared(name)
    before = Run(net, x)
    snn_ext.fold(net, example_input=x[:20])
    assert capsys.readouterr().out.startswith(f"folded {5 if name == 'SEW-ResNet' else 3} sites: largest")
    after = Run(net, x)
    clear = ~before.near
    # A sample takes some ten thousand decisions; in one of some hundred samples one is within rounding.
    assert clear.float().mean() > 0.95
    assert len(before.scores.argmax(1).unique()) > 2, "the disturbed net still tells classes apart"
    torch.testing.assert_close(after.scores[clear], before.scores[clear], rtol=0, atol=1e-5)
    assert torch.equal(after.scores.argmax(1), before.scores.argmax(1)), "of all samples"


def test_in_float64_nothing_is_left_out() -> None:
    net, x = prepared("SEW-ResNet")
    net.double()
    before = Run(net, x.double())
    assert not bool(before.near.any())
    snn_ext.fold(net)
    torch.testing.assert_close(Run(net, x.double()).scores, before.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_a_fold_without_the_sign_is_seen(name: str) -> None:
    net, x = prepared(name)
    before = Run(net, x)
    snn_ext.fold(net)
    for module in net.modules():
        if isinstance(module, FoldedMembraneNorm):
            module.sign.abs_()
    wrong = Run(net, x)
    assert float((wrong.scores - before.scores).abs().max()) > 1e-2
    assert not torch.equal(wrong.scores.argmax(1), before.scores.argmax(1))
