"""What was measured with every norm, and what it amounts to: tables, and sentences made from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from digits_networks import STEPS
from digits_results import Comparison, Outcome, differences, first_and_last, summarise
from digits_tables import caution, conclude, differences_table, table_of
from rich.console import Console
from rich.table import Table

NONE, BN = "none", "BN"
LEGEND = (
    "epoch n: after n epochs, with running statistics: the ordinary way. epoch n*: the same network with the"
    " statistics of the test images themselves, all together. Nobody can use it so, but it shows what the"
    " weights have learned, whether or not the running statistics have followed. + params: what the norm adds"
    " to train.\nBN: the framework's own. TEBN, BNTT: the same norms, converted; TEBN (step): with statistics"
    " of single steps; BNTT (input): at the input of the neurons of a network without BN. MPBN: inside the"
    " neurons."
)
CONTEXT = (
    "Where n and n* differ, the running statistics are the reason. They follow the weights with momentum 0.1:"
    f" {STEPS} times per batch in MPBN, and in BN and TEBN called step by step; once per batch in BN and TEBN"
    " over whole sequences, and in BNTT, where each step has its own. Early they lag behind. Besides, MPBN"
    " shares one set between all steps, although membranes drift from step to step (pictures): that stays.\n"
    "All networks start from the same weights, at which neurons without a norm hardly fire. Larger initial"
    " weights might replace some of what a norm does; that was not tried."
)


@dataclass(frozen=True)
class Run:
    """One training. Accuracies are in percent of the test images.

    Attributes:
        accuracy: after every epoch, with running statistics.
        own_statistics: after the first and the last epoch, with those of the test images.
        parameters: to train, beyond those of the network without a norm.
        seconds: wall time.
    """

    framework: str
    norm: str
    seed: int
    accuracy: tuple[float, ...]
    own_statistics: tuple[float, float]
    parameters: int
    seconds: float

    def measures(self) -> dict[str, float]:
        found = {}
        ends = first_and_last(self.accuracy).items()
        # not strict: after a single epoch, the first is the last
        for (epoch, accuracy), own in zip(ends, self.own_statistics, strict=False):
            found[epoch], found[f"{epoch}*"] = accuracy, own
        return found


@dataclass(frozen=True)
class Folded:
    """What `snn_ext.fold` printed, and how many test images it put into another class."""

    framework: str
    norm: str
    seed: int
    said: str
    changed: int


def of(runs: Sequence[Run], framework: str, norm: str) -> list[Run]:
    """The runs of one configuration, one per seed."""
    return [run for run in runs if (run.framework, run.norm) == (framework, norm)]


def norms_of(runs: Sequence[Run], framework: str) -> list[str]:
    """The names of the norms that were tried there, in order."""
    return list(dict.fromkeys(run.norm for run in runs if run.framework == framework))


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Every norm against none, and every other norm against BN."""
    return [
        comparison
        for reference, without in ((NONE, {NONE}), (BN, {NONE, BN}))
        for framework in dict.fromkeys(run.framework for run in runs)
        for norm in norms_of(runs, framework)
        if norm not in without
        for comparison in differences(
            norm, f"vs. {reference}", of(runs, framework, norm), of(runs, framework, reference)
        )
    ]


_VERBS: dict[Outcome, tuple[str, str]] = {
    "helps": ("helps", "help"),
    "ties": ("ties", "tie"),
    "hurts": ("hurts", "hurt"),
    "unknown": ("cannot be judged", "cannot be judged"),
}


def verdict(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence per reference and measure, made from the comparisons alone."""
    groups: dict[tuple[str, str], dict[str, list[Comparison]]] = {}
    for c in comparisons:
        groups.setdefault((c.against, c.measure), {}).setdefault(c.framework, []).append(c)
    return [
        f"{measure}, {against}: "
        + "; ".join(f"in {framework} {_outcomes(group)}" for framework, group in frameworks.items())
        + "."
        for (against, measure), frameworks in groups.items()
    ]


def _outcomes(group: Sequence[Comparison]) -> str:
    parts = []
    for outcome, (one, many) in _VERBS.items():
        norms = [c.method for c in group if c.outcome == outcome]
        if len(norms) == len(group):
            return f"all {many}"
        if norms:
            parts.append(f"{', '.join(norms)} {one if len(norms) == 1 else many}")
    return ", ".join(parts)


def results_table(runs: Sequence[Run], framework: str) -> Table:
    """One row per norm: test accuracy in percent, mean ± standard deviation over seeds."""
    seeds = len({run.seed for run in runs})
    table = table_of(f"{framework}: test accuracy in %, mean ± standard deviation of {seeds} seeds")
    table.add_column("norm")
    table.add_column("+ params", justify="right")
    for measure in runs[0].measures():
        table.add_column(measure, justify="right")
    for norm in norms_of(runs, framework):
        chosen = of(runs, framework, norm)
        table.add_row(norm, str(chosen[0].parameters), *map(str, summarise(chosen).values()))
    return table


def about_folds(folds: Sequence[Folded], images: int) -> list[str]:
    """What `snn_ext.fold` said of which networks, and whether the predictions are the same."""
    counts = Counter((f.framework, f.norm, f.said, f.changed) for f in folds)
    return [
        f"{framework} {norm}, {count} of the trained networks: {said}; "
        + (f"{changed} of {images} predictions differ" if changed else f"all {images} predictions identical")
        for (framework, norm, said, changed), count in counts.items()
    ]


def show(
    console: Console,
    runs: Sequence[Run],
    comparisons: Sequence[Comparison],
    folds: Sequence[Folded],
    images: int,
) -> None:
    """Print the tables, what folding did, and end with the verdict."""
    console.print(f"\n{LEGEND}", highlight=False)
    for framework in dict.fromkeys(run.framework for run in runs):
        console.print()
        console.print(results_table(runs, framework))
        console.print(differences_table(comparisons, framework))
    console.print("[bold]MPBN folded into the thresholds, measured on the test images[/bold]")
    for sentence in about_folds(folds, images):
        console.print(f"• {sentence}", highlight=False)
    warning = caution(comparisons, len({run.seed for run in runs}), images)
    conclude(console, verdict(comparisons), f"{CONTEXT}\n\n{warning}")
