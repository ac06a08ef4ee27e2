"""Event files that tonic reads, as frames, made anew each time: slower than SpikingJelly's folders."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import snn_ext
from recipes.folders import Part, missing

# the framework's class -> tonic's; where its files are, as tonic unpacks them; (width, height, polarities)
_SETS: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "CIFAR10DVS": ("CIFAR10DVS", "*/*.aedat4", (128, 128, 2)),
    "NCaltech101": ("NCALTECH101", "Caltech101/*/*.bin", (240, 180, 2)),
}


def tonic_layout(data: str) -> str:
    """Where tonic keeps a data set, below the folder of all of them."""
    name, files, _ = _SETS[data]
    return f"{name}/{files}"


def has_tonic_files(data: str, folder: Path) -> bool:
    """Whether `folder` is where tonic has put the data set."""
    return next(folder.glob(tonic_layout(data)), None) is not None


def tonic_part(data: str, folder: Path, steps: int) -> tuple[Part, Sequence[str]]:
    """All samples, each as `steps` frames of equally many events, and the names of the classes.

    Raises:
        OptionError: tonic is not installed, or what it reads these files with.
    """
    name, files, sensor = _SETS[data]
    tonic = _installed("tonic", "tonic")
    if files.endswith("aedat4"):
        _installed("aedat", "tonic aedat")
    kind = getattr(tonic.datasets, name)
    # tonic counts the files, and downloads where some are missing; those that are there are the data set here
    here = type(name, (kind,), {"_check_exists": lambda self: True})
    found = here(save_to=str(folder), transform=tonic.transforms.ToFrame(sensor, n_event_bins=steps))
    found.__class__ = kind
    names = [Path(path).relative_to(folder / name).as_posix() for path in found.data]
    if not names:
        raise missing(data, folder, [tonic_layout(data)], "tonic finds no samples")
    classes = sorted({Path(n).parent.name for n in names})
    order = sorted(range(len(names)), key=names.__getitem__)  # tonic's is that of the file system
    labels = [classes.index(Path(names[i]).parent.name) for i in order]
    return Part(found, order, [names[i] for i in order], labels), classes


def _installed(module: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise snn_ext.OptionError(
            f"these files are read by {module}, which is not installed.",
            why=str(error),
            do=f"pip install {packages}",
        ) from error
