"""The table that `print(plan)` and `print(report)` show, in at most 100 columns."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Row", "render"]

WIDTH = 100


@dataclass(frozen=True)
class Row:
    """One site. `parameters` maps new names to element counts; `note` says why nothing is done; `step`
    is what takes the neuron's steps, `step_note` why nothing better does."""

    site: str
    aliases: int
    module: str
    adapter: str
    time: str
    features: tuple[int, ...] | None
    origin: str
    methods: tuple[str, ...]
    parameters: Mapping[str, int]
    note: str
    step: str = ""
    step_note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data (lists, numbers, strings)."""
        data = asdict(self)
        data.update(features=self.features and list(self.features), methods=list(self.methods))
        return data

    def cells(self) -> list[Text]:
        name = self.site + (f" (+{self.aliases})" if self.aliases else "")
        size = "x".join(map(str, self.features)) if self.features else ""
        features = f"{size} ({self.origin})" if size else self.origin
        methods = ", ".join(m.upper() for m in self.methods)
        if not self.methods:
            methods, features = "none", ""
        counts = " + ".join(map(str, self.parameters.values()))
        values = (name, self.module, self.adapter, self.time, features, methods, counts, self.step)
        return [Text(v) for v in values]


def render(title: str, rows: Sequence[Row]) -> str:
    """Rows as text: one line a site (long names wrap), why sites are left out, and the totals."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("site", "module", "adapter", "time", "features", "methods", "new parameters", "step"):
        wide = header in ("site", "methods", "features")
        table.add_column(header, overflow="fold", no_wrap=not wide and header != "new parameters")
    for row in rows:
        table.add_row(*row.cells())
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None, legacy_windows=False).print(table)
    total = sum(sum(row.parameters.values()) for row in rows)
    patched = sum(bool(row.methods) for row in rows)
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    for note in dict.fromkeys(row.note for row in rows if not row.methods):
        left_out = ", ".join(row.site for row in rows if not row.methods and row.note == note)
        lines += textwrap.wrap(f"none at {left_out}: {note}", WIDTH, subsequent_indent="  ")
    for note in dict.fromkeys(row.note for row in rows if row.methods and row.note):
        there = ", ".join(row.site for row in rows if row.methods and row.note == note)
        lines += textwrap.wrap(f"{there}: {note}", WIDTH, subsequent_indent="  ")
    for why in dict.fromkeys((row.step, row.step_note) for row in rows if row.step_note):
        there = ", ".join(row.site for row in rows if (row.step, row.step_note) == why)
        lines += textwrap.wrap(f"step {why[0]} at {there}: {why[1]}", WIDTH, subsequent_indent="  ")
    lines.append(f"{patched} of {len(rows)} sites, {total:,} new parameters")
    return "\n".join(lines)
