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

LEGEND = (
    "loss: that of the objective itself, so that different objectives are on different scales. CE read:"
    " cross-entropy of the scores that the objective is read by, the last step's for LTS and the mean for the"
    " others: one scale for all. Accuracies are of the 1,024 inputs that are learned: nothing here says how"
    " well anything generalises. ± is the standard deviation over seeds, in brackets: how many."
)


def against_published(runs: Sequence[Run]) -> Table:
    """Our own loss and the published one, without IMP, for every seed."""
    seeds = seeds_of(runs)
    table = _table(
        f"loss, T = {PUBLISHED_STEPS}, without IMP, against the published curves",
        ["objective", "iteration", "published", "tolerance", *(f"seed {seed}" for seed in seeds)],
    )
    for objective, points in PUBLISHED.items():
        ours = {run.setup.seed: run for run in select(runs, objective, False, PUBLISHED_STEPS)}
        for iteration, published in points.items():
            cells = [_judged(ours.get(seed), objective, iteration) for seed in seeds]
            allowed = f"± {tolerance(published):.3f}" if iteration in ACCEPTED else ""
            table.add_row(objective, str(iteration), f"{published:.3f}", allowed, *cells)
    return table


def told_apart(runs: Sequence[Run]) -> Table:
    """The published curves against networks that differ on purpose: what would the tolerance notice?"""
    table = _table(
        "what the tolerance can tell apart",
        ["published", "compared with", *(f"it {iteration}" for iteration in ACCEPTED), "told apart"],
    )
    steps = sorted({run.setup.steps for run in runs})
    for objective in PUBLISHED:
        others = {
            "hard reset": select(runs, objective, False, PUBLISHED_STEPS, "hard"),
            "with IMP": select(runs, objective, True, PUBLISHED_STEPS),
            **{f"T = {t}": select(runs, objective, False, t) for t in steps if t != PUBLISHED_STEPS},
            **{o: select(runs, o, False, PUBLISHED_STEPS) for o in OBJECTIVES if o != objective},
        }
        for name, chosen in others.items():
            if chosen and set(ACCEPTED) <= set(chosen[0].logged):
                values = [f"{chosen[0].at('loss', i):.3f}" for i in ACCEPTED]
                same = all(agrees(chosen[0], objective, i) for i in ACCEPTED)
                table.add_row(objective, name, *values, "no" if same else "yes")
    return table


def _judged(run: Run | None, objective: str, iteration: int) -> str:
    if run is None or iteration not in run.logged:
        return ""
    loss = f"{run.at('loss', iteration):.3f}"
    inside = iteration not in ACCEPTED or agrees(run, objective, iteration)
    return loss if inside else f"{loss} (outside)"


NAMES = {
    "loss": "loss, each its own",
    "ce_read": "CE read",
    "ce_mean": "CE of the mean",
    "accuracy": "accuracy in %, own readout",
    "accuracy_1": "accuracy in %, reading step 1 alone",
    "silent_1": "inputs without any score at step 1, in %",
}


def over_time(runs: Sequence[Run], curve: str, steps: int) -> Table:
    """One row per objective without and with IMP, mean ± deviation over the seeds that came so far."""
    logged = max((run.logged for run in runs if run.setup.steps == steps), key=len)
    iterations = [i for i in (*ACCEPTED, 500) if i in logged[:-1]] + [logged[-1]]
    table = _table(f"{NAMES[curve]}, T = {steps}", ["training", *(f"it {i}" for i in iterations)])
    for objective, imp in itertools.product(OBJECTIVES, (False, True)):
        chosen = select(runs, objective, imp, steps)
        table.add_row(_name(objective, imp), *(_cell(chosen, curve, i) for i in iterations))
    return table


def over_steps(runs: Sequence[Run], curve: str) -> Table:
    """The same at one iteration, one column per T."""
    steps = sorted({run.setup.steps for run in runs})
    last = max(set.intersection(*(set(run.logged) for run in runs if run.setup.reset == "soft")))
    table = _table(f"{NAMES[curve]}, iteration {last}", ["training", *(f"T = {t}" for t in steps)])
    for objective, imp in itertools.product(OBJECTIVES, (False, True)):
        table.add_row(
            _name(objective, imp), *(_cell(select(runs, objective, imp, t), curve, last) for t in steps)
        )
    return table


