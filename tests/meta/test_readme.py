"""Every Python block of the README and the docs runs, page by page, in order.

Two kinds of blocks are exceptions:

- Blocks that begin with ``# path/of/a/file.py`` are files: see `test_guide`, and below.
- A block that cannot run has ``<!-- not run: the reason -->`` in the line before it. It has to be valid
  Python all the same, and there are few.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.meta.pages import BLOCK, FILE, PAGES, ROOT, blocks, name, prose

LANGUAGES = {"python", "sh", "text", "toml"}
FEW = 3


def runnable(page: Path) -> list[str]:
    return [code for code in blocks(page, "python") if not FILE.match(code)]


@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=name)
def test_code_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code in runnable(page):
            exec(compile(code, str(page), "exec"), namespace)
    printed = table(capsys.readouterr().out)
    for shown in blocks(page, "text"):
        assert not shown.startswith("plan for ") or table(shown) in printed, shown


def table(text: str) -> str:
    """A plan without what depends on the machine: the width of columns, and which kernels there are."""
    return re.sub(r"\b(host|cupy|torch)$", "kernel", re.sub(" +", " ", text), flags=re.MULTILINE)


def test_few_blocks_are_not_run() -> None:
    marked = [(name(p), why, code) for p in PAGES for why, _, code in BLOCK.findall(p.read_text()) if why]
    assert len(marked) <= FEW, [(page, why) for page, why, _ in marked]
    for page, _, code in marked:
        compile(code, page, "exec")


def test_no_code_hides_in_other_blocks() -> None:
    for page in PAGES:
        assert page.read_text().count("\n```") == 2 * len(BLOCK.findall(page.read_text())), (
            f"{name(page)}: fences"
        )
        for _, language, code in BLOCK.findall(page.read_text()):
            assert language in LANGUAGES, f"{name(page)}: ```{language}"
            hidden = language == "text" and re.search(r"^(import|from) \w", code, re.MULTILINE)
            assert not hidden, f"{name(page)}: this is Python: {code}"


def test_the_distributed_script_runs(tmp_path: Path) -> None:
    """In two processes, as its page says; they end with the same V0."""
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    [script] = [c for c in blocks(ROOT / "docs" / "distributed.md", "python") if FILE.match(c)]
    (tmp_path / "train.py").write_text(script)
    path = os.pathsep.join([str(ROOT), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")])
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sums = re.findall(r"process \d of 2: (\S+)", done.stdout)
    assert len(sums) == 2, done.stdout
    assert len(set(sums)) == 1, sums
    assert (tmp_path / "net.safetensors").exists()


def test_the_readme_has_code_for_both_frameworks() -> None:
    code = "\n".join(runnable(ROOT / "README.md"))
    for needed in ("spikingjelly", "snntorch", "snn_ext.patch", "snn_ext.loss", "snn_ext.unpatch"):
        assert needed in code


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose(page)):
            assert os.path.exists(page.parent / target), f"{page.name}: {target}"
