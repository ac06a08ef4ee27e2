"""Data sets are read from the formats on the disk, split as said, and never downloaded."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import snn_ext
from tests.recipes import disk

DATA = ("cifar10-dvs", "n-caltech101", "cifar10", "cifar100", "imagenet")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def load(data: str, folder: Path, **changes: Any) -> Any:
    from recipes.data import load as load_split
    from recipes.presets import PRESETS

    preset = next(p for p in PRESETS.values() if p.data == data)
    return load_split(replace(preset, steps=disk.STEPS, **changes), folder)


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("data", DATA)
def test_samples(data: str, folders: dict[str, Path]) -> None:
    split = load(data, folders[data])
    sizes = {"cifar10": (10, 2), "cifar100": (9, 2), "imagenet": (8, 2)}
    assert (len(split.train), len(split.test)) == sizes.get(data, (8, 2))
    assert len(split.classes) == {"cifar10": 10, "cifar100": 100}.get(data, 2)
    sample, label = split.train[(0, 0)]
    shapes = {"imagenet": (3, 224, 224), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
    assert sample.shape == shapes.get(data, (2, 2, 48, 48))
    assert sample.dtype == torch.float32
    assert 0 <= label < len(split.classes)


def test_cifar_pixels_and_labels(folders: dict[str, Path]) -> None:
    split = load("cifar10", folders["cifar10"])
    image, label = split.test[(0, 1)]
    raw = disk.pixels(2, 5)[1].reshape(3, 32, 32) / 255
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    wanted = (raw - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(image, torch.tensor(wanted, dtype=torch.float32), rtol=1e-5, atol=1e-5)
    assert label == 8


def test_frames_are_the_files(folders: dict[str, Path]) -> None:
    split = load("cifar10-dvs", folders["cifar10-dvs"], size=128)
    frames, label = split.test[(0, 1)]
    counts = np.random.default_rng(1007).poisson(0.5, (2, 2, 128, 128))
    assert torch.equal(frames, torch.tensor(counts, dtype=torch.float32))
    assert split.classes[label] == "automobile"


def test_split_of_cifar10_dvs(folders: dict[str, Path]) -> None:
    """By the number in the name; links that SpikingJelly's TEBN split leaves are no classes."""
    folder = folders["cifar10-dvs"]
    split = load("cifar10-dvs", folder)
    assert [name.rpartition("_")[2] for name in split.test.part.names] == ["7.npz"] * 2
    assert not set(split.train.part.names) & set(split.test.part.names)
    links = folder / f"frames_number_{disk.STEPS}_split_by_number" / "train" / "airplane"
    links.mkdir(parents=True)
    try:
        (links / "cifar10_airplane_100.npz").symlink_to(
            folder / f"frames_number_{disk.STEPS}_split_by_number/airplane/cifar10_airplane_100.npz"
        )
        again = load("cifar10-dvs", folder)
    finally:
        shutil.rmtree(links.parent)
    assert (again.digest, again.classes) == (split.digest, split.classes)


def test_split_of_n_caltech101(folders: dict[str, Path]) -> None:
    split = load("n-caltech101", folders["n-caltech101"])
    assert [Path(name).name for name in split.test.part.names] == ["image_0005.npz"] * 2


def test_digest_is_that_of_names_and_labels(folders: dict[str, Path], tmp_path: Path) -> None:
    split = load("imagenet", folders["imagenet"])
    lines = []
    for title, folder in (("train", "train"), ("test", "val")):
        for label, name in enumerate(sorted(p.name for p in (folders["imagenet"] / folder).iterdir())):
            for file in sorted((folders["imagenet"] / folder / name).iterdir()):
                lines.append(f"{title}\t{name}/{file.name}\t{label}\n")
    assert split.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
    shutil.copytree(folders["imagenet"], tmp_path / "copy")
    assert load("imagenet", tmp_path / "copy").digest == split.digest
    next((tmp_path / "copy" / "train").glob("*/*_2.JPEG")).unlink()
    assert load("imagenet", tmp_path / "copy").digest != split.digest


# ---------------------------------------------------------------- augmentation


