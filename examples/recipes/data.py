"""The data sets, from folders that you have: nothing is downloaded.

Every reader returns samples and labels of a training and a test set; `load` adds augmentation, and a hash of
which files and labels are in which set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets as tv

from recipes.augment import pipeline
from recipes.events import cifar10_dvs, n_caltech101
from recipes.folders import Part, Source, missing
from recipes.presets import Preset


class Samples(Dataset[tuple[Tensor, int]]):
    """Samples of one part, augmented. An item is (epoch, index): its random numbers depend on nothing else,
    so that a run may be continued anywhere, with any number of workers."""

    def __init__(self, part: Part, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.part, self.transform, self.seed = part, transform, seed

    def __len__(self) -> int:
        return len(self.part.indices)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = item
        position = self.part.indices[index]
        with _drawing_from(f"{self.seed} {epoch} {position}"):
            return self.transform(self.part.source[position][0]), self.part.labels[index]


@contextmanager
def _drawing_from(text: str) -> Iterator[None]:
    """Random numbers of the CPU from a seed of their own; afterwards the generators go on as before."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds CUDA too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


@dataclass(frozen=True)
class Split:
    """What to train and to test on.

    Attributes:
        classes: names, in the order of the labels.
        digest: sha256 over names and labels of both parts, in order; equal digests, equal splits.
    """

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    digest: str


def load(preset: Preset, folder: Path) -> Split:
    """The preset's data set from `folder`.

    Raises:
        OptionError: the folder does not hold it; says what is expected where.
    """
    train, test, classes = READERS[preset.data](folder, preset.steps)
    seed = preset.seed
    return Split(
        Samples(train, pipeline(preset, train=True), seed),
        Samples(test, pipeline(preset, train=False), seed),
        tuple(classes),
        digest(train, test),
    )


def digest(train: Part, test: Part) -> str:
    """sha256 over the ordered file names and labels of both parts."""
    sha = hashlib.sha256()
    for title, part in (("train", train), ("test", test)):
        for name, label in zip(part.names, part.labels, strict=True):
            sha.update(f"{title}\t{name}\t{label}\n".encode())
    return sha.hexdigest()


Reader = Callable[[Path, int], tuple[Part, Part, Sequence[str]]]


def _cifar(cls: type[tv.CIFAR10], classes: int) -> Reader:
    def read(folder: Path, steps: int) -> tuple[Part, Part, Sequence[str]]:
        try:
            train, test = cls(str(folder), train=True), cls(str(folder), train=False)
        except RuntimeError as error:
            raise missing(
                f"CIFAR-{classes}, the Python version as torchvision reads it",
                folder,
                [f"{cls.base_folder}/{name}" for name, _ in (*cls.train_list, *cls.test_list)],
                str(error),
            ) from error
        return _pickled(train), _pickled(test), train.classes

    return read


def _pickled(source: tv.CIFAR10) -> Part:
    everything = range(len(source.targets))
    return Part(source, everything, [str(i) for i in everything], source.targets)


def _imagenet(folder: Path, steps: int) -> tuple[Part, Part, Sequence[str]]:
    layout = ["train/<class>/<image>.JPEG", "val/<class>/<image>.JPEG"]
    what = "ImageNet (ILSVRC 2012), one folder per class"
    try:
        train, test = tv.ImageFolder(str(folder / "train")), tv.ImageFolder(str(folder / "val"))
    except FileNotFoundError as error:
        raise missing(what, folder, layout, str(error)) from error
    if train.classes != test.classes:
        raise missing(what, folder, layout, "train and val have other classes")
    return _images(train), _images(test), train.classes


def _images(source: tv.ImageFolder) -> Part:
    root = Path(source.root)
    names = [Path(path).relative_to(root).as_posix() for path, _ in source.samples]
    return Part(source, range(len(names)), names, source.targets)


READERS: dict[str, Reader] = {
    "cifar10-dvs": cifar10_dvs,
    "n-caltech101": n_caltech101,
    "cifar10": _cifar(tv.CIFAR10, 10),
    "cifar100": _cifar(tv.CIFAR100, 100),
    "imagenet": _imagenet,
}

__all__ = ["READERS", "Samples", "Source", "Split", "digest", "load"]
