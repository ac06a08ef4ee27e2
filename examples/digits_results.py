"""What was measured: one record per training run, means over seeds, and what the differences are worth."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

Outcome = Literal["helps", "ties", "hurts", "unknown"]


class Measured(Protocol):
    """A training run of any demo, as far as a comparison needs to know it."""

    @property
    def framework(self) -> str: ...

    @property
    def seed(self) -> int: ...

    def measures(self) -> dict[str, float]:
        """The numbers that the tables compare, by their headings."""
        ...


@dataclass(frozen=True)
class Run:
    """One training. Accuracies are in percent of the test images.

    Attributes:
        accuracy: after every epoch, with the readout of the objective.
        step_accuracy: after the last epoch, when one time step alone is read; one value per step.
        v0_moved: site -> mean absolute change of V0 by training, in membrane units; empty without IMP.
        seconds: wall time.
    """

    framework: str
    objective: str
    imp: bool
    seed: int
    accuracy: tuple[float, ...]
    step_accuracy: tuple[float, ...]
    v0_moved: dict[str, float]
    seconds: float

    def measures(self) -> dict[str, float]:
        return {
            **first_and_last(self.accuracy),
            "step 1 only": self.step_accuracy[0],
            f"step {len(self.step_accuracy)} only": self.step_accuracy[-1],
        }


def first_and_last(accuracy: Sequence[float]) -> dict[str, float]:
    """The learning curve's two ends by their headings."""
    return {"epoch 1": accuracy[0], f"epoch {len(accuracy)}": accuracy[-1]}


def select(runs: Sequence[Run], framework: str, objective: str, imp: bool) -> list[Run]:
    """The runs of one configuration, one per seed."""
    wanted = (framework, objective, imp)
    return [run for run in runs if (run.framework, run.objective, run.imp) == wanted]


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation over seeds; `std` is NaN for a single one."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistic:
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values), std)

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± " + ("?" if math.isnan(self.std) else f"{self.std:.1f}")


def summarise(runs: Sequence[Measured]) -> dict[str, Statistic]:
    """Each of the measures over the seeds of one configuration."""
    rows = [run.measures() for run in runs]
    return {name: Statistic.of([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True)
class Comparison:
    """A method against the same training without it: same initial weights, same batches, same seeds.

    Attributes:
        method: "IMP", an objective or a norm.
        against: what it is compared on or with, for example "with SDT", "vs. SDT" or "vs. no norm".
        difference: of the means, in percentage points.
        spread: the larger of the two standard deviations over seeds: the bar that a difference has to clear.
    """

    framework: str
    method: str
    against: str
    measure: str
    difference: float
    spread: float

    @property
    def outcome(self) -> Outcome:
        if math.isnan(self.spread):
            return "unknown"
        if abs(self.difference) <= self.spread:
            return "ties"
        return "helps" if self.difference > 0 else "hurts"


def compare(runs: Sequence[Run], baseline: str) -> list[Comparison]:
    """IMP against no IMP for every objective; every other objective against `baseline`, both without IMP."""
    found = []
    for framework, objective in _configurations(runs):
        plain = select(runs, framework, objective, imp=False)
        with_imp = select(runs, framework, objective, imp=True)
        found += differences("IMP", f"with {objective}", with_imp, plain)
        if objective != baseline:
            reference = select(runs, framework, baseline, imp=False)
            found += differences(objective, f"vs. {baseline}", plain, reference)
    return found


def _configurations(runs: Sequence[Run]) -> list[tuple[str, str]]:
    frameworks = dict.fromkeys(run.framework for run in runs)
    objectives = dict.fromkeys(run.objective for run in runs)
    return list(itertools.product(frameworks, objectives))


def differences(
    method: str, against: str, changed: Sequence[Measured], reference: Sequence[Measured]
) -> list[Comparison]:
    """One comparison for every measure."""
    new, old = summarise(changed), summarise(reference)
    return [
        Comparison(
            changed[0].framework,
            method,
            against,
            measure,
            new[measure].mean - old[measure].mean,
            max(new[measure].std, old[measure].std),
        )
        for measure in new
    ]


def luck(seeds: int, draws: int = 50_000) -> float:
    """How often two equally good methods would differ by more than `Comparison.spread`, by simulation."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(draws, 2, seeds, generator=generator)
    difference = samples.mean(2).diff(dim=1).abs().squeeze(1)
    return (difference > samples.std(2).amax(1)).float().mean().item()


def write(
    path: Path,
    runs: Sequence[Any],
    comparisons: Sequence[Comparison],
    settings: dict[str, Any],
    **more: Sequence[Any],
) -> None:
    """All of it as JSON, with what is needed to measure it again; `runs` and `more` are dataclasses."""
    document = {
        "settings": settings,
        "origin": origin(),
        "runs": [asdict(run) for run in runs],
        "comparisons": [
            {**asdict(c), "spread": None if math.isnan(c.spread) else c.spread, "outcome": c.outcome}
            for c in comparisons
        ],
        **{name: [asdict(record) for record in records] for name, records in more.items()},
    }
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def origin() -> dict[str, Any]:
    """Which code, device and versions the numbers are from."""
    packages = ("snn-ext", "torch", "spikingjelly", "snntorch", "scikit-learn", "matplotlib")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {
        "commit": _commit(),
        "device": f"cpu, {platform.machine()}, {torch.get_num_threads()} thread",
        "versions": {"python": platform.python_version(), **versions},
    }


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
