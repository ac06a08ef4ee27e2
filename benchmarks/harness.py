"""Time and memory of several ways to do one thing, measured together and written down with their origin.

All ways of one case run in turn within every round, each round beginning with another one, and what is
reported is the median over rounds of the ratio to the baseline *in the same round*: a machine that slows
down slows all of them down.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from memory import kept
from rich.console import Console
from rich.progress import track
from rich.table import Table

from snn_ext.figures.stopwatch import Ratio, Way, interleaved, processor, ratio

__all__ = [
    "Case",
    "Measured",
    "Ratio",
    "duration",
    "interleaved",
    "main",
    "measure",
    "origin",
    "plot",
    "ratio",
    "show",
]

ALLOCATOR = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
"""Without it, tensors of 32 MiB and more are fresh pages at every call, and page faults hide the rest."""


@dataclass(frozen=True)
class Case:
    """One row of a benchmark.

    Args:
        name: what is done, for example ``"LIF T=4 N=65536"``.
        setup: makes the ways, ``{name: a call of no arguments}``; used for time and for memory.
        baseline: the way that the others are compared with.
        units: neuron-steps (or samples) of one call, for the absolute numbers.
        goals: way -> smallest speed-up over the baseline that is aimed at.
        rounds: how often all ways are run in turn.
    """

    name: str
    setup: Callable[[], Mapping[str, Way]]
    baseline: str
    units: int
    goals: Mapping[str, float] = field(default_factory=dict)
    rounds: int = 15


@dataclass(frozen=True)
class Measured:
    """One way of one case.

    Attributes:
        baseline: the way it is compared with.
        ns: nanoseconds of processor (or device) time per unit, median over rounds.
        speedup: baseline time / own time of the same round, median over rounds.
        low, high: quartiles of `speedup`.
        kept: bytes kept for the backward pass per unit, see `kept`; None where nothing is.
        goal: the speed-up aimed at, if any.
    """

    case: str
    way: str
    baseline: str
    ns: float
    speedup: float
    low: float
    high: float
    kept: float | None
    goal: float | None

    @property
    def verdict(self) -> str:
        """How it stands to its goal."""
        if self.goal is None:
            return ""
        return "met" if self.speedup >= self.goal else "MISSED"


def measure(case: Case, device: str = "cpu") -> list[Measured]:
    """All ways of one case, interleaved."""
    torch.manual_seed(0)
    ways = dict(case.setup())
    times = interleaved(ways, case.rounds, device)
    return [_summary(case, name, times, kept(way)) for name, way in ways.items()]


def _summary(case: Case, name: str, times: Mapping[str, list[float]], saved: int) -> Measured:
    found = ratio(times[case.baseline], times[name])
    return Measured(
        case=case.name,
        way=name,
        baseline=case.baseline,
        ns=statistics.median(times[name]) / case.units * 1e9,
        speedup=found.median,
        low=found.low,
        high=found.high,
        kept=saved / case.units if saved else None,
        goal=case.goals.get(name),
    )


def origin(device: str, command: Iterable[str]) -> dict[str, Any]:
    """Where numbers come from: device, versions, commit, command, allocator."""
    versions = {}
    for name in ("torch", "triton", "numpy", "cupy-cuda12x", "cupy-cuda13x", "spikingjelly", "snntorch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "command": " ".join(command),
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _commit() -> str:
    """Of the source; "unknown" in a copy without its history."""

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def duration(ns: float) -> str:
    """Three digits and a unit."""
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def show(results: Iterable[Measured], console: Console) -> None:
    """The table, losers included."""
    table = Table(box=None, pad_edge=False)
    for header in ("case", "way", "time", "speed-up", "quartiles", "kept B", "goal", ""):
        table.add_column(header, justify="left" if header in ("case", "way", "") else "right", no_wrap=True)
    last = ""
    for r in results:
        table.add_row(
            r.case if r.case != last else "",
            r.way,
            duration(r.ns),
            f"{r.speedup:.2f}x",
            f"{r.low:.2f}-{r.high:.2f}",
            "" if r.kept is None else f"{r.kept:,.1f}".removesuffix(".0"),
            "" if r.goal is None else f"{r.goal:g}x",
            r.verdict,
        )
        last = r.case
    console.print(table)


def main(name: str, cases: Callable[[bool], list[Case]], argv: list[str] | None = None) -> None:
    """Command line of one benchmark, see ``--help``."""
    parser = argparse.ArgumentParser(description=f"Benchmark: {name}")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to see it run")
    parser.add_argument("--out", type=Path, help="write the numbers and their origin as JSON")
    parser.add_argument("--plot", type=Path, help="write a picture of the speed-ups")
    parser.add_argument("--default-allocator", action="store_true", help="leave malloc as it is")
    args = parser.parse_args(argv)
    if argv is None and not args.default_allocator and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "GLIBC_TUNABLES": ALLOCATOR})
    torch.set_num_threads(1)
    results: list[Measured] = []
    for case in track(cases(args.quick), description=name, console=Console(stderr=True)):
        results += measure(case)
    record = {
        "benchmark": name,
        **origin("cpu", sys.argv),
        "results": [{**asdict(r), "verdict": r.verdict} for r in results],
    }
    console = Console(width=max(120, Console().width))
    console.print(f"{name}: forward and backward, processor time of one thread, per neuron-step or sample")
    console.print(f"{record['device']}; allocator: {record['allocator']}", highlight=False)
    show(results, console)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot, name)


def plot(results: Sequence[Measured], path: Path, title: str) -> None:
    """Speed-ups over the baseline of each case, with quartiles and goals."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(r.case for r in results))
    rows = [i + 1.5 * (1 + cases.index(r.case)) for i, r in enumerate(results)]
    figure = Figure(figsize=(8, 0.8 + 0.19 * rows[-1]), layout="constrained")
    axes = figure.subplots()
    quartiles = [[max(0, r.speedup - r.low) for r in results], [max(0, r.high - r.speedup) for r in results]]
    colours = [_colour(r) for r in results]
    axes.barh(rows, [r.speedup for r in results], color=colours, xerr=quartiles, ecolor="0.3")
    for y, r in zip(rows, results, strict=True):
        if r.goal is not None:
            axes.plot([r.goal, r.goal], [y - 0.5, y + 0.5], color="black", linewidth=2)
    for case in cases:
        y, first = next((y, r) for y, r in zip(rows, results, strict=True) if r.case == case)
        axes.text(0, y - 0.9, f"{case}; 1 = {first.baseline}", fontsize=9, weight="bold", va="center")
    axes.set_yticks(rows, [r.way for r in results], fontsize=8)
    axes.set_ylim(rows[-1] + 1, 0)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(
        "times as fast as the baseline; what is not ours is grey, black marks are goals", fontsize=9
    )
    axes.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _colour(r: Measured) -> str:
    others = ("SpikingJelly", "snnTorch", "torch", "plain", "unpatched")
    return "0.7" if r.way == r.baseline or r.way.startswith(others) else "C0"
