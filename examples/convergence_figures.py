"""Pictures of the convergence study: T = 4 on three scales, and every T on one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from convergence_results import COINCIDE, OBJECTIVES, PUBLISHED, PUBLISHED_STEPS, Run, seeds_of, select
from digits_figures import STYLE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLORS = {"SDT": "#6b7380", "TET": "#0b6e99", "TET-S": "#2a9d5c", "LTS": "#c2410c"}
SCALES = {
    "loss": "each on its own loss",
    "ce_read": "cross-entropy of the scores that are read",
    "accuracy_1": "accuracy (%) when step 1 alone is read",
}


def draw(runs: Sequence[Run], out: Path) -> list[Path]:
    """Both pictures; the first shows the T of the published curves, or the largest there is."""
    steps = sorted({run.setup.steps for run in runs})
    at = PUBLISHED_STEPS if PUBLISHED_STEPS in steps else steps[-1]
    pictures = [out / "convergence.png", out / "convergence-steps.png"]
    with matplotlib.rc_context(STYLE):
        _scales(runs, at, pictures[0])
        _steps(runs, steps, pictures[1])
    return pictures


def _scales(runs: Sequence[Run], steps: int, path: Path) -> None:
    figure = Figure(figsize=(14, 5.2), layout="constrained")
    for axes, (curve, title) in zip(figure.subplots(1, len(SCALES)), SCALES.items(), strict=True):
        _curves(axes, runs, curve, steps)
        axes.set(xlabel="iteration", title=title)
        if curve != "accuracy_1":
            axes.set_yscale("log")
        if curve == "loss" and steps == PUBLISHED_STEPS:
            _published(axes)
    _finish(
        figure, f"Learning 1,024 random labels by heart, T = {steps}", runs, path, steps == PUBLISHED_STEPS
    )


def _steps(runs: Sequence[Run], steps: Sequence[int], path: Path) -> None:
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    shortest = min(run.setup.iterations for run in runs)
    panels = figure.subplots(1, len(steps), sharex=True, sharey=True, squeeze=False)[0]
    for axes, t in zip(panels, steps, strict=True):
        _curves(axes, runs, "ce_read", t)
        names = " = ".join(COINCIDE)
        axes.set(xlabel="iteration", title=f"T = {t}" + (f": {names}" if t == 1 else ""), yscale="log")
    shown = [run.curve("ce_read")[: run.logged.index(shortest - 1) + 1] for run in runs]
    panels[0].set(xlim=(0, shortest - 1), ylim=(0.8 * min(map(min, shown)), 4.0))
    panels[0].set_ylabel(SCALES["ce_read"])
    _finish(figure, "The same for other numbers of time steps", runs, path)


def _curves(axes: Axes, runs: Sequence[Run], curve: str, steps: int) -> None:
    """A line for the first seed; the band is from the lowest to the highest, as far as all of them went."""
    for objective in OBJECTIVES:
        if steps == 1 and objective in COINCIDE[1:]:
            continue
        for imp in (False, True):
            chosen = select(runs, objective, imp, steps)
            if not chosen:
                continue
            x, color = chosen[0].logged, COLORS[objective]
            axes.plot(x, chosen[0].curve(curve), color=color, linestyle="--" if imp else "-", linewidth=1.7)
            shared = [i for i in x if all(i in run.logged for run in chosen)]
            values = [[run.at(curve, i) for run in chosen] for i in shared]
            axes.fill_between(
                shared, list(map(min, values)), list(map(max, values)), color=color, alpha=0.15, linewidth=0
            )


def _published(axes: Axes) -> None:
    for objective, points in PUBLISHED.items():
        axes.plot(
            list(points),
            list(points.values()),
            "x",
            color=COLORS[objective],
            markersize=9,
            markeredgewidth=2.2,
        )


def _finish(figure: Figure, title: str, runs: Sequence[Run], path: Path, published: bool = False) -> None:
    handles = [Line2D([], [], color=color, label=name, linewidth=2) for name, color in COLORS.items()]
    handles += [
        Line2D([], [], color="black", label="without IMP"),
        Line2D([], [], color="black", linestyle="--", label="with IMP"),
    ]
    if published:
        handles.append(
            Line2D([], [], color="black", linestyle="", marker="x", label="published, without IMP")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    first, *others = seeds_of(runs)
    band = f"; band: lowest to highest of up to {len(others) + 1} seeds" if others else ""
    figure.suptitle(f"{title}\nline: seed {first}{band}", fontsize=12)
    figure.savefig(path)
