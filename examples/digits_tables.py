"""What the demo says at its end: a table of results, a table of differences, and what they amount to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from digits_results import Comparison, Outcome, Run, luck, select, summarise
from rich import box
from rich.console import Console
from rich.table import Table

LEGEND = (
    "epoch n: after n epochs, with the objective's own readout. step t only: after training, reading that"
    " time step alone. V0 moved: mean absolute change of V0 by training, in units of the threshold."
)
_WORDS: dict[Outcome, str] = {
    "helps": "helps in",
    "hurts": "hurts in",
    "ties": "no clear difference in",
    "unknown": "cannot be judged in",
}
_STYLES: dict[Outcome, str] = {"helps": "green", "hurts": "red", "ties": "dim", "unknown": "dim"}


def results_table(runs: Sequence[Run], framework: str) -> Table:
    """One row per objective with and without IMP: test accuracy in percent, mean ± std over seeds."""
    runs = [run for run in runs if run.framework == framework]
    seeds = len({run.seed for run in runs})
    table = table_of(f"{framework}: test accuracy in %, mean ± standard deviation of {seeds} seeds")
    table.add_column("training")
    for measure in runs[0].measures():
        table.add_column(measure, justify="right")
    table.add_column("V0 moved", justify="right")
    for objective in dict.fromkeys(run.objective for run in runs):
        for imp in (False, True):
            chosen = select(runs, framework, objective, imp)
            cells = [str(statistic) for statistic in summarise(chosen).values()]
            name = f"{objective} + IMP" if imp else objective
            table.add_row(name, *cells, _moved(chosen), style="bold" if imp else None)
        table.add_section()
    return table


def _moved(runs: Sequence[Run]) -> str:
    changes = [change for run in runs for change in run.v0_moved.values()]
    return f"{statistics.fmean(changes):.3f}" if changes else ""


def differences_table(comparisons: Sequence[Comparison], framework: str) -> Table:
    """Every comparison of one framework: difference in points, and what it is worth."""
    comparisons = [c for c in comparisons if c.framework == framework]
    table = table_of(f"{framework}: difference in points, counted if above both deviations")
    table.add_column("comparison")
    for measure in dict.fromkeys(c.measure for c in comparisons):
        table.add_column(measure, justify="right")
    rows: dict[str, list[Comparison]] = {}
    for c in sorted(comparisons, key=lambda c: c.method != "IMP"):
        rows.setdefault(f"{c.method} {c.against}", []).append(c)
    for name, row in rows.items():
        table.add_row(name, *map(_cell, row))
    return table


def _cell(c: Comparison) -> str:
    return f"[{_STYLES[c.outcome]}]{c.difference:+z.1f} {c.outcome:>5}[/]"


def table_of(title: str) -> Table:
    """An empty table in the style of the demos."""
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAVY, pad_edge=False)


def verdict(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence per method and measure, made from the comparisons alone."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for c in sorted(comparisons, key=lambda c: c.method != "IMP"):
        groups.setdefault((_subject(c), c.measure), []).append(c)
    return [f"{subject}, {measure}: {_outcomes(group)}." for (subject, measure), group in groups.items()]


def _subject(c: Comparison) -> str:
    return "IMP" if c.method == "IMP" else f"{c.method} {c.against}"


def _outcomes(group: Sequence[Comparison]) -> str:
    parts = []
    for outcome, words in _WORDS.items():
        places: dict[str, list[str]] = {}
        for c in group:
            if c.outcome == outcome:
                places.setdefault(c.framework, []).append(c.against.removeprefix("with "))
        named = [_place(framework, against, group) for framework, against in places.items()]
        if named:
            parts.append(f"{words} {' and '.join(named)}")
    return "; ".join(parts)


def _place(framework: str, against: list[str], group: Sequence[Comparison]) -> str:
    everywhere = len(against) == sum(c.framework == framework for c in group)
    return framework if everywhere else f"{framework} ({', '.join(against)})"


def caution(comparisons: Sequence[Comparison], seeds: int, test_images: int) -> str:
    """How much a verdict of this kind is worth."""
    if seeds < 2:
        return "One seed has no spread: no difference can be told from chance. Use --seeds 3 or more."
    chance = luck(seeds)
    return (
        "How to read this: 'helps' and 'hurts' mean a difference of means larger than either standard"
        f" deviation over {seeds} seeds. That is a low bar: two equally good methods, run independently,"
        f" would clear it in {chance:.0%} of comparisons: about {chance * len(comparisons):.0f} of the"
        f" {len(comparisons)} here."
        " The spread is that of the training; all seeds share one split, in which one test image is"
        f" {100 / test_images:.2f} points."
    )


def show(console: Console, runs: Sequence[Run], comparisons: Sequence[Comparison], test_images: int) -> None:
    """Print the tables, and end with the verdict."""
    console.print(f"\n{LEGEND}", highlight=False)
    for framework in dict.fromkeys(run.framework for run in runs):
        console.print()
        console.print(results_table(runs, framework))
        console.print(differences_table(comparisons, framework))
    conclude(
        console, verdict(comparisons), caution(comparisons, len({run.seed for run in runs}), test_images)
    )


def conclude(console: Console, sentences: Sequence[str], warning: str) -> None:
    """The end of a demo: what the numbers say, and how much that is worth."""
    console.print("\n[bold]Where a method helps, and where it does not[/bold]")
    for sentence in sentences:
        console.print(f"• {sentence}", highlight=False)
    console.print(f"\n{warning}", highlight=False)
