"""The picture of early exit: accuracy against steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from early_exit_results import STEPS, THRESHOLDS, Run
from matplotlib.figure import Figure

COLORS = {"fixed": "#6b7380", "confidence": "#0b6e99", "calibrated": "#c2410c"}


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy against steps: one thin pair of lines per seed."""
    with matplotlib.rc_context({"axes.spines.right": False, "axes.spines.top": False, "font.size": 10}):
        figure = Figure(figsize=(8, 5), layout="constrained", dpi=160)
        axes = figure.subplots()
        for i, run in enumerate(runs):
            curves = {"fixed": run.fixed, "confidence": tuple(run.confidence.values())}
            labels = {
                "fixed": "everybody stops after t steps",
                "confidence": f"ConfidenceExit, p = {THRESHOLDS[0]} ... {THRESHOLDS[-1]}",
            }
            for name, points in curves.items():
                axes.plot(
                    [point.steps for point in points],
                    [point.accuracy for point in points],
                    color=COLORS[name],
                    marker="o" if name == "confidence" else ".",
                    markersize=5,
                    linewidth=1.3,
                    alpha=0.75,
                    label=labels[name] if i == 0 else None,
                )
        chosen = [run.calibrated for run in runs if run.calibrated is not None]
        if chosen:
            axes.scatter(
                [point.steps for point in chosen],
                [point.accuracy for point in chosen],
                color=COLORS["calibrated"],
                marker="*",
                s=170,
                zorder=5,
                edgecolors="white",
                label="calibrated for a loss of 1 point",
            )
        fires = sum(run.bntt_exits for run in runs)
        outcome = "no exit" if not fires else f"exits in {fires} of {len(runs)} networks"
        axes.scatter(
            [run.bntt.steps for run in runs],
            [run.bntt.accuracy for run in runs],
            facecolors="none",
            edgecolors="black",
            marker="s",
            s=60,
            zorder=4,
            label=f"BNTTExit(0.1): {outcome}",
        )
        lowest = min(point.accuracy for run in runs for point in run.fixed[1:])
        axes.set_ylim(max(5 * math.floor((lowest - 2) / 5), 0), 100.5)
        axes.set_xlim(0.5, STEPS + 0.7)
        axes.set_xlabel(f"time steps used per image (mean), of {STEPS}")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(f"Early exit on digits, {len(runs)} trained networks", loc="left", weight="bold")
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(path)
