"""`make compat`: what is planned, what becomes of failures, and that the page is what the results say."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.meta.scripts import ROOT, scripts

COMPAT = scripts("compat", "run")
run, page, environments, results = (COMPAT[name] for name in ("run", "page", "environments", "results"))
Row, Results = results.Row, results.Results

CORE = {
    "dependencies": ["torch>=2.6", "safetensors[torch]>=0.4.3", "unbounded"],
    "optional-dependencies": {
        "spikingjelly": ["spikingjelly>=2.0.0"],
        "snntorch": ["snntorch>=0.9.4", "numpy"],
    },
}
THIRD = {"dependencies": ["snn-ext>=0.1", "norse>=1.1"]}


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


# --- environments ---


def test_newest_named_and_lowest_releases_are_planned() -> None:
    newest = {"spikingjelly": "2.1", "snntorch": "1.0.0", "norse": "1.2"}
    planned = environments.planned(newest, CORE, THIRD)
    assert [e.name for e in planned] == [
        "spikingjelly-2.1",
        "spikingjelly-2.0.0",
        "spikingjelly-0.0.0.0.14",
        "snntorch-1.0.0",  # the newest and a named one: once
        "snntorch-0.9.4",
        "norse-1.2",
        "spikingjelly-2.0.0-lowest",
        "snntorch-0.9.4-lowest",
        "norse-1.1-lowest",
    ]
    requirements = {e.name: e.requirements for e in planned}
    assert requirements["snntorch-1.0.0"] == ("snntorch==1.0.0", "numpy")
    assert requirements["norse-1.2"] == ("norse==1.2",), "snn-ext comes as a wheel"
    lowest = ("torch==2.6", "safetensors[torch]==0.4.3")
    assert requirements["snntorch-0.9.4-lowest"] == ("snntorch==0.9.4", "numpy", *lowest)
    assert not any("torch==2.6" in e.requirements for e in planned if not e.lowest)


def test_every_bound_that_this_project_states_is_planned() -> None:
    core, third = project(ROOT), project(run.THIRD_PARTY)
    planned = environments.planned(dict.fromkeys(environments.NAMED, "9"), core, third)
    pinned = {text for e in planned if e.lowest for text in e.requirements}
    stated = [
        *core["dependencies"],
        *(core["optional-dependencies"][n][0] for n in ("spikingjelly", "snntorch")),
    ]
    assert {text.replace(">=", "==") for text in stated} <= pinned
    named = {(e.framework, e.version) for e in planned}
    issued = {"spikingjelly": ("2.0.0", "0.0.0.0.14"), "snntorch": ("1.0.0", "0.9.4")}
    assert {(name, version) for name, versions in issued.items() for version in versions} <= named


# --- what goes wrong becomes a row ---

UV_SAYS = (
    "  x No solution found when resolving dependencies:\n  ╰─▶ Because a needs b, they are unsatisfiable."
)
TRACEBACK = f"""Traceback (most recent call last):
  File "{ROOT}/compat/inside.py", line 3, in <module>
    import old
ImportError: {ROOT}/build/old.so: undefined symbol
  do: install another
