"""Short runs of the presets, and what they left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.recipes import disk

SMALL = {"vgg11": 16, "sew-resnet18": 64}  # pixels: where full size takes long


def small(name: str, *, full_size: bool = False, batch: int = 2) -> Any:
    """A preset with few samples and steps; with fewer pixels too, where it can have them."""
    from recipes.presets import PRESETS

    preset = replace(PRESETS[name], batch=batch, steps=disk.STEPS)
    return preset if full_size else replace(preset, size=SMALL.get(preset.network, preset.size))


def play(
    name: str, preset: Any, folders: dict[str, Path], out: Path, iterations: int, **options: Any
) -> Path:
    """Train up to this iteration."""
    from recipes.loop import Options, train

    train(name, preset, Options(folders[preset.data], out, iterations=iterations, **options))
    return out


def straight_and_resumed(name: str, preset: Any, folders: dict[str, Path], out: Path, **options: Any) -> None:
    """Two iterations at once, and one and one."""
    play(name, preset, folders, out / "straight", 2, **options)
    play(name, preset, folders, out / "resumed", 1, **options)
    play(name, preset, folders, out / "resumed", 2, resume=True, **options)


def checkpoint(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(out / "checkpoint.pt", weights_only=True)
    return found


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two nested states are not equal, to the last bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            d
            for i, pair in enumerate(zip(one, other, strict=True))
            for d in differences(*pair, f"{path}.{i}")
        ]
    return [] if type(one) is type(other) and one == other else [path]


def unequal(out: Path) -> list[str]:
    """What a resumed run has otherwise than the straight one: state or losses."""
    straight, resumed = out / "straight", out / "resumed"
    found = differences(checkpoint(straight), checkpoint(resumed))
    found += differences(events(straight, "batch"), events(resumed, "batch"), "log")
    return found + differences(events(straight, "test")[-1], events(resumed, "test")[-1], "test")
