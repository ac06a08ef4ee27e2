"""The guide for adapters is enough: its blocks, put together, are the norse adapter, and pass the suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from snn_ext.testing import CHECKS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "adapters" / "write-your-own.md"
EXAMPLE = ROOT / "examples" / "third_party_adapter"
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+\.(?:py|toml))\n(.*?)^```", re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Path -> text, as the guide shows it; files that it explains in parts are put together."""
    shown: dict[str, list[str]] = {}
    for path, text in BLOCK.findall(GUIDE.read_text()):
        shown.setdefault(path, []).append(text)
    return {path: "\n\n".join(parts) for path, parts in shown.items()}


def test_the_guide_shows_the_whole_distribution() -> None:
    sources = {p for p in EXAMPLE.rglob("*.py") if p.name != "test_norse.py"}
    assert set(files()) == {str(p.relative_to(EXAMPLE)) for p in [*sources, EXAMPLE / "pyproject.toml"]}


@pytest.mark.parametrize("path", files())
def test_the_guide_shows_the_files_as_they_are(path: str) -> None:
    assert files()[path] == (EXAMPLE / path).read_text()


def test_the_guide_names_every_check() -> None:
    text = GUIDE.read_text()
    assert f"{len(CHECKS)} checks" in text
    for check in CHECKS:
        assert f"| `{check.name}` | {check.idea.rstrip('.')} |" in text


CHECK = """
import importlib.metadata, sys
import snn_ext, snn_ext_norse
assert snn_ext_norse.__file__.startswith(sys.argv[1]), snn_ext_norse.__file__
assert {a.name: a.state for a in snn_ext.adapters()}["norse"] == "ready"
print(snn_ext.testing.check_adapter("norse"))
"""


def test_the_adapter_can_be_rebuilt_from_the_guide(tmp_path: Path) -> None:
    """Its files alone, with the entry point that an installation would write, in a process of their own."""
    pytest.importorskip("norse", reason="norse is not installed")
    for path, text in files().items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    info = tmp_path / "snn_ext_norse-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: snn-ext-norse\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[snn_ext]\nnorse = snn_ext_norse.plugin\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "passed" in result.stdout.splitlines()[-1]
