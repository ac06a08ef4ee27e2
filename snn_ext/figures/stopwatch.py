"""Times of several ways to do one thing, taken in turn.

All ways run in every round, each round beginning with another one, and what counts is the ratio of times *of
the same round*: a machine that slows down slows all of them down.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Ratio", "Way", "interleaved", "processor", "ratio", "warm"]

Way = Callable[[], Any]


class Ratio(NamedTuple):
    """Of times of the same rounds: median and quartiles."""

    median: float
    low: float
    high: float


def ratio(base: Sequence[float], own: Sequence[float]) -> Ratio:
    """How many times faster `own` is than `base`."""
    ratios = [b / o for b, o in zip(base, own, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return Ratio(statistics.median(ratios), low, high)


def interleaved(ways: Mapping[str, Way], rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of one call of every way, in every round; warmed up first.

    On the CPU processor time (of all threads), on CUDA the time between two events.
    """
    loops = {name: warm(way, device) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    gc.collect()
    gc.freeze()  # so that collecting between the rounds takes no time
    gc.disable()
    try:
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:  # nobody always runs behind the same other
                times[name].append(_seconds(ways[name], loops[name], device))
            gc.collect()  # what sits in cycles must not pile up
    finally:
        gc.enable()
        gc.unfreeze()
    return times


def warm(way: Way, device: str) -> int:
    """Run until nothing is compiled any more; how many calls fill about 10 ms."""
    for _ in range(3):
        way()
    once = _seconds(way, 1, device)
    if once < 0.05:
        once = min(once, *(_seconds(way, 1, device) for _ in range(2)))
    return max(1, min(200, int(0.01 / max(once, 1e-6))))


def _seconds(way: Way, loops: int, device: str) -> float:
    if device == "cuda":
        return _device_seconds(way, loops)
    start = time.process_time()
    for _ in range(loops):
        way()
    return (time.process_time() - start) / loops


def _device_seconds(way: Way, loops: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(loops):
        way()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / loops


def processor() -> str:
    """Name of the machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
