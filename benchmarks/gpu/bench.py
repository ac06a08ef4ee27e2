"""What every part of the suite is given: where to run, how long it may take, and how to survive errors."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from snn_ext.kernels import host_backend

__all__ = ["Bench", "Clock", "attempt", "text"]

T = TypeVar("T")


class Clock:
    """Counts down."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


@dataclass
class Bench:
    """One part's view of the run.

    Args:
        dry: run on the CPU, with tiny sizes; what needs a CUDA device is noted instead.
        clock: the time of this part.
        say: shows progress.
        notes: what was left out, and why.
    """

    dry: bool
    clock: Clock
    say: Callable[[str], None] = lambda _: None
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def backend(self) -> str:
        """The kernels to look at."""
        if not self.dry:
            return "cupy"
        return "torch" if host_backend.unavailable() else "host"

    def pick(self, full: T, tiny: T) -> T:
        """The size for this machine."""
        return tiny if self.dry else full

    def cuda(self, what: str) -> bool:
        """Whether to go on with what only a CUDA device can do; noted where not."""
        note = f"not run without CUDA: {what}"
        if self.dry and note not in self.notes:
            self.notes.append(note)
        return not self.dry

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items, as far as the time goes."""
        for i, item in enumerate(items):
            if not self.clock.left:
                self.notes.append(f"time was up: {len(items) - i} of {len(items)} {what} not run")
                return
            yield item

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def empty_cache(self) -> None:
        if not self.dry:
            torch.cuda.empty_cache()


def attempt(work: Callable[[], Any]) -> Any:
    """What `work` returns, or ``{"error": text}``: one failure must not cost the results of the others."""
    try:
        return work()
    except Exception as error:
        return {"error": text(error)}


def text(error: BaseException) -> str:
    """The error and the last places it came through, short enough for a table of many."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:1500]} [{where}]"