def _table(title: str, header: Sequence[str]) -> Table:
    table = table_of(title)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    return table


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _name(objective: str, imp: bool) -> str:
    return f"{objective} + IMP" if imp else objective


def _cell(runs: Sequence[Run], curve: str, iteration: int) -> str:
    seeds = sum(iteration in run.logged for run in runs)
    if not seeds:
        return ""
    mean, deviation = at(runs, curve, iteration)
    digits = 1 if curve.startswith(("accuracy", "silent")) else 3 if mean >= 0.01 else 4
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{spread} ({seeds})"


# ---------------------------------------------------------------- sentences


def verdict(runs: Sequence[Run], same: Mapping[str, Any]) -> list[str]:
    """What the numbers say; nothing in it is written by hand."""
    return [
        *_published(runs),
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
                f" {' and '.join(map(str, ACCEPTED))} with {len(within)} of {_many(len(chosen), 'seed')}"
                f" ({seeds})."
            )
    return said


def _identity(same: Mapping[str, Any]) -> str:
    equal = all(same["equal"].values())
    return (
        f"T = {same['steps']}: networks trained for {same['iterations']} iterations with"
        f" {', '.join(same['objectives'])} (loss then {same['loss']:.3f}) are"
        f" {'equal to the last bit' if equal else 'NOT EQUAL'}, without and with IMP."
    )


def _imp(runs: Sequence[Run], steps: int) -> str:
    """How much of the objective's own loss does IMP leave, early and late?"""
    parts = []
    for objective in (o for o in OBJECTIVES if steps > 1 or o not in COINCIDE[1:]):
        plain, with_imp = (select(runs, objective, imp, steps) for imp in (False, True))
        pairs = [(a, b) for a in plain for b in with_imp if a.setup.seed == b.setup.seed]
        if pairs:
            logged = pairs[0][0].logged
            shown = [i for i in (*ACCEPTED, 500) if i in logged[:-1]] + [logged[-1]]
            parts.append(f"{objective} {', '.join(_left(pairs, i) for i in shown)}")
    return (
        f"T = {steps}, loss with IMP in percent of that without, same seed (range over seeds):"
        f" {'; '.join(parts)}."
    )


def _left(pairs: Sequence[tuple[Run, Run]], iteration: int) -> str:
    left = [
        100 * with_imp.at("loss", iteration) / plain.at("loss", iteration)
        for plain, with_imp in pairs
        if iteration in plain.logged
    ]
    spread = f" ({min(left):.0f} to {max(left):.0f})" if len(left) > 1 else ""
    return f"{sum(left) / len(left):.0f}{spread} at {iteration}"


def _order(runs: Sequence[Run]) -> list[str]:
    """The order of the objectives depends on the scale."""
    said = []
    for iteration, curve in itertools.product(ACCEPTED, ("loss", "ce_read", "ce_mean")):
        means = {
            objective: at(chosen, curve, iteration)[0]
            for objective in OBJECTIVES
            if (chosen := select(runs, objective, False, PUBLISHED_STEPS)) and iteration in chosen[0].logged
        }
        if means:
            order = " < ".join(f"{o} {means[o]:.3f}" for o in sorted(means, key=means.__getitem__))
            said.append(f"T = {PUBLISHED_STEPS}, iteration {iteration}, {NAMES[curve]}: {order}.")
    return said


# ---------------------------------------------------------------- printing


def tables(runs: Sequence[Run]) -> list[Table]:
    """All of them; those of the T of the published curves, or of the largest."""
    steps = {run.setup.steps for run in runs}
    top = PUBLISHED_STEPS if PUBLISHED_STEPS in steps else max(steps)
    compared = [against_published(runs), told_apart(runs)] if top == PUBLISHED_STEPS else []
    return [
        *compared,
        *(over_time(runs, curve, top) for curve in ("loss", "ce_read", "accuracy", "accuracy_1", "silent_1")),
        *(over_steps(runs, curve) for curve in ("ce_read", "accuracy")),
    ]


def show(console: Console, runs: Sequence[Run], same: Mapping[str, Any]) -> None:
    """Print the tables, and end with the verdict."""
    console.print(f"\n{LEGEND}\n", highlight=False)
    for table in tables(runs):
        console.print(table)
    console.print("[bold]What that amounts to[/bold]")
    for sentence in verdict(runs, same):
        console.print(f"• {sentence}", highlight=False)
