"""What early exit did, as records, a table and sentences made from the numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

STEPS = 16
THRESHOLDS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97)
ALLOWED_LOSS = 0.01


@dataclass(frozen=True)
class Point:
    """Accuracy in percent, and steps used per image on average."""

    accuracy: float
    steps: float


@dataclass(frozen=True)
class Run:
    """What one trained network did.

    `calibrated`, its `threshold` and its time are None where no threshold fitted; `gammas` are the smallest
    and the largest mean |gamma| of a layer and step; `seconds` with all steps and with the calibrated exit.
    """

    seed: int
    fixed: tuple[Point, ...]
    confidence: dict[float, Point]
    calibrated: Point | None
    threshold: float | None
    bntt: Point
    bntt_exits: bool
    gammas: tuple[float, float]
    seconds: tuple[float, float | None]


def from_json(record: dict[str, Any]) -> Run:
    """What `main` wrote."""

    def points(found: Iterable[dict[str, float]]) -> tuple[Point, ...]:
        return tuple(Point(**point) for point in found)

    return Run(
        **{
            **record,
            "fixed": points(record["fixed"]),
            "confidence": {float(p): Point(**point) for p, point in record["confidence"].items()},
            "calibrated": record["calibrated"] and Point(**record["calibrated"]),
            "bntt": Point(**record["bntt"]),
        }
    )


# ---------------------------------------------------------------- what came of it


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def row(table: Table, name: str, points: Sequence[Point | None]) -> None:
    there = [point for point in points if point is not None]
    if not there:
        table.add_row(name, "no threshold fits", "", "")
        return
    steps = [point.steps for point in there]
    saved = f"{100 * (1 - statistics.fmean(steps) / STEPS):.0f} %"
    missing = f" ({len(there)} of {len(points)} seeds)" if len(there) < len(points) else ""
    table.add_row(name + missing, spread([point.accuracy for point in there]), spread(steps), saved)


def table(runs: Sequence[Run]) -> Table:
    result = Table(
        title=f"test accuracy and steps used, mean ± standard deviation of {len(runs)} seeds",
        title_justify="left",
        box=box.SIMPLE_HEAVY,
        pad_edge=False,
    )
    for header in ("rule", "accuracy (%)", f"steps of {STEPS}", "saved"):
        result.add_column(header, justify="left" if header == "rule" else "right")
    for t in (1, 2, 4, 6, 8, 12, STEPS):
        row(result, f"first {t} for everybody", [run.fixed[t - 1] for run in runs])
    result.add_section()
    for p in THRESHOLDS:
        row(result, f"ConfidenceExit({p})", [run.confidence[p] for run in runs])
    result.add_section()
    row(result, "calibrated, loss <= 1 point", [run.calibrated for run in runs])
    fires = sum(run.bntt_exits for run in runs)
    row(result, f"BNTTExit(0.1): exits in {fires} of {len(runs)}", [run.bntt for run in runs])
    return result


def against_fixed(run: Run, point: Point) -> float:
    """Points above stopping everybody after the same mean number of steps (between two t: linear)."""
    low = min(int(point.steps), STEPS - 1)
    share = point.steps - low
    fixed = (1 - share) * run.fixed[low - 1].accuracy + share * run.fixed[low].accuracy
    return point.accuracy - fixed


def verdict(runs: Sequence[Run], validation: int, images: int) -> list[str]:
    """Sentences made from the numbers alone."""
    low, high = min(run.gammas[0] for run in runs), max(run.gammas[1] for run in runs)
    fires = sum(run.bntt_exits for run in runs)
    said = [
        f"BNTTExit: {f'an exit in {fires} of {len(runs)} networks' if fires else 'no exit'}. The mean |gamma|"
        f" of a layer and step lies between {low:.2f} and {high:.2f}; the rule needs all layers below 0.1."
        + ("" if fires else " Gammas start at 1 and training moves them little: expect it not to fire.")
    ]
    pairs = [(run, run.calibrated) for run in runs if run.calibrated is not None]
    if pairs:
        loss = [run.fixed[-1].accuracy - point.accuracy for run, point in pairs]
        gain = [against_fixed(run, point) for run, point in pairs]
        slow, fast = (statistics.fmean(run.seconds[i] or 0 for run, _ in pairs) for i in (0, 1))
        said += [
            f"Calibrated ConfidenceExit: {spread(loss)} points lost on the test images, where"
            f" {100 * ALLOWED_LOSS:.0f} was allowed on {validation} validation images (there"
            f" {ALLOWED_LOSS * validation:.0f} images: calibrate on many), and {spread(gain)} points above"
            " stopping everybody after the same number of steps.",
            f"Steps are not seconds: {images} images took {1000 * slow:.0f} ms with all steps and"
            f" {1000 * fast:.0f} ms with the calibrated exit, on this machine. Small layers cost nearly as"
            " much for few samples as for many.",
        ]
    else:
        said.append("Calibrated ConfidenceExit: no threshold kept to the allowed loss.")
    said.append(
        f"One test image is {100 / images:.2f} points. All seeds share one split; the spread is that of the"
        " training."
    )
    return said