"""


def test_complaints() -> None:
    assert run.complaint(UV_SAYS) == UV_SAYS
    assert run.complaint(TRACEBACK) == "ImportError: build/old.so: undefined symbol\n  do: install another"
    assert run.complaint("warning: slow\n" + UV_SAYS.replace("  x", "error:")).startswith(
        "error: No solution"
    )
    assert run.complaint("") == ""


def test_commands_that_fail() -> None:
    assert run._run(sys.executable, "-c", "print(input())", text="hello") == "hello"
    with pytest.raises(run.CommandFailed, match=r"^ValueError: no$"):
        run._run(sys.executable, "-c", "raise ValueError('no')")
    with pytest.raises(run.CommandFailed, match="exit status 3"):
        run._run(sys.executable, "-c", "raise SystemExit(3)")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Sequence[str]]]:
    """Commands are noted instead of run; the one whose text holds `failing` fails."""
    monkeypatch.setattr(run, "BUILD", tmp_path)

    def play(failing: str, found: str = "{}") -> list[Sequence[str]]:
        commands: list[Sequence[str]] = []

        def command(*words: str, text: str = "") -> str:
            commands.append(words)
            if failing and failing in " ".join(words):
                raise run.CommandFailed(f"{failing} failed")
            if words[-1].endswith("results.json"):
                Path(words[-1]).parent.mkdir(parents=True)
                Path(words[-1]).write_text(found)
            return ""

        monkeypatch.setattr(run, "_run", command)
        return commands

    return play


ENVIRONMENT = environments.Environment("norse", "1.1", True, ("norse==1.1", "torch==2.6"))


@pytest.mark.parametrize(
    ("failing", "state"),
    [("venv", "not installed"), ("pip install", "not installed"), ("inside.py", "broken")],
)
def test_an_environment_that_fails_is_a_row(failing: str, state: str, played: Any) -> None:
    played(failing)
    row = run.checked(ENVIRONMENT, [Path("core.whl"), Path("norse.whl")])
    assert row == Row("norse", "1.1", True, state, reason=f"{failing} failed")


def test_an_environment_is_installed_checked_and_removed(played: Any, tmp_path: Path) -> None:
    said = '{"state": "checked", "version": "1.1.0", "cases": {"a": {"b": "passed"}}}'
    commands = played("", said)
    row = run.checked(ENVIRONMENT, [Path("core.whl"), Path("norse.whl")])
    assert row == Row("norse", "1.1.0", True, "checked", cases={"a": {"b": "passed"}})
    assert commands[1][-4:] == ("core.whl", "norse.whl", "norse==1.1", "torch==2.6")
    assert not any(tmp_path.iterdir())
    commands = played("", said)
    run.checked(replace(ENVIRONMENT, framework="snntorch"), [Path("core.whl"), Path("norse.whl")])
    assert "norse.whl" not in commands[1]


# --- inside an environment ---


def test_what_runs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    import snn_ext
    from snn_ext.testing import CheckResult, Compliance

    inside = scripts("compat", "inside")["inside"]
    monkeypatch.setattr(inside.importlib.metadata, "version", lambda name: "1.2")
    found = (CheckResult("net", "a", "passed"), CheckResult("net", "b", "unsupported", "no reset: none"))
    monkeypatch.setattr(inside, "check_adapter", lambda name, strict: Compliance(name, found))
    row = inside.checked("norse")
    assert (row["state"], row["version"]) == ("checked", "1.2")
    assert row["cases"] == {"net": {"a": "passed", "b": "unsupported: no reset: none"}}

    def refuse(name: str, strict: bool) -> None:
        raise snn_ext.UnsupportedReleaseError("too old.", do="pip install it")

    monkeypatch.setattr(inside, "check_adapter", refuse)
    row = inside.checked("norse")
    assert row["state"] == "unsupported"
    assert row["reason"].endswith("do: pip install it")
    assert Row(framework="norse", lowest=False, **row).cases == {}


# --- the page ---

ROWS = (
    Row("jelly", "2.0", False, "checked", "", "3.11.7", "2.15.0", {
        "one": {"a": "passed", "b": "unsupported: no | norm", "c": "passed"},
        "two": {"a": "passed", "b": "unsupported: no | norm", "c": "failed: c: wrong: 1\n  do: repair it"},
    }),
    Row("jelly", "1.0", True, "checked", "", "3.11.7", "2.6.0", {
        "one": {"a": "passed", "b": "unsupported: no | norm", "c": "passed"},
        "two": {"a": "passed", "b": "passed", "c": "expected failure: known"},
    }),
    Row("jelly", "0.1", False, "unsupported", "too old\n  do: install 2.0", "3.11.7", "2.15.0"),
    Row("torchy", "1.0", False, "not installed", "No solution"),
)  # fmt: skip
RESULTS = Results("2020-02-02", "0.1.0", "abc", "Linux", ROWS)


def section(text: str, title: str) -> str:
    _, _, rest = text.partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0]


def test_the_page_has_a_row_for_everything() -> None:
    text = page.render(RESULTS)
    assert "on 2020-02-02" in text
    assert "| jelly | 2.0 | newest | 2.15.0 | 3.11.7 | **failed** | 3 | 1 | 2 |" in text
    assert "| jelly | 1.0 | lowest | 2.6.0 | 3.11.7 | **failed** | 4 | 1 | 1 |" in text
    assert "| jelly | 0.1 | newest | 2.15.0 | 3.11.7 | **unsupported** | - | - | - |" in text
    assert "| torchy | 1.0 | newest |  |  | **not installed** | - | - | - |" in text


def test_the_page_explains() -> None:
    text = page.render(RESULTS)
    assert "jelly 0.1: unsupported\n\n```text\ntoo old\n  do: install 2.0\n```" in section(
        text, "Not checked"
    )
    assert "No solution" in section(text, "Not checked")
    failed = section(text, "Failed")
    assert "jelly 2.0, two, `c`: failed\n\n```text\nc: wrong: 1\n  do: repair it\n```" in failed
    assert "jelly 1.0 (lowest), two, `c`: expected failure\n\n```text\nknown\n```" in failed
    checks = section(text, "Checks")
    assert "| check | jelly 2.0 | jelly 1.0 (lowest) |" in checks
    assert "| `a` | 2/2 | 2/2 |" in checks
    assert "| `b` | - (2) | 1/1 (1) |" in checks
    assert "| `c` | **1/2** | **1/2** |" in checks
    assert "| `b` | one, two (jelly 2.0) | no \\| norm |" in section(text, "Unsupported")


def test_a_page_without_failures_says_so() -> None:
    text = page.render(replace(RESULTS, rows=(replace(ROWS[0], cases={"one": {"a": "passed"}}),)))
    assert "| **" not in text
    for title in ("Not checked", "Failed", "Unsupported"):
        assert "Nothing." in section(text, title)


def test_results_survive_the_file(tmp_path: Path) -> None:
    results.write(RESULTS, tmp_path / "r.json")
    assert results.read(tmp_path / "r.json") == RESULTS


# --- what is committed ---


def test_the_committed_page_is_what_the_results_say() -> None:
    assert run.PAGE.read_text() == page.render(results.read(run.RESULTS)), (
        "make compat, or compat/run.py --page"
    )


def test_the_committed_results_are_whole() -> None:
    committed = results.read(run.RESULTS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", committed.date)
    labels = {row.label for row in committed.rows}
    assert labels >= {
        f"{name} {version}" for name, versions in environments.NAMED.items() for version in versions
    }
    for row in committed.rows:
        assert row.cases or row.reason, f"{row.label}: neither checked nor explained"
        assert len({tuple(found) for found in row.cases.values()}) <= 1, "all checks on all networks"
        said = [said for found in row.cases.values() for said in found.values()]
        assert all(text == "passed" or ": " in text for text in said)
        assert str(ROOT) not in repr(row)
