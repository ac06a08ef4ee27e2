"""Everything that a run needs to go on exactly as if it had not stopped, in one file."""

from __future__ import annotations

import os
import pickle
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import snn_ext
from recipes.processes import Processes

FILE = "checkpoint.pt"


@dataclass
class Place:
    """How far a run is.

    Attributes:
        epoch: the epoch it is in, from 0.
        position: batches of this epoch that are done.
        iteration: batches done since the start.
        best: highest test accuracy so far, in percent.
    """

    epoch: int = 0
    position: int = 0
    iteration: int = 0
    best: float = 0.0


@dataclass(frozen=True)
class Parts:
    """What a run changes while it goes: each with state_dict() and load_state_dict()."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler

    def states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in vars(self).items()}

    def load(self, states: dict[str, Any]) -> None:
        for name, part in vars(self).items():
            part.load_state_dict(states[name])


def write(folder: Path, identity: dict[str, Any], place: Place, parts: Parts, group: Processes) -> None:
    """Write the checkpoint; the file is the old or the new one, never a torn one."""
    generators = group.gather(_generators(group.device))
    if not group.lead:
        return
    document = {
        "identity": identity,
        "place": vars(place),
        "parts": parts.states(),
        "generators": generators,
    }
    temporary = folder / f".{FILE}.{os.getpid()}"
    try:
        torch.save(document, temporary)
        os.replace(temporary, folder / FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read(folder: Path, identity: dict[str, Any], parts: Parts, group: Processes) -> Place:
    """Put the run back where its checkpoint was written, random generators included; nothing in the file is
    executed.

    Args:
        identity: what must be as it was: preset, data, seed, batch, number of processes.

    Raises:
        CheckpointError: there is none, it cannot be read, or it is of another run.
    """
    path = folder / FILE
    if not path.is_file():
        raise snn_ext.CheckpointError(
            "there is nothing to resume.", where=str(path), do="start without --resume, or name another --out"
        )
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise snn_ext.CheckpointError(
            f"{FILE} cannot be read.", where=str(path), why=str(error), do="start anew in another --out"
        ) from error
    _check(document["identity"], identity, path)
    parts.load(document["parts"])
    _set_generators(document["generators"][group.rank], group.device)
    return Place(**document["place"])


def _check(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    other = [key for key in now if before.get(key) != now[key]]
    if other:
        raise snn_ext.CheckpointError(
            f"{FILE} is of another run.",
            where=str(path),
            why="; ".join(f"{key} was {before.get(key)!r} and is {now[key]!r}" for key in other),
            do="repeat the options of that run, or start anew in another --out",
        )


def _generators(device: torch.device) -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_generators(states: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
