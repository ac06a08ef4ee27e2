"""Pictures of the norms: how fast and how far each learns, and what MPBN does to the membranes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from digits_figures import STYLE, band, floor
from digits_results import Statistic
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from norms_results import Run, norms_of, of
from torch import Tensor

COLORS = {
    "none": "#6b7380",
    "BN": "#0b6e99",
    "TEBN": "#d9822b",
    "TEBN (step)": "#d9822b",
    "BNTT": "#2a9d5c",
    "BNTT (input)": "#8fae1b",
    "MPBN": "#c2356b",
    "BN + MPBN": "#7148a8",
}
BEFORE, AFTER = COLORS["none"], COLORS["MPBN"]


def learning(runs: Sequence[Run], title: str, path: Path) -> None:
    """Learning curves at the left; then the accuracies of all seeds after the first and the last epoch."""
    seeds, epochs = len({run.seed for run in runs}), len(runs[0].accuracy)
    norms = {norm: of(runs, runs[0].framework, norm) for norm in norms_of(runs, runs[0].framework)}
    # a Figure of its own instead of pyplot: no display, no global state
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        left, first, last = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        for norm, of_norm in norms.items():
            band(left, [run.accuracy for run in of_norm], COLORS[norm])
        left.set(xlabel="epoch", ylabel="test accuracy (%)", title="while learning")
        left.set_ylim(floor([run.accuracy for run in runs]), 102)
        for axes, end, epoch in ((first, 0, 1), (last, -1, epochs)):
            for row, of_norm in enumerate(norms.values()):
                values = [run.accuracy[end] for run in of_norm]
                _seeds(
                    axes, row, values, [run.own_statistics[end] for run in of_norm], COLORS[of_norm[0].norm]
                )
            axes.set(xlabel="test accuracy (%)", title=f"after epoch {epoch}", ylim=(len(norms) - 0.5, -0.5))
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=8, integer=True)
            axes.grid(visible=False, axis="y")
        _name_rows(first, norms)
        last.set_yticks([])
        figure.suptitle(f"{title}\nmean of {seeds} seeds; band and bar: ± 1 standard deviation", fontsize=12)
        handles, labels = first.get_legend_handles_labels()
        figure.legend(handles[:2], labels[:2], loc="outside lower right", ncols=2, frameon=False)
        figure.savefig(path)


def _seeds(axes: Axes, row: int, values: Sequence[float], own: Sequence[float], color: str) -> None:
    """A circle for every seed, a bar of mean ± deviation, the mean as a number."""
    both = Statistic.of(values)
    spread = both.std if len(values) > 1 else 0.0
    axes.plot([both.mean - spread, both.mean + spread], [row, row], color=color, linewidth=7, alpha=0.3)
    axes.plot([both.mean] * 2, [row - 0.28, row + 0.28], color=color, linewidth=2.5, zorder=2)
    seed = axes.scatter(values, [row] * len(values), s=22, facecolor="white", edgecolor=color, zorder=3)
    seed.set_label("one seed")
    star = axes.scatter(Statistic.of(own).mean, row, s=42, marker="*", color="black", zorder=4)
    star.set_label("mean with the statistics of the test images themselves")
    axes.annotate(
        f"{both.mean:.1f}", (1.02, row), xycoords=("axes fraction", "data"), va="center", color=color
    )


def _name_rows(axes: Axes, norms: Mapping[str, Sequence[Run]]) -> None:
    axes.set_yticks(range(len(norms)), list(norms), fontweight="bold")
    for label, norm in zip(axes.get_yticklabels(), norms, strict=True):
        label.set_color(COLORS[norm])


def membranes(layers: Mapping[str, Sequence[tuple[Tensor, Tensor]]], title: str, path: Path) -> None:
    """Distributions of the membrane before and after MPBN: a row per layer, a column per time step.

    Args:
        layers: name -> one pair (before, after) per step.
        title: of the picture.
        path: to write to.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 5.4), layout="constrained")
        steps = len(next(iter(layers.values())))
        rows = figure.subplots(len(layers), steps, sharex=True, sharey="row", squeeze=False)
        for axes_of_layer, (layer, pairs) in zip(rows, layers.items(), strict=True):
            for t, (axes, (before, after)) in enumerate(zip(axes_of_layer, pairs, strict=True), start=1):
                axes.set_title(f"{layer}, step {t}", fontsize=10)
                _distribution(axes, before, BEFORE, "membrane: reset and carried to the next step", 0.93)
                _distribution(axes, after, AFTER, "the same after MPBN: decides who fires", 0.82)
                axes.axvline(1.0, color="black", linestyle="--", linewidth=1, label="threshold")
                _note(axes, 0.97, 0.93, f"{(after > 1).float().mean().item():.0%} fire", AFTER)
            axes_of_layer[0].set_ylabel("density")
            axes_of_layer[0].set_yticks([])
        handles, labels = rows[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        key = "one trained network, test images, running statistics; numbers: mean ± standard deviation"
        figure.suptitle(f"MPBN. {title}\n{key}", fontsize=12)
        figure.savefig(path)


def _distribution(axes: Axes, values: Tensor, color: str, label: str, height: float) -> None:
    low, high, bins = -5.0, 5.0, 100
    counts = torch.histc(values, bins, low, high) / values.numel()
    edges = torch.linspace(low, high, bins + 1)
    axes.stairs(counts, edges, color=color, fill=True, alpha=0.3)
    axes.stairs(counts, edges, color=color, linewidth=1.2, label=label)
    _note(axes, 0.03, height, f"{values.mean():+z.1f} ± {values.std():.1f}", color)


def _note(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    side = "left" if x < 0.5 else "right"
    axes.text(x, y, text, transform=axes.transAxes, ha=side, va="top", color=color)
