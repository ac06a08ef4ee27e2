"""docs/compatibility.md from the results; the page is never edited by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from results import Results, Row

__all__ = ["render"]

_INTRO = """\
# Compatibility

Written by `make compat` on {r.date}, from [compat/results.json](../compat/results.json):
snn-ext {r.snn_ext} (commit {r.commit}), {r.machine}.

Every row is an environment of its own: the wheel of snn-ext, one release of a framework, and either the
newest dependencies that fit together or the lowest that snn-ext allows. In each the compliance suite ran
(`snn_ext.testing`, see [write your own adapter](adapters/write-your-own.md#3-check-it)) on every network that
the adapter ships: the numbers count checks on networks. norse is the framework of
[the third-party adapter](../examples/third_party_adapter/README.md). The suite does not use `torch.compile`,
in which older torch can do less: see [training](training.md).
"""
_CHECKS = """\
Networks that pass a check / on which it can be run; in brackets: on which it cannot ([why](#unsupported)).
"""
_UNSUPPORTED = """\
Networks that have nothing to run a check on, and why.
"""
_NOTHING = "Nothing.\n"


class _Found(NamedTuple):
    """One check on one network."""

    row: Row
    case: str
    check: str
    status: str
    reason: str

    @property
    def failed(self) -> bool:
        """Expected failures are failures too; what passes against expectation is wrong."""
        return self.status not in ("passed", "unsupported")


def render(results: Results) -> str:
    """The whole page."""
    found = [one for row in results.rows for one in _found(row)]
    checked = [row for row in results.rows if row.state == "checked"]
    sections = {
        "Not checked": _not_checked(results.rows),
        "Failed": _failed(found),
        "Checks": _CHECKS + "\n" + _checks(found, checked),
        "Unsupported": _UNSUPPORTED + "\n" + _unsupported(found, checked),
    }
    pages = [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n".join([_INTRO.format(r=results), _summary(results.rows), *pages])


def _found(row: Row) -> Iterator[_Found]:
    for case, checks in row.cases.items():
        for check, said in checks.items():
            status, _, reason = said.partition(": ")
            yield _Found(row, case, check, status, reason)


def _summary(rows: Iterable[Row]) -> str:
    header = (
        "framework",
        "release",
        "dependencies",
        "torch",
        "Python",
        "result",
        "passed",
        "failed",
        "unsupported",
    )
    lines = []
    for row in rows:
        found = list(_found(row))
        failed, counts = sum(one.failed for one in found), Counter(one.status for one in found)
        result = "**failed**" if failed else "passed" if row.state == "checked" else f"**{row.state}**"
        numbers = (counts["passed"], failed, counts["unsupported"]) if row.state == "checked" else ("-",) * 3
        dependencies = "lowest" if row.lowest else "newest"
        lines.append((row.framework, row.version, dependencies, row.torch, row.python, result, *numbers))
    return _table(header, lines)


def _not_checked(rows: Iterable[Row]) -> str:
    reasons = [_quoted(f"{r.label}: {r.state}", r.reason) for r in rows if r.state != "checked"]
    return "\n".join(reasons) or _NOTHING


def _failed(found: Iterable[_Found]) -> str:
    reasons = [
        _quoted(f"{one.row.label}, {one.case}, `{one.check}`: {one.status}", one.reason)
        for one in found
        if one.failed
    ]
    return "\n".join(reasons) or _NOTHING


def _quoted(title: str, reason: str) -> str:
    return f"{title}\n\n```text\n{reason}\n```\n"


def _checks(found: Sequence[_Found], rows: Sequence[Row]) -> str:
    counts = Counter((one.check, one.row.label, one.status) for one in found)
    failed = Counter((one.check, one.row.label) for one in found if one.failed)

    def cell(check: str, row: str) -> str:
        passed, wrong = counts[check, row, "passed"], failed[check, row]
        run, not_run = passed + wrong, counts[check, row, "unsupported"]
        text = f"{passed}/{run}" if run else "-"
        return (f"**{text}**" if wrong else text) + (f" ({not_run})" if not_run else "")

    checks, labels = dict.fromkeys(one.check for one in found), [row.label for row in rows]
    return _table(("check", *labels), [(f"`{c}`", *(cell(c, label) for label in labels)) for c in checks])


def _unsupported(found: Sequence[_Found], rows: Sequence[Row]) -> str:
    everywhere = Counter(row.framework for row in rows)
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for one in found:
        if one.status == "unsupported":
            groups.setdefault((one.check, one.reason), {}).setdefault(one.case, []).append(one.row)

    def where(case: str, on: Sequence[Row]) -> str:
        """The network, and on which releases if it is not on all of them."""
        labels = ", ".join(row.label for row in on)
        return case if len(on) == everywhere[on[0].framework] else f"{case} ({labels})"

    lines = [
        (f"`{check}`", ", ".join(where(case, on) for case, on in cases.items()), reason)
        for (check, reason), cases in sorted(groups.items())
    ]
    return _table(("check", "networks", "why"), lines) if lines else _NOTHING


def _table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