@pytest.mark.parametrize("data", DATA)
def test_augmentation_depends_on_seed_epoch_and_sample_alone(data: str, folders: dict[str, Path]) -> None:
    train, other = load(data, folders[data]).train, load(data, folders[data], seed=77).train
    first = train[(3, 1)][0]
    before, generator = random.getstate(), torch.get_rng_state()
    torch.rand(3)
    _ = train[(3, 2)], train[(0, 0)]
    assert torch.equal(train[(3, 1)][0], first)
    torch.set_rng_state(generator)
    _ = train[(3, 1)]
    assert torch.equal(torch.get_rng_state(), generator), "the network's own random numbers go on"
    assert random.getstate() == before
    assert not all(torch.equal(train[(epoch, 1)][0], first) for epoch in range(4, 10))
    assert not all(torch.equal(other[(epoch, 1)][0], train[(epoch, 1)][0]) for epoch in range(6))


def test_all_steps_of_a_sample_are_cropped_alike(tmp_path: Path) -> None:
    """Equal frames stay equal; the twin: they are not what is in the file."""
    path = tmp_path / f"frames_number_{disk.STEPS}_split_by_number"
    one = np.random.default_rng(0).poisson(1, (1, 2, 48, 48)).repeat(disk.STEPS, 0)
    for name in disk.CLASSES:
        for i in (7, 100):
            (path / name).mkdir(parents=True, exist_ok=True)
            np.savez(path / name / f"cifar10_{name}_{i}.npz", frames=one)
    train = load("cifar10-dvs", tmp_path).train
    seen = [train[(epoch, 0)][0] for epoch in range(5)]
    assert all(torch.equal(frames[0], frames[1]) for frames in seen)
    assert any(not torch.equal(frames[0], torch.tensor(one[0]).float()) for frames in seen)


def test_cutout() -> None:
    from recipes.augment import Cutout

    for _ in range(50):
        holes = Cutout(16)(torch.ones(3, 32, 32)) == 0
        assert torch.equal(holes[0], holes[2])
        rows, columns = holes[0].any(1).sum(), holes[0].any(0).sum()
        assert 8 <= rows <= 16
        assert 8 <= columns <= 16
        assert holes[0].sum() == rows * columns


# ---------------------------------------------------------------- events


