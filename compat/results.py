"""What the runs found, as it is written to results.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Results", "Row", "read", "write"]


@dataclass(frozen=True)
class Row:
    """One environment.

    Attributes:
        framework, version, lowest: see `environments.Environment`.
        state: "checked", "unsupported" (the adapter refuses the release), "not installed", or "broken" (the
            suite did not come to its end).
        reason: why it was not checked.
        python, torch: versions, where they are known.
        cases: case -> check -> status, and after a colon the reason of a status that is not "passed".
    """

    framework: str
    version: str
    lowest: bool
    state: str
    reason: str = ""
    python: str = ""
    torch: str = ""
    cases: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How the page calls it."""
        return f"{self.framework} {self.version}" + (" (lowest)" if self.lowest else "")


@dataclass(frozen=True)
class Results:
    """All environments, and where and when they ran."""

    date: str
    snn_ext: str
    commit: str
    machine: str
    rows: tuple[Row, ...]


def read(path: Path) -> Results:
    """Of a file that `write` wrote."""
    data: dict[str, Any] = json.loads(path.read_text())
    return Results(**data | {"rows": tuple(Row(**row) for row in data["rows"])})


def write(results: Results, path: Path) -> None:
    """As JSON that is fit for version control."""
    path.write_text(json.dumps(asdict(results), indent=1, ensure_ascii=False) + "\n")
