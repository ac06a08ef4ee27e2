"""What was measured in the convergence study, one record per training, and what is published."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from convergence_networks import Reset
from torch import Tensor

OBJECTIVES = {"SDT": "sdt", "TET": "tet", "TET-S": "tet-s", "LTS": "lts"}
COINCIDE = ("SDT", "TET", "LTS")
"""With one step these are one and the same; see `convergence.identity`."""

PUBLISHED_STEPS = 4
PUBLISHED = {
    "SDT": {100: 1.422, 200: 0.156, 500: 0.009, 999: 0.002},
    "TET": {100: 1.985, 200: 0.958, 500: 0.671, 999: 0.034},
}
"""Objective -> iteration -> its own loss: the curves of the IMP paper's figure for T = 4, without IMP,
decoded from the picture. There is none for LTS and TET-S."""
ACCEPTED = (100, 200)
"""Where ours have to agree; later the losses are so small that rounding decides."""


def tolerance(published: float) -> float:
    """How far from a published value counts as the same: other random numbers were drawn for it."""
    return 0.1 * published + 0.02


@dataclass(frozen=True)
class Setup:
    """What fixes a training."""

    objective: str
    imp: bool
    steps: int
    seed: int
    iterations: int
    reset: Reset = "soft"

    def __str__(self) -> str:
        reset = "" if self.reset == "soft" else f", {self.reset} reset"
        return f"{self.objective}{' + IMP' if self.imp else ''}, T = {self.steps}, seed {self.seed}{reset}"


@dataclass(frozen=True)
class Run:
    """One training. All numbers are of the 1,024 inputs it learns; there are no others.

    Attributes:
        logged: the iterations, counted from 0, to which the values of `curves` belong: before their updates.
        curves: "loss": of the objective itself. On one scale for all objectives: "ce_mean", "ce_last",
            "ce_steps": cross-entropy of the mean score, of the last step's, and the mean of all steps';
            "accuracy": in percent, with the objective's own readout; "accuracy_1": reading step 1 alone;
            "silent_1": percent of the inputs whose scores are all zero at step 1.
        v0_moved: mean absolute change of V0 by training, in units of the threshold; None without IMP.
        seconds: processor time.
    """

    setup: Setup
    logged: tuple[int, ...]
    curves: Mapping[str, tuple[float, ...]]
    v0_moved: float | None
    seconds: float

    def at(self, curve: str, iteration: int) -> float:
        """Its value there. "ce_read" is the cross-entropy of the scores that the objective is read by."""
        return self.curve(curve)[self.logged.index(iteration)]

    def curve(self, name: str) -> tuple[float, ...]:
        if name == "ce_read":
            name = "ce_last" if self.setup.objective == "LTS" else "ce_mean"
        return self.curves[name]


def measure(scores: Tensor, labels: Tensor, readout: Tensor, loss: float) -> dict[str, float]:
    """The values of all curves, from scores [T, B, C] and the objective's readout [B, C]."""
    steps = [F.cross_entropy(step, labels).item() for step in scores]
    return {
        "loss": loss,
        "ce_mean": F.cross_entropy(scores.mean(0), labels).item(),
        "ce_last": steps[-1],
        "ce_steps": sum(steps) / len(steps),
        "accuracy": percent(readout.argmax(1) == labels),
        "accuracy_1": percent(scores[0].argmax(1) == labels),
        "silent_1": percent((scores[0] == 0).all(1)),
    }


def percent(hits: Tensor) -> float:
    return 100 * int(hits.sum()) / len(hits)


# ---------------------------------------------------------------- on disk


def to_json(run: Run) -> dict[str, Any]:
    """With five digits: the seventh depends on the machine."""
    curves = {name: [float(f"{v:.5g}") for v in values] for name, values in run.curves.items()}
    return {**asdict(run), "curves": curves}


def from_json(record: Mapping[str, Any]) -> Run:
    return Run(
        Setup(**record["setup"]),
        tuple(record["logged"]),
        {name: tuple(values) for name, values in record["curves"].items()},
        record["v0_moved"],
        record["seconds"],
    )


def keep(folder: Path, run: Run) -> None:
    """Write a finished training, completely or not at all: an interrupted sweep goes on after it."""
    path = _file(folder, run.setup)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(to_json(run)), encoding="utf-8")
    os.replace(partial, path)


def kept(folder: Path, setup: Setup) -> Run | None:
    """The training with this setup, if an earlier sweep has finished it."""
    path = _file(folder, setup)
    return from_json(json.loads(path.read_text("utf-8"))) if path.exists() else None


def _file(folder: Path, setup: Setup) -> Path:
    return folder / ("-".join(str(value) for value in asdict(setup).values()) + ".json")


def write(path: Path, runs: Sequence[Run], **more: Any) -> None:
    """All of it as JSON, one training per line."""
    lines = ",\n".join(json.dumps(to_json(run), allow_nan=False) for run in runs)
    head = json.dumps({**more, "published": PUBLISHED}, indent=1, allow_nan=False)
    path.write_text(f'{head[:-2]},\n "runs": [\n{lines}\n ]\n}}\n', encoding="utf-8")


def read(path: Path) -> list[Run]:
    return [from_json(record) for record in json.loads(path.read_text("utf-8"))["runs"]]


# ---------------------------------------------------------------- what came of it


def select(runs: Sequence[Run], objective: str, imp: bool, steps: int, reset: Reset = "soft") -> list[Run]:
    """The trainings of one configuration, one per seed. With one step, SDT, TET and LTS are SDT."""
    objective = COINCIDE[0] if steps == 1 and objective in COINCIDE else objective
    wanted = (objective, imp, steps, reset)
    return [r for r in runs if (r.setup.objective, r.setup.imp, r.setup.steps, r.setup.reset) == wanted]


def at(runs: Sequence[Run], curve: str, iteration: int) -> tuple[float, float | None]:
    """Mean and sample standard deviation over the seeds that came so far; None for a single one."""
    values = [run.at(curve, iteration) for run in runs if iteration in run.logged]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def seeds_of(runs: Sequence[Run]) -> list[int]:
    return sorted({run.setup.seed for run in runs})


def agrees(run: Run, objective: str, iteration: int) -> bool:
    """Is the run's own loss there within tolerance of what is published for `objective`?"""
    published = PUBLISHED[objective][iteration]
    return math.isclose(run.at("loss", iteration), published, rel_tol=0.0, abs_tol=tolerance(published))
