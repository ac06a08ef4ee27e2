"""From what the files hold to what the network sees: by name, for training and for testing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from recipes.presets import Preset

# mean and standard deviation of the training images' channels, as usual for these data sets
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Cutout(nn.Module):
    """A square of zeros around a random pixel; it may stick out of the image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        top, left = max(y - self.size // 2, 0), max(x - self.size // 2, 0)
        image = image.clone()
        image[..., top : y + self.size // 2, left : x + self.size // 2] = 0
        return image


_ON_IMAGES: dict[str, Callable[[int], nn.Module]] = {
    "crop, padding 4": lambda size: v2.RandomCrop(size, padding=4),
    "flip": lambda size: v2.RandomHorizontalFlip(),
    "random resized crop": lambda size: v2.RandomResizedCrop(size),
    "autoaugment": lambda size: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
}
_ON_NORMALISED: dict[str, Callable[[int], nn.Module]] = {"cutout": lambda size: Cutout(16)}


class Frames(nn.Module):
    """Event frames as an array -> float32 tensor [T, 2, size, size], resized."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, frames: Any) -> Tensor:
        tensor = torch.as_tensor(frames, dtype=torch.float32)
        return v2.functional.resize(tensor, [self.size, self.size], InterpolationMode.BILINEAR)


def pipeline(preset: Preset, train: bool) -> v2.Compose:
    """What is done to one sample; all its time steps are cropped and flipped alike."""
    chosen = preset.augmentation if train else ()
    spatial = _chosen(_ON_IMAGES, chosen, preset.size)
    if preset.coding == "frames":
        return v2.Compose([Frames(preset.size), *spatial])
    if not train and preset.data == "imagenet":
        spatial = [v2.Resize(round(preset.size * 256 / 224)), v2.CenterCrop(preset.size)]
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*_STATISTICS[preset.data])]
    after = _chosen(_ON_NORMALISED, chosen, preset.size)
    return v2.Compose([*spatial, *tensor, v2.ToPureTensor(), *after])


def _chosen(known: dict[str, Callable[[int], nn.Module]], names: Sequence[str], size: int) -> list[nn.Module]:
    return [known[name](size) for name in names if name in known]


def sequence(preset: Preset, batch: Tensor) -> Tensor:
    """A batch as the network wants it, [T, B, C, H, W].

    ``"frames"``: of [B, T, ...]. ``"direct"``: the image at every step. ``"poisson"``: BNTT's ternary spikes,
    sign(x) with probability min(1, abs(x) / 2), drawn anew at every step, also in evaluation.
    """
    if preset.coding == "frames":
        return batch.transpose(0, 1)
    images = batch.expand(preset.steps, *batch.shape)
    if preset.coding == "direct":
        return images
    return images.sign() * (2 * torch.rand_like(images) <= images.abs())
