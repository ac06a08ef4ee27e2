"""What readers return, and what they say about a folder that does not hold the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import snn_ext


class Source(Protocol):
    """A data set as torchvision, SpikingJelly and tonic make them: item -> (sample, label)."""

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Part:
    """A training or test set: some samples of a source.

    Attributes:
        indices: positions in the source.
        names: of the files, relative to the data set's folder; one per index.
        labels: class numbers; one per index.
    """

    source: Source
    indices: Sequence[int]
    names: Sequence[str]
    labels: Sequence[int]

    def only(self, keep: Sequence[bool]) -> Part:
        """The samples that are marked."""
        chosen = [i for i, kept in enumerate(keep) if kept]
        return Part(
            self.source,
            [self.indices[i] for i in chosen],
            [self.names[i] for i in chosen],
            [self.labels[i] for i in chosen],
        )


def missing(what: str, folder: Path, layout: Sequence[str], why: str) -> snn_ext.OptionError:
    """The error for a folder without the data."""
    expected = "\n    ".join(str(folder / name) for name in layout)
    return snn_ext.OptionError(
        f"{folder} does not hold {what}.",
        why=f"{why}\n  expected:\n    {expected}",
        do="get the data set from its authors, and name the folder that holds it: --data FOLDER;"
        " nothing is downloaded here",
    )
