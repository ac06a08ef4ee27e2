"""The data, and two ordinary spiking networks, with or without batch norms. Nothing here knows snn-ext."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import snntorch as snn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

STEPS = 4
"""T: how many time steps each image is shown."""


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] in 0..1 and labels [N], split once: the seeds vary the training, not the data."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(train: int = 1257, test: int = 540) -> Digits:
    """scikit-learn's 1,797 handwritten digits; fewer for a quick look. The split is stratified and fixed."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    first, second = train_test_split(
        range(len(labels)), train_size=train, test_size=test, stratify=labels, random_state=0
    )
    return Digits(images[first], labels[first], images[second], labels[second])


class SpikingJellyNet(nn.Module):
    """Convolutional; multi-step mode: every layer sees the whole sequence [T, B, ...]."""

    def __init__(
        self,
        channels: int = 16,
        node: Callable[..., nn.Module] = neuron.IFNode,
        *,
        batch_norms: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = layer.Conv2d(1, channels, 3, padding=1)
        self.bn1 = layer.BatchNorm2d(channels) if batch_norms else nn.Identity()
        self.sn1 = node(surrogate_function=surrogate.ATan())
        self.pool = layer.MaxPool2d(2)
        self.conv2 = layer.Conv2d(channels, 2 * channels, 3, padding=1)
        self.bn2 = layer.BatchNorm2d(2 * channels) if batch_norms else nn.Identity()
        self.sn2 = node(surrogate_function=surrogate.ATan())
        self.flatten = layer.Flatten()
        self.head = layer.Linear(2 * channels * 4 * 4, 10)
        functional.set_step_mode(self, "m")

    def forward(self, images: Tensor) -> Tensor:
        """Scores [T, B, 10] of images [B, 1, 8, 8], shown T times."""
        x = images.expand(STEPS, *images.shape)
        x = self.pool(self.sn1(self.bn1(self.conv1(x))))
        x = self.sn2(self.bn2(self.conv2(x)))
        scores: Tensor = self.head(self.flatten(x))
        return scores


class SnnTorchNet(nn.Module):
    """Fully connected, leaky; written as snnTorch's tutorials do, with a time loop of its own."""

    def __init__(self, beta: float = 0.9, *, batch_norms: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.bn1 = nn.BatchNorm1d(128) if batch_norms else nn.Identity()
        self.lif1 = snn.Leaky(beta=beta)
        self.fc2 = nn.Linear(128, 64)
        self.bn2 = nn.BatchNorm1d(64) if batch_norms else nn.Identity()
        self.lif2 = snn.Leaky(beta=beta)
        self.fc3 = nn.Linear(64, 10)
        self.lif3 = snn.Leaky(beta=beta, reset_mechanism="none")  # its membrane is the score

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Recordings (spikes, membranes) [T, B, 10] of images [B, 1, 8, 8]."""
        x = images.flatten(1)
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk_rec, mem_rec = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.bn1(self.fc1(x)), mem1)
            spk2, mem2 = self.lif2(self.bn2(self.fc2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec), torch.stack(mem_rec)


NETWORKS: dict[str, type[nn.Module]] = {"SpikingJelly": SpikingJellyNet, "snnTorch": SnnTorchNet}
