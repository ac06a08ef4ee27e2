"""Event data: SpikingJelly's folders of frames or events, or the files that tonic reads."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import DatasetFolder

import snn_ext
from recipes.folders import Part, missing
from recipes.tonic_files import has_tonic_files, tonic_layout, tonic_part


class _FrameFolder(DatasetFolder):
    """Frames by class. SpikingJelly's TEBN split leaves links to the same files beside the classes."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = [name for name in super().find_classes(directory)[0] if name not in ("train", "test")]
        return classes, {name: i for i, name in enumerate(classes)}


def cifar10_dvs(folder: Path, steps: int) -> tuple[Part, Part, Sequence[str]]:
    """CIFAR10-DVS: samples 0 to 99 of every class, by the number in the file's name, are the test set."""
    part, classes = _read("CIFAR10DVS", "CIFAR10-DVS", folder, steps)
    held_out = [_number(name) < 100 for name in part.names]
    return part.only([not test for test in held_out]), part.only(held_out), classes


def _number(name: str) -> int:
    found = re.search(r"(\d+)\.\w+$", name)
    if found is None:
        raise missing("CIFAR10-DVS", Path(name), [], "the file has no number in its name")
    return int(found[1])


def n_caltech101(folder: Path, steps: int) -> tuple[Part, Part, Sequence[str]]:
    """N-Caltech101: the last tenth of every class, but one sample at least, is the test set."""
    part, classes = _read("NCaltech101", "N-Caltech101", folder, steps)
    held_out = [False] * len(part.labels)
    for label in range(len(classes)):
        members = [i for i, of in enumerate(part.labels) if of == label]
        for i in members[-max(len(members) // 10, 1) :]:
            held_out[i] = True
    return part.only([not test for test in held_out]), part.only(held_out), classes


def _read(data: str, what: str, folder: Path, steps: int) -> tuple[Part, Sequence[str]]:
    """Frames if they are there, else made from events if those are there, else by tonic.

    Args:
        data: the name of SpikingJelly's class.
    """
    frames = folder / f"frames_number_{steps}_split_by_number"
    if frames.is_dir():
        return _frames(frames, what)
    if (folder / "events_np").is_dir():  # without, SpikingJelly would start to download
        _integrate(data, folder, steps)
        return _frames(frames, what)
    if has_tonic_files(data, folder):
        return tonic_part(data, folder, steps)
    layout = [
        f"{frames.name}/<class>/<sample>.npz   frames, as SpikingJelly keeps them, or",
        "events_np/<class>/<sample>.npz   its events, from which frames are made once, or",
        f"{tonic_layout(data)}   the files that tonic reads",
    ]
    raise missing(what, folder, layout, "it has neither frames nor events")


def _integrate(data: str, folder: Path, steps: int) -> None:
    """Let SpikingJelly make frames of its events; they stay on the disk."""
    try:
        module = importlib.import_module("spikingjelly.datasets")
    except (
        ImportError,
        RuntimeError,
        OSError,
    ) as error:  # torchaudio has to fit torch exactly
        raise snn_ext.OptionError(
            "SpikingJelly cannot make frames of these events here.",
            where=str(folder / "events_np"),
            why=f"importing spikingjelly.datasets fails: {error}",
            do=f"install what is missing, or make the frames elsewhere: {data}({str(folder)!r},"
            f" data_type='frame', frames_number={steps}, split_by='number')",
        ) from error
    getattr(module, data)(str(folder), data_type="frame", frames_number=steps, split_by="number")


def _frames(folder: Path, what: str) -> tuple[Part, Sequence[str]]:
    try:
        source = _FrameFolder(str(folder), loader=_counts, extensions=(".npz",))
    except FileNotFoundError as error:
        raise missing(what, folder, ["<class>/<sample>.npz"], str(error)) from error
    names = [Path(path).relative_to(folder).as_posix() for path, _ in source.samples]
    return Part(source, range(len(names)), names, source.targets), source.classes


def _counts(path: str) -> NDArray[np.float32]:
    """Events per step, polarity and pixel, [T, 2, H, W], as SpikingJelly keeps them."""
    with np.load(path) as file:
        return np.asarray(file["frames"], dtype=np.float32)
