"""Pictures of the runs: one per framework, learning curves above, accuracy of the single steps below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from digits_results import Run, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_COLORS = {False: "#6b7380", True: "#0b6e99"}
_LABELS = {False: "plain network", True: "with IMP: V0 is learned"}
_MARKERS = {False: "o", True: "s"}
STYLE = {
    "axes.edgecolor": "#9aa1ab",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.alpha": 0.25,
    "savefig.dpi": 160,
    "xtick.color": "#4d5560",
    "ytick.color": "#4d5560",
}


def draw(runs: Sequence[Run], framework: str, title: str, path: Path) -> None:
    """One column per objective; a line is the mean over seeds, its band one standard deviation."""
    runs = [run for run in runs if run.framework == framework]
    objectives = list(dict.fromkeys(run.objective for run in runs))
    # a Figure of its own instead of pyplot: no display, no global state
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 6.6), layout="constrained")
        axes = figure.subplots(2, len(objectives), sharex="row", sharey="row")
        for column, objective in zip(axes.T, objectives, strict=True):
            plain = select(runs, framework, objective, imp=False)
            with_imp = select(runs, framework, objective, imp=True)
            _curves(column[0], [run.accuracy for run in plain], [run.accuracy for run in with_imp])
            _curves(column[1], [run.step_accuracy for run in plain], [run.step_accuracy for run in with_imp])
            column[0].set_title(objective)
            column[0].set_xlabel("epoch")
            column[1].set_xlabel("time step")
        axes[0, 0].set_ylabel("test accuracy (%)\nwhile learning")
        axes[1, 0].set_ylabel("test accuracy (%), trained,\nreading this step alone")
        axes[0, 0].set_ylim(floor([run.accuracy for run in runs]), 102)
        axes[1, 0].set_ylim(0, 105)
        seeds = len({run.seed for run in runs})
        figure.suptitle(f"{title}\nmean of {seeds} seeds, band: ± 1 standard deviation", fontsize=12)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False
        )
        figure.savefig(path)


def floor(curves: Sequence[Sequence[float]]) -> float:
    """Where the axis of the learning curves starts: a round number clearly below all of them."""
    lowest = min(map(min, curves))
    return max(10.0 * math.floor((lowest - 4) / 10), 0.0)


def _curves(axes: Axes, plain: Sequence[Sequence[float]], with_imp: Sequence[Sequence[float]]) -> None:
    means = {
        imp: band(axes, curves, _COLORS[imp], _MARKERS[imp], _LABELS[imp])
        for imp, curves in ((False, plain), (True, with_imp))
    }
    imp_starts_higher = bool(means[True][0] >= means[False][0])
    for imp, mean in means.items():
        _number(axes, 1, mean[0].item(), _COLORS[imp], above=imp == imp_starts_higher)
    axes.margins(x=0.1)


def band(
    axes: Axes, curves: Sequence[Sequence[float]], color: str, marker: str = "o", label: str | None = None
) -> Tensor:
    """Draw the mean of curves, one per seed, and their deviation around it; returns the mean."""
    values = torch.tensor(curves)
    mean = values.mean(0)
    spread = values.std(0) if len(values) > 1 else torch.zeros_like(mean)
    x = range(1, len(mean) + 1)
    axes.plot(x, mean, color=color, marker=marker, label=label, markersize=4, linewidth=1.8)
    axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
    axes.set_xticks(x[:: math.ceil(len(x) / 10)])
    return mean


def _number(axes: Axes, x: float, y: float, color: str, above: bool) -> None:
    """Write y at its point: the start of the curves is where they differ most."""
    axes.annotate(
        f"{y:.0f}",
        (x, y),
        xytext=(4, 5 if above else -6),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=9,
        fontweight="bold",
        color=color,
    )
