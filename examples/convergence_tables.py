"""What the convergence study says at its end: tables, and sentences made from the numbers alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from convergence_results import (
    ACCEPTED,
    COINCIDE,
    OBJECTIVES,
    PUBLISHED,
    PUBLISHED_STEPS,
    Run,
    agrees,
    at,
    seeds_of,
    select,
    tolerance,
)
from digits_tables import table_of
from rich.console import Console
from rich.table import Table

Rows = list[list[str]]
"""A table as text; the first row is the heading."""

LEGEND = (
    "loss: that of the objective itself, so that different objectives are on different scales. CE read:"
    " cross-entropy of the scores that the objective is read by, the last step's for LTS and the mean for the"
    " others: one scale for all. Accuracies are of the 1,024 inputs that are learned: nothing here says how"
    " well anything generalises. ± is the standard deviation over seeds."
)


def against_published(runs: Sequence[Run], steps: int = PUBLISHED_STEPS) -> Rows:
    """Our own loss and the published one, without IMP, for every seed."""
    rows = [["objective", "iteration", "published", "tolerance", *(f"seed {s}" for s in seeds_of(runs))]]
    for objective, points in PUBLISHED.items():
        chosen = select(runs, objective, False, steps)
        for iteration, published in points.items():
            ours = [_judged(run, objective, iteration) for run in chosen if iteration in run.logged]
            if ours:
                allowed = f"± {tolerance(published):.3f}" if iteration in ACCEPTED else ""
                rows.append([objective, str(iteration), f"{published:.3f}", allowed, *ours])
    return rows


def _judged(run: Run, objective: str, iteration: int) -> str:
    loss = f"{run.at('loss', iteration):.3f}"
    if iteration not in ACCEPTED or agrees(run, objective, iteration):
        return loss
    return f"{loss} (outside)"


def over_time(runs: Sequence[Run], curve: str, steps: int, iterations: Sequence[int]) -> Rows:
    """One row per objective without and with IMP, mean ± deviation over seeds at these iterations."""
    rows = [["training", *(f"it {iteration}" for iteration in iterations)]]
    for objective, imp in itertools.product(OBJECTIVES, (False, True)):
        chosen = select(runs, objective, imp, steps)
        if chosen:
            rows.append([_name(objective, imp), *(_cell(chosen, curve, i) for i in iterations)])
    return rows


def over_steps(runs: Sequence[Run], curve: str, iteration: int) -> Rows:
    """The same at one iteration, one column per T."""
    steps = sorted({run.setup.steps for run in runs})
    rows = [["training", *(f"T = {t}" for t in steps)]]
    for objective, imp in itertools.product(OBJECTIVES, (False, True)):
        cells = [_cell(select(runs, objective, imp, t), curve, iteration) for t in steps]
        rows.append([_name(objective, imp), *cells])
    return rows


def _name(objective: str, imp: bool) -> str:
    return f"{objective} + IMP" if imp else objective


def _cell(runs: Sequence[Run], curve: str, iteration: int) -> str:
    values = [run.at(curve, iteration) for run in runs if iteration in run.logged]
    if not values:
        return ""
    digits = 1 if curve.startswith(("accuracy", "silent")) else 3
    mean, deviation = at(runs, curve, iteration)
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


# ---------------------------------------------------------------- sentences


def verdict(runs: Sequence[Run], same: Mapping[str, Any]) -> list[str]:
    """What the numbers say; nothing in it is written by hand."""
    return [
        *_published(runs),
        *_control(runs),
        _identity(same),
        *(_imp(runs, steps) for steps in sorted({run.setup.steps for run in runs})),
        *_order(runs),
    ]


def _published(runs: Sequence[Run]) -> list[str]:
    said = []
    for objective in PUBLISHED:
        chosen = [
            run for run in select(runs, objective, False, PUBLISHED_STEPS) if set(ACCEPTED) <= set(run.logged)
        ]
        within = [run for run in chosen if all(agrees(run, objective, i) for i in ACCEPTED)]
        if chosen:
            seeds = ", ".join(str(run.setup.seed) for run in within) or "none"
            said.append(
                f"{objective}, T = {PUBLISHED_STEPS}: within 10 % + 0.02 of the published curve at iterations"
                f" {' and '.join(map(str, ACCEPTED))} in {len(within)} of {len(chosen)} seeds ({seeds})."
            )
    return said


def _control(runs: Sequence[Run]) -> list[str]:
    chosen = select(runs, "SDT", False, PUBLISHED_STEPS, reset="hard")
    if not chosen or not set(ACCEPTED) <= set(chosen[0].logged):
        return []
    values = " and ".join(f"{chosen[0].at('loss', i):.3f}" for i in ACCEPTED)
    outside = not any(agrees(chosen[0], "SDT", i) for i in ACCEPTED)
    return [
        f"The same with a hard reset: {values} there,"
        f" {'outside the tolerance' if outside else 'NOT told apart from the published neuron'}."
    ]


def _identity(same: Mapping[str, Any]) -> str:
    equal = all(same["equal"].values())
    return (
        f"T = 1: networks trained for {same['iterations']} iterations with {', '.join(same['objectives'])}"
        f" (loss then {same['loss']:.3f}) are {'equal to the last bit' if equal else 'NOT EQUAL'}, without"
        " and with IMP."
    )


def _imp(runs: Sequence[Run], steps: int) -> str:
    """Does IMP lower the objective's own loss, early and at the end, in how many of the seeds?"""
    parts = []
    for objective in (o for o in OBJECTIVES if steps > 1 or o not in COINCIDE[1:]):
        plain, with_imp = (select(runs, objective, imp, steps) for imp in (False, True))
        pairs = [(a, b) for a in plain for b in with_imp if a.setup.seed == b.setup.seed]
        if pairs:
            last = pairs[0][0].logged[-1]
            counts = [
                f"it {i}: {sum(b.at('loss', i) < a.at('loss', i) for a, b in pairs)}/{len(pairs)}"
                for i in (*(a for a in ACCEPTED if a < last), last)
            ]
            parts.append(f"{objective} {', '.join(counts)}")
    return f"IMP has the lower loss of the two, T = {steps}, seeds: {'; '.join(parts)}."


