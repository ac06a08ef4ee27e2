"""Writes the tables of docs/results.md and docs/reproducing-the-papers.md from the numbers in docs/results.

A page has marks, `<!-- begin NAME -->` and `<!-- end -->`; what is between them is made here, from the JSON
files that the examples wrote, by the functions that print the same tables there.

    python examples/results_page.py            are the pages up to date? exit status 1 if not
    python examples/results_page.py --write    bring them up to date, and draw their pictures
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import convergence_results
import convergence_tables
import digits_results
import digits_tables
import early_exit_results
import norms_results
import results_pictures
from rich.table import Table
from rich.text import Text

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("results.md", "reproducing-the-papers.md")
FILES = ("convergence", "digits", "norms", "early_exit")
FRAMEWORKS = ("SpikingJelly", "snnTorch")
MARK = re.compile(r"(<!-- begin ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Document = dict[str, Any]
Part = Callable[[], str]


def markdown(table: Table) -> str:
    """A table of the console as one of Markdown; its title above it."""
    rows = [[column.header for column in table.columns]]
    rows += map(list, zip(*(column.cells for column in table.columns), strict=True))  # type: ignore[arg-type]
    text = [[literal(Text.from_markup(str(cell)).plain.strip()) for cell in row] for row in rows]
    rule = ["---" if i == 0 else "---:" for i in range(len(text[0]))]
    lines = ["| " + " | ".join(row) + " |" for row in (text[0], rule, *text[1:])]
    return "\n".join([f"**{table.title}**", "", *lines])


def bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {literal(sentence)}" for sentence in sentences)


def literal(text: str) -> str:
    """Without a meaning in Markdown."""
    return text.replace("*", "\\*").replace("|", "\\|").replace("<", "\\<")


# ---------------------------------------------------------------- what the files say


def sources(documents: dict[str, Document]) -> str:
    """Command, file and versions of every measurement."""
    table = digits_tables.table_of("where the numbers are from")
    for name in ("numbers", "command", "seeds", "commit", "versions"):
        table.add_column(name)
    for name, document in documents.items():
        versions = document["origin"]["versions"]
        table.add_row(
            f"`docs/results/{name}.json`",
            f"`{document['settings']['command']}`",
            ", ".join(map(str, document["settings"]["seeds"])),
            f"`{document['origin']['commit']}`",
            ", ".join(f"{p} {versions[p]}" for p in ("python", "torch", "spikingjelly", "snntorch")),
        )
    return markdown(table)


def convergence_parts(document: Document) -> dict[str, Part]:
    runs = [convergence_results.from_json(record) for record in document["runs"]]
    tables = convergence_tables
    top = convergence_results.PUBLISHED_STEPS
    return {
        "convergence published": lambda: markdown(tables.against_published(runs)),
        "convergence told apart": lambda: markdown(tables.told_apart(runs)),
        **{
            f"convergence {curve}": functools.partial(
                lambda curve: markdown(tables.over_time(runs, curve, top)), curve
            )
            for curve in ("loss", "ce_read", "accuracy", "accuracy_1", "silent_1")
        },
        "convergence steps": lambda: markdown(tables.over_steps(runs, "ce_read")),
        "convergence verdict": lambda: bullets(tables.verdict(runs, document["identity"])),
    }


def digits_parts(document: Document) -> dict[str, Part]:
    runs = [digits_results.Run(**record) for record in document["runs"]]
    comparisons = digits_results.compare(runs, baseline="SDT")
    return _compared(
        "digits", document, comparisons, runs, digits_tables.results_table, digits_tables.verdict
    )


def norms_parts(document: Document) -> dict[str, Part]:
    runs = [norms_results.Run(**record) for record in document["runs"]]
    folds = [norms_results.Folded(**record) for record in document["folds"]]
    comparisons = norms_results.compare(runs)
    parts = _compared(
        "norms", document, comparisons, runs, norms_results.results_table, norms_results.verdict
    )
    images = document["settings"]["test_images"]
    return {**parts, "norms folds": lambda: bullets(norms_results.about_folds(folds, images))}


def _compared(
    name: str,
    document: Document,
    comparisons: Sequence[digits_results.Comparison],
    runs: Sequence[Any],
    results_table: Callable[[Sequence[Any], str], Table],
    verdict: Callable[[Sequence[digits_results.Comparison]], list[str]],
) -> dict[str, Part]:
    """Results and differences per framework, the verdict, and what it is worth."""
    settings = document["settings"]
    worth = functools.partial(
        digits_tables.caution, comparisons, len(settings["seeds"]), settings["test_images"]
    )
    parts: dict[str, Part] = {f"{name} verdict": lambda: bullets([*verdict(comparisons), worth()])}
    for framework in FRAMEWORKS:
        parts[f"{name} {framework}"] = functools.partial(
            lambda framework: markdown(results_table(runs, framework)), framework
        )
        parts[f"{name} {framework} differences"] = functools.partial(
            lambda framework: markdown(digits_tables.differences_table(comparisons, framework)), framework
        )
    return parts


def early_exit_parts(document: Document) -> dict[str, Part]:
    runs = [early_exit_results.from_json(record) for record in document["runs"]]
    _, validation, test = document["settings"]["images"]
    return {
        "early exit": lambda: markdown(early_exit_results.table(runs)),
        "early exit verdict": lambda: bullets(early_exit_results.verdict(runs, validation, test)),
    }


def read(folder: Path) -> dict[str, Document]:
    return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in FILES}


def parts(documents: dict[str, Document]) -> dict[str, Part]:
    """Everything that a page can ask for, by name."""
    return {
        "sources": lambda: sources(documents),
        **convergence_parts(documents["convergence"]),
        **digits_parts(documents["digits"]),
        **norms_parts(documents["norms"]),
        **early_exit_parts(documents["early_exit"]),
    }


# ---------------------------------------------------------------- pages


def filled(page: str, found: dict[str, Part]) -> str:
    """The page with every part in its place; a name that nobody makes is a KeyError."""
    return MARK.sub(lambda mark: f"{mark[1]}{found[mark[2]]()}\n{mark[3]}", page)


def outdated(docs: Path, write: bool) -> list[str]:
    """Names of the pages that differ from what the numbers say; with `write` they do no more."""
    found = parts(read(docs / "results"))
    names = []
    for name in PAGES:
        old = (docs / name).read_text("utf-8")
        new = filled(old, found)
        if new != old:
            names.append(name)
            if write:
                (docs / name).write_text(new, encoding="utf-8")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="bring the pages up to date")
    args = parser.parse_args(argv)
    names = outdated(DOCS, args.write)
    for name in names:
        print(f"docs/{name}: " + ("written" if args.write else "outdated; do: add --write"))
    if args.write:
        for path in results_pictures.draw(read(DOCS / "results"), DOCS / "figures"):
            print(f"docs/figures/{path.name}: drawn")
    return 1 if names and not args.write else 0


if __name__ == "__main__":
    sys.exit(main())
