"""Every shell command that the pages show exists, with its options: scripts, make targets, extras."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from snn_ext import cli
from tests.meta.pages import FILE, PAGES, ROOT, blocks, name

SHOWN = [*PAGES, ROOT / "benchmarks" / "README.md"]


def commands(page: Path) -> list[list[str]]:
    lines = "".join(blocks(page, "sh", "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    plain = [[w for i, w in enumerate(ws) if i or "=" not in w] for ws in words]  # A=1 command
    return [ws for ws in plain if ws and ws[0] != "export"]


def wrong(command: list[str], files: set[str]) -> str | None:
    """What is wrong with a command, or None; `files` are those that the page itself shows."""
    program, *words = command
    known = {"make": _make, "pip": _pip, "snn-ext": _snn_ext, "python": _script, "torchrun": _script}
    if program not in known:
        return f"{program} is not known"
    return known[program]([w for w in words if w not in files])


def _make(words: list[str]) -> str | None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return next((f"no target {w}" for w in words if w not in targets and "=" not in w), None)


def _pip(words: list[str]) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = re.findall(r"(?:snn-ext|\.)\[([\w,]+)\]", " ".join(words))
    extras = [extra for group in asked for extra in group.split(",")]
    return next((f"no extra {e}" for e in extras if e not in project["optional-dependencies"]), None)


def _snn_ext(words: list[str]) -> str | None:
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as helped,
    ):
        cli.main([words[0], "--help"])
    if helped.value.code != 0:
        return f"no command {words[0]}"
    options = [w for w in words if w.startswith("--")]
    return next(
        (f"{words[0]} has no {o}" for o in options if f"{o} " not in said.getvalue().replace("]", " ")), None
    )


def _script(words: list[str]) -> str | None:
    scripts = [w for w in words if w.endswith(".py") and "=" not in w]
    missing = [w for w in scripts if not (ROOT / w).exists()]
    if missing or not scripts:
        return f"no file {missing[0]}" if missing else None
    own = words[words.index(scripts[0]) :]
    source = "".join(p.read_text() for p in (ROOT / scripts[0]).parent.rglob("*.py"))
    options = [w.partition("=")[0] for w in own if w.startswith("--")]
    return next((f"{scripts[0]} has no {o}" for o in options if f'"{o}"' not in source), None)


@pytest.mark.parametrize("page", [p for p in SHOWN if commands(p)], ids=name)
def test_commands_exist(page: Path) -> None:
    files = {found[1] for code in blocks(page, "python") if (found := FILE.match(code))}
    for command in commands(page):
        assert wrong(command, files) is None, shlex.join(command)


@pytest.mark.parametrize(
    "command",
    [
        "make coffee",
        'pip install "snn-ext[unheard]"',
        "snn-ext undo",
        "snn-ext doctor --cure",
        "python examples/none.py",
        "python benchmarks/neurons.py --slow",
        "rm -rf /",
    ],
)
def test_commands_that_do_not_exist_are_found(command: str) -> None:
    """The twin."""
    assert wrong(shlex.split(command), set())