def test_spikingjelly_makes_frames_of_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; the second time they are on the disk."""
    events = {}
    for c, name in enumerate(disk.CLASSES):
        (tmp_path / "events_np" / name).mkdir(parents=True)
        for i in (7, 100):
            found = disk.random_events(41, 10 * c + i, 128, 128)
            x, y, t, p = np.array(found).T
            np.savez(tmp_path / "events_np" / name / f"cifar10_{name}_{i}.npz", x=x, y=y, t=t, p=p)
            events[name, i] = found
    if "torchaudio" not in sys.modules:
        # of no use here, but imported by the package; fails where it does not fit torch to the last digit
        monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    for _ in range(2):
        split = load("cifar10-dvs", tmp_path, size=128, augmentation=())
        frames, _ = split.train[(0, 1)]
        wanted = disk.counted(events["automobile", 100], disk.STEPS, 128, 128, rest=True)
        assert torch.equal(frames, torch.tensor(wanted))
        shutil.rmtree(tmp_path / "events_np", ignore_errors=True)


def test_events_where_spikingjelly_cannot_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events_np").mkdir()
    monkeypatch.setitem(sys.modules, "spikingjelly.datasets", None)
    with pytest.raises(snn_ext.OptionError, match=r"(?s)CIFAR10DVS\(.*frames_number=2, split_by='number'"):
        load("cifar10-dvs", tmp_path)


def test_tonic_reads_n_caltech101(tmp_path: Path) -> None:
    pytest.importorskip("tonic", reason="tonic is not installed")
    events = {}
    for name in ("zebra", "accordion"):
        for i in range(1, 4):
            events[name, i] = disk.random_events(31, i, 240, 180)
            disk.atis(tmp_path / f"NCALTECH101/Caltech101/{name}/image_{i:04}.bin", events[name, i])
    split = load("n-caltech101", tmp_path, augmentation=(), size=180)
    assert split.classes == ("accordion", "zebra")
    assert split.train.part.names[0] == "Caltech101/accordion/image_0001.bin"
    assert [Path(name).stem for name in split.test.part.names] == ["image_0003"] * 2
    part = split.train.part
    frames = part.source[part.indices[3]][0]  # before it is resized
    assert np.array_equal(frames, disk.counted(events["zebra", 2], disk.STEPS, 240, 180, rest=False))
    sample, label = split.train[(0, 3)]
    assert (sample.shape, label) == ((2, 2, 180, 180), 1)


def test_tonic_reads_cifar10_dvs(tmp_path: Path) -> None:
    pytest.importorskip("tonic", reason="tonic is not installed")
    pytest.importorskip("aedat", reason="aedat is not installed")
    events = {}
    for name in disk.CLASSES:
        for i in (7, 100):
            events[name, i] = disk.random_events(31, i, 128, 128)
            disk.aedat4(tmp_path / f"CIFAR10DVS/{name}/cifar10_{name}_{i}.aedat4", events[name, i])
    split = load("cifar10-dvs", tmp_path, augmentation=(), size=128)
    assert split.test.part.names == [f"{name}/cifar10_{name}_7.aedat4" for name in disk.CLASSES]
    wanted = disk.counted(events["automobile", 100], disk.STEPS, 128, 128, rest=False)
    sample, label = split.train[(0, 1)]
    assert torch.equal(sample, torch.tensor(wanted))
    assert split.classes[label] == "automobile"


def test_without_tonic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.atis(tmp_path / "NCALTECH101/Caltech101/zebra/image_0001.bin", [(0, 0, 0, 1)])
    monkeypatch.setitem(sys.modules, "tonic", None)
    with pytest.raises(snn_ext.OptionError, match=r"do: pip install tonic$"):
        load("n-caltech101", tmp_path)


def test_without_what_tonic_reads_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tonic", reason="tonic is not installed")
    disk.aedat4(tmp_path / "CIFAR10DVS/airplane/cifar10_airplane_7.aedat4", [(0, 0, 0, 1)])
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(snn_ext.OptionError, match=r"do: pip install tonic aedat$"):
        load("cifar10-dvs", tmp_path)


# ---------------------------------------------------------------- nothing there


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("cifar10-dvs", "frames_number_2_split_by_number/<class>/<sample>.npz"),
        ("n-caltech101", "NCALTECH101/Caltech101/*/*.bin"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("imagenet", "train/<class>/<image>.JPEG"),
    ],
)
def test_an_empty_folder(data: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(snn_ext.OptionError) as error:
        load(data, tmp_path)
    assert f"{tmp_path}/{expected}" in str(error.value)
    assert "--data FOLDER" in error.value.do
    assert not list(tmp_path.iterdir()), "nothing was made there"


def test_folders_without_samples(tmp_path: Path) -> None:
    (tmp_path / f"frames_number_{disk.STEPS}_split_by_number" / "airplane").mkdir(parents=True)
    with pytest.raises(snn_ext.OptionError, match=r"airplane.*\.npz"):
        load("cifar10-dvs", tmp_path)


def test_other_classes_in_val(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["imagenet"], tmp_path / "copy")
    (tmp_path / "copy/val/n01440764").rename(tmp_path / "copy/val/n99999999")
    with pytest.raises(snn_ext.OptionError, match="train and val have other classes"):
        load("imagenet", tmp_path / "copy")


def test_a_sample_without_number(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["cifar10-dvs"], tmp_path / "copy")
    file = next((tmp_path / "copy").glob("*/airplane/*_100.npz"))
    file.rename(file.with_name("airplane.npz"))
    with pytest.raises(snn_ext.OptionError, match="no number in its name"):
        load("cifar10-dvs", tmp_path / "copy")


def test_images_are_read_as_images(folders: dict[str, Path]) -> None:
    """ImageNet's test images: the middle of the resized image, as large as said."""
    split = load("imagenet", folders["imagenet"], size=56)
    image, _ = split.test[(0, 0)]
    path = next((folders["imagenet"] / "val/n01440764").iterdir())
    with Image.open(path) as raw:  # 80 x 60 -> 85 x 64 -> its middle
        resized = raw.resize((85, 64), Image.Resampling.BILINEAR).crop((14, 4, 70, 60))
    pixels = torch.tensor(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (pixels - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(image, wanted, rtol=1e-5, atol=1e-5)
