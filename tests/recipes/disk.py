"""Small data sets in the formats of the real ones, written byte by byte and not by what reads them."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("airplane", "automobile")
STEPS = 2
TRAIN = 4  # per class


def is_there(path: str | os.PathLike[str], md5: str | None = None) -> bool:
    return Path(path).is_file()


def write_all(folder: Path) -> dict[str, Path]:
    writers = {
        "cifar10-dvs": cifar10_dvs,
        "n-caltech101": n_caltech101,
        "imagenet": imagenet,
        "cifar10": cifar10,
        "cifar100": cifar100,
    }
    for name, writer in writers.items():
        writer(folder / name)
    return {name: folder / name for name in writers}


def frames(path: Path, seed: int, height: int = 128, width: int = 128, steps: int = STEPS) -> None:
    """Counts of events per step, polarity and pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = np.random.default_rng(seed).poisson(0.5, (steps, 2, height, width))
    np.savez(path, frames=counts.astype(np.float64))


def cifar10_dvs(folder: Path) -> None:
    """Sample 7 of every class belongs to the test set, those from 100 on to the training set."""
    for c, name in enumerate(CLASSES):
        for i in (7, *range(100, 100 + TRAIN)):
            frames(
                folder / f"frames_number_{STEPS}_split_by_number/{name}/cifar10_{name}_{i}.npz", 1000 * c + i
            )


def n_caltech101(folder: Path) -> None:
    for c, name in enumerate(("BACKGROUND_Google", "accordion")):
        for i in range(1, TRAIN + 2):
            path = folder / f"frames_number_{STEPS}_split_by_number/{name}/image_{i:04}.npz"
            frames(path, 1000 * c + i, 180, 240)


def imagenet(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("n01440764", "n01443537"):
        for part, count in (("train", TRAIN), ("val", 1)):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (60 + i, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{name}_{i}.JPEG")


def cifar10(folder: Path) -> None:
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for i, name in enumerate((*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")):
        dump(base / name, {"data": pixels(2, i), "labels": [i % 10, (i + 3) % 10]})
    dump(base / "batches.meta", {"label_names": [str(n) for n in range(10)]})


def cifar100(folder: Path) -> None:
    base = folder / "cifar-100-python"
    base.mkdir(parents=True)
    for name, count in (("train", 9), ("test", 2)):
        labels = [(11 * n) % 100 for n in range(count)]
        dump(base / name, {"data": pixels(count, count), "fine_labels": labels, "coarse_labels": labels})
    dump(base / "meta", {"fine_label_names": [str(n) for n in range(100)]})


def pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)


def dump(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


Event = tuple[int, int, int, int]  # x, y, t, p


def atis(path: Path, events: Sequence[Event]) -> None:
    """N-Caltech101's own format: five bytes an event, x, y, polarity and 23 bits of microseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes((x, y)) + (p << 23 | t).to_bytes(3) for x, y, t, p in events))


_STREAM = b"""<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">
<node name="0" path="/mainloop/Recorder/outInfo/0/"><attr key="compression" type="string">NONE</attr>
<attr key="typeIdentifier" type="string">EVTS</attr>
<node name="info" path="/mainloop/Recorder/outInfo/0/info/">
<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr></node></node></node></dv>"""


def aedat4(path: Path, events: Sequence[Event]) -> None:
    """CIFAR10-DVS as tonic has it: a magic line, a header, and one packet for stream 0, both FlatBuffers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a table's layout: sizes of layout and table, then where each field is; the header's third is its text
    text = struct.pack("<I", len(_STREAM)) + _STREAM + b"\0"
    header = struct.pack("<I4s5HxxiI", 20, b"IOHE", 10, 8, 0, 0, 4, 12, 4) + text
    items = b"".join(struct.pack("<qhhB3x", t, x, y, p) for x, y, t, p in events)
    packet = struct.pack("<I4s3HxxiI4xI", 16, b"EVTS", 6, 8, 4, 8, 8, len(events)) + items
    header, packet = (struct.pack("<I", len(part)) + part for part in (header, packet))
    path.write_bytes(b"#!AER-DAT4.0\r\n" + header + struct.pack("<ii", 0, len(packet)) + packet)


def random_events(count: int, seed: int, width: int, height: int) -> list[Event]:
    """In the order of time; some pixel in each corner, so that offsets are zero."""
    draw = np.random.default_rng(seed)
    times = np.sort(draw.choice(100_000, count, replace=False))
    x, y, p = draw.integers(0, width, count), draw.integers(0, height, count), draw.integers(0, 2, count)
    x[0] = y[0] = 0
    return [tuple(map(int, event)) for event in zip(x, y, times, p, strict=True)]  # type: ignore[misc]


def counted(events: Sequence[Event], steps: int, width: int, height: int, *, rest: bool) -> np.ndarray:
    """What frames of equally many events are, by definition: [T, 2, H, W]; the `rest` of the division is
    in the last frame (SpikingJelly) or left out (tonic)."""
    found = np.zeros((steps, 2, height, width), dtype=np.float32)
    each = len(events) // steps
    for i, (x, y, _, p) in enumerate(events if rest else events[: steps * each]):
        found[min(i // each, steps - 1), p, y, x] += 1
    return found
