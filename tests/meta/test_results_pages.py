"""The pages of results: their numbers are those of the files, and there are no others."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS, PAPERS = "results.md", "reproducing-the-papers.md"
# recalled, never found in a source: not to be quoted as a fact
UNTRACED = [
    "65.38",
    "96.06",
    "93.54",
    "94.28",
    "78.71",
    "79.51",
    "70.79",
    "72.30",
    "78.70",
    "66.6",
    "57.8",
    "63.2",
    "92.81",
    "94.57",
    "94.70",
    "94.71",
    "75.86",
    "76.13",
    "76.41",
    "75.10",
    "84.90",
    "94.50",
    "74.72",
]
CODE = re.compile(r"`[^`\n]*`")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("results_page")
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == ROOT / "examples":
            del sys.modules[name]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    for name in (RESULTS, PAPERS):
        shutil.copy(DOCS / name, tmp_path / name)
    shutil.copytree(DOCS / "results", tmp_path / "results")
    return tmp_path


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "results" / f"{name}.json").read_text("utf-8"))
    return found


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the table with this title, without its heading."""
    text = (DOCS / page).read_text("utf-8").split(f"**{title}")[1].split("<!-- end -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def cell(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


# ---------------------------------------------------------------- up to date


def test_the_pages_are_up_to_date(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 0, capsys.readouterr().out


def test_the_pictures_are_drawn_from_the_files(script: Any, tmp_path: Path) -> None:
    drawn = script.results_pictures.draw(script.read(DOCS / "results"), tmp_path)
    shown = re.findall(r"\(figures/([\w-]+\.png)\)", (DOCS / RESULTS).read_text("utf-8"))
    assert sorted(path.name for path in drawn) == sorted(shown)
    assert all(path.stat().st_size > 10_000 for path in drawn)


SPOIL: dict[str, Callable[[dict[str, Any]], object]] = {
    "convergence": lambda found: found["runs"][0]["curves"]["loss"].__setitem__(10, 9.9),
    "digits": lambda found: found["runs"][0]["accuracy"].__setitem__(0, 1.0),
    "norms": lambda found: found["runs"][0].update(parameters=7),
    "early_exit": lambda found: found["runs"][0]["fixed"][0].update(accuracy=1.0),
}


@pytest.mark.parametrize("name", SPOIL)
def test_a_changed_file_is_noticed_and_mended(name: str, docs: Path, script: Any) -> None:
    file = docs / "results" / f"{name}.json"
    found = json.loads(file.read_text("utf-8"))
    SPOIL[name](found)
    file.write_text(json.dumps(found), "utf-8")
    assert RESULTS in script.outdated(docs, write=True)
    assert script.outdated(docs, write=False) == []


@pytest.mark.parametrize(
    ("name", "old", "new"), [(RESULTS, "| 1.0 ± 0.0 |", "| 1.1 ± 0.0 |"), (PAPERS, "| 1.422 |", "| 1.442 |")]
)
def test_a_changed_page_is_noticed_and_mended(name: str, old: str, new: str, docs: Path, script: Any) -> None:
    page = docs / name
    text = page.read_text("utf-8")
    page.write_text(text.replace(old, new), "utf-8")
    assert script.outdated(docs, write=True) == [name]
    assert page.read_text("utf-8") == text


def test_a_page_cannot_ask_for_what_nobody_makes(docs: Path, script: Any) -> None:
    page = docs / RESULTS
    page.write_text(
        page.read_text("utf-8").replace("<!-- begin sources -->", "<!-- begin sauces -->"), "utf-8"
    )
    with pytest.raises(KeyError, match="sauces"):
        script.outdated(docs, write=True)


# ---------------------------------------------------------------- the same numbers, counted anew


@pytest.mark.parametrize("framework", ["SpikingJelly", "snnTorch"])
def test_digits_are_those_of_the_file(framework: str) -> None:
    runs = [r for r in document("digits")["runs"] if r["framework"] == framework]
    table = rows(RESULTS, f"{framework}: test accuracy in %, mean ± standard deviation of 5 seeds")
    assert len(table) == 8
    for name, first, last, step_1, step_4, _ in table:
        objective, _, imp = name.partition(" + ")
        chosen = [r for r in runs if (r["objective"], r["imp"]) == (objective, bool(imp))]
        assert len(chosen) == 5
        assert first == cell([r["accuracy"][0] for r in chosen], 1)
        assert last == cell([r["accuracy"][-1] for r in chosen], 1)
        assert step_1 == cell([r["step_accuracy"][0] for r in chosen], 1)
        assert step_4 == cell([r["step_accuracy"][-1] for r in chosen], 1)


@pytest.mark.parametrize(
    ("title", "curve", "digits"),
    [
        ("loss, each its own, T = 4", "loss", 3),
        ("accuracy in %, reading step 1 alone, T = 4", "accuracy_1", 1),
    ],
)
def test_convergence_is_that_of_the_file(title: str, curve: str, digits: int) -> None:
    runs = document("convergence")["runs"]
    table = rows(RESULTS, title)
    assert len(table) == 8
    for name, *cells in table:
        objective, _, imp = name.partition(" + ")
        wanted = {"objective": objective, "imp": bool(imp), "steps": 4, "reset": "soft"}
        chosen = [r for r in runs if wanted.items() <= r["setup"].items()]
        for iteration, found in zip((100, 200, 500, 999), cells, strict=True):
            values = [
                r["curves"][curve][r["logged"].index(iteration)] for r in chosen if iteration in r["logged"]
            ]
            small = digits > 1 and bool(values) and statistics.fmean(values) < 0.01
            assert found == (f"{cell(values, digits + small)} ({len(values)})" if values else "")


def test_every_command_is_one_of_ours_without_paths_of_a_machine() -> None:
    for file in sorted((DOCS / "results").glob("*.json")):
        text = file.read_text("utf-8")
        command = json.loads(text)["settings"]["command"].split()
        assert command[0] == "python"
        assert (ROOT / command[1]).exists()
        assert not any(word.startswith("/") for word in command)
        assert not re.search(r'"/|~/', text)


# ---------------------------------------------------------------- and no others


def numbers_by_hand(page: str) -> list[str]:
    """Measured-looking numbers outside of code and of the parts that are made."""
    text = re.sub(r"<!-- begin .*?<!-- end -->", "", page, flags=re.DOTALL)
    return re.findall(r"\d+\.\d+|\d+ ?%|\d+ points", CODE.sub("", text))


def test_no_number_on_the_page_of_results_is_written_by_hand() -> None:
    assert numbers_by_hand((DOCS / RESULTS).read_text("utf-8")) == []
    assert numbers_by_hand("it gains 3.5 points\n<!-- begin x -->\n1.0\n<!-- end -->\n") == ["3.5"]


def quoted(page: str) -> list[str]:
    """Recalled numbers that the page has, as whole numbers."""
    return [n for n in UNTRACED if re.search(rf"(?<![\d.]){re.escape(n)}(?![\d])", page)]


def test_what_was_only_recalled_is_not_quoted() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.glob("**/*.md")]
    assert {page.name: found for page in pages if (found := quoted(by_hand(page)))} == {}
    assert quoted("65.38 on ImageNet, 165.38 and 65.381 elsewhere") == ["65.38"]


def by_hand(page: Path) -> str:
    """Without what was measured here, which may be the same number by chance."""
    return re.sub(r"<!-- begin .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL)


def test_the_share_of_imp_is_added_up_rightly() -> None:
    text = (DOCS / PAPERS).read_text("utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| ResNet-50")]
    baseline, _, sdt, lts, imp = (float(re.findall(r"[\d.]+", part)[0]) for part in line.split("|")[2:7])
    shares = [sdt - baseline, lts - sdt, imp - lts]
    for share in shares:
        assert f"+{share:.2f}" in text
    assert math.isclose(sum(shares), 4.05, abs_tol=0.005)
