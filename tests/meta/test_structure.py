"""House rules that a linter cannot see."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import snn_ext

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("snn_ext/**/*.py"), *ROOT.glob("adapters/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small_and_explained(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert ast.get_docstring(ast.parse(text)), "one sentence on top says what the file is for"
    assert not re.search(r"^\s*assert ", text, re.MULTILINE), "no assert in library code"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@pytest.mark.parametrize("name", snn_ext.__all__)
def test_public_names_are_documented(name: str) -> None:
    item = getattr(snn_ext, name)
    assert inspect.getdoc(item)
    if inspect.isclass(item) and not inspect.isabstract(item):
        assert item.__doc__, "a docstring of its own, not an inherited one"


def test_public_names_are_in_the_docs() -> None:
    pages = [p for p in ROOT.glob("docs/**/*.md") if p.parent.name != "reference"]  # which only lists them
    docs = " ".join(p.read_text() for p in [ROOT / "README.md", *pages])
    missing = [name for name in snn_ext.__all__ if not re.search(rf"\b{name}\b", docs)]
    assert not missing


def test_the_changelog_names_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[(Unreleased|{re.escape(snn_ext.__version__)})\]", text, re.MULTILINE)