def _order(runs: Sequence[Run]) -> list[str]:
    """The order of the objectives depends on the scale."""
    said = []
    for iteration in ACCEPTED:
        for curve, name in (
            ("loss", "each on its own loss"),
            ("ce_read", "CE read"),
            ("ce_mean", "CE of the mean"),
        ):
            means = {
                o: at(chosen, curve, iteration)[0]
                for o in OBJECTIVES
                if (chosen := [r for r in select(runs, o, False, PUBLISHED_STEPS) if iteration in r.logged])
            }
            if len(means) > 1:
                order = " < ".join(f"{o} {means[o]:.3f}" for o in sorted(means, key=means.__getitem__))
                said.append(f"T = {PUBLISHED_STEPS}, iteration {iteration}, {name}: {order}.")
    return said


# ---------------------------------------------------------------- printing


def show(console: Console, runs: Sequence[Run], same: Mapping[str, Any]) -> None:
    """Print the tables, and end with the verdict."""
    console.print(f"\n{LEGEND}\n", highlight=False)
    steps = sorted({run.setup.steps for run in runs})
    top = PUBLISHED_STEPS if PUBLISHED_STEPS in steps else steps[-1]
    logged = max((run.logged for run in runs if run.setup.steps == top), key=len)
    shown = [i for i in (100, 200, 500) if i in logged] + [logged[-1]]
    common = max(i for i in runs[0].logged if all(i in r.logged for r in runs if r.setup.reset == "soft"))
    for title, rows in (
        (f"loss, T = {top}, without IMP, against the published curves", against_published(runs)),
        (f"loss, T = {top}", over_time(runs, "loss", top, shown)),
        (f"CE read, T = {top}", over_time(runs, "ce_read", top, shown)),
        (f"accuracy in %, step 1 alone, T = {top}", over_time(runs, "accuracy_1", top, shown)),
        (f"CE read, iteration {common}", over_steps(runs, "ce_read", common)),
        (f"accuracy in %, own readout, iteration {common}", over_steps(runs, "accuracy", common)),
    ):
        if len(rows) > 1:
            console.print(_table(title, rows))
    console.print("[bold]What that amounts to[/bold]")
    for sentence in verdict(runs, same):
        console.print(f"• {sentence}", highlight=False)


def _table(title: str, rows: Rows) -> Table:
    table = table_of(title)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table
