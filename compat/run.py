"""Run the compliance suite against released versions, each in an environment of its own.

python compat/run.py           # make compat
python compat/run.py --page    # no runs: the page anew, from the results that are there
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments import NAMED, Environment, planned
from page import render
from results import Results, Row, read, write
from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
THIRD_PARTY = ROOT / "examples" / "third_party_adapter"
BUILD = ROOT / "build" / "compat"
RESULTS, PAGE = HERE / "results.json", ROOT / "docs" / "compatibility.md"
UV = (sys.executable, "-m", "uv")
MINUTES = 60
SETTINGS = {"UV_PYTHON_DOWNLOADS": "never", "OMP_NUM_THREADS": "1"}


class CommandFailed(Exception):  # noqa: N818
    """A command that was run for an environment; the message says why."""


def main() -> None:
    """Check every environment, and write the results and the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    if not parser.parse_args().page:
        write(_all(Console()), RESULTS)
    PAGE.write_text(render(read(RESULTS)))


def _all(console: Console) -> Results:
    wheels = [_wheel(ROOT), _wheel(THIRD_PARTY)]
    newest = {name: _newest(name) for name in NAMED}
    environments = planned(newest, _project(ROOT), _project(THIRD_PARTY))
    rows = []
    for number, environment in enumerate(environments, 1):
        with console.status(f"{number} of {len(environments)}: {environment.name}"):
            rows.append(checked(environment, wheels))
        console.print(f"{number} of {len(environments)}: {rows[-1].label}: {rows[-1].state}", markup=False)
    return Results(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        snn_ext=wheels[0].name.split("-")[1],
        commit=_run("git", "describe", "--always", "--dirty"),
        machine=f"{platform.system()} {platform.machine()}",
        rows=tuple(rows),
    )


def checked(environment: Environment, wheels: Sequence[Path]) -> Row:
    """Install an environment and run the suite in it; what goes wrong becomes the reason in its row."""
    row = Row(environment.framework, environment.version, environment.lowest, "not installed")
    with _folder(environment.name) as folder:
        python, out = folder / "bin" / "python", folder / "results.json"
        mine = wheels if environment.framework == "norse" else wheels[:1]
        try:
            _run(*UV, "venv", "--quiet", "--python", sys.executable, str(folder))
            _run(
                *UV,
                "pip",
                "install",
                "--quiet",
                f"--python={python}",
                *map(str, mine),
                *environment.requirements,
            )
            row = dataclasses.replace(row, state="broken")
            _run(str(python), "-I", "-W", "ignore", str(HERE / "inside.py"), environment.framework, str(out))
        except CommandFailed as error:
            return dataclasses.replace(row, reason=str(error))
        found: dict[str, Any] = json.loads(out.read_text())
        return dataclasses.replace(row, **found)


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """Of one environment; removed afterwards: where uv cannot link files, each takes gigabytes."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wheel(project: Path) -> Path:
    """What a user would install."""
    out = BUILD / "wheels" / project.name
    shutil.rmtree(out, ignore_errors=True)
    _run(*UV, "build", "--quiet", "--wheel", "--out-dir", str(out), str(project))
    (wheel,) = out.glob("*.whl")
    return wheel


def _newest(name: str) -> str:
    """The release that a user gets today."""
    answer = _run(
        *UV, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate", "-", text=name
    )
    return answer.partition("==")[2]


def _project(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return project


def _run(*command: str, text: str = "") -> str:
    """What a command prints; its complaint as `CommandFailed` where it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | SETTINGS,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * MINUTES,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"it took more than {MINUTES} minutes") from error
    if done.returncode:
        raise CommandFailed(complaint(done.stderr) or f"exit status {done.returncode}")
    return done.stdout.strip()


def complaint(text: str) -> str:
    """The error at the end of a traceback without the way to it, or all that uv says; without local paths."""
    lines = text.rstrip().replace(f"{ROOT}{os.sep}", "").splitlines()
    starts = [i for i, line in enumerate(lines) if line[:1].strip()]
    return "\n".join(lines[starts[-1] if starts else 0 :])


if __name__ == "__main__":
    main()
