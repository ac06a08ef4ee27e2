"""Every Python block of the README and the docs runs, page by page, in order.

Blocks that begin with ``# path/of/a/file.py`` are files: see `test_guide`.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return [code for code in BLOCK.findall(page.read_text()) if not re.match(r"# \S+\.py\n", code)]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__page__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for code in blocks(page):
            exec(compile(code, str(page), "exec"), namespace)


def test_the_readme_has_code_for_both_frameworks() -> None:
    code = "\n".join(blocks(ROOT / "README.md"))
    for needed in ("spikingjelly", "snntorch", "snn_ext.patch", "snn_ext.loss", "snn_ext.unpatch"):
        assert needed in code


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", BLOCK.sub("", page.read_text())):
            assert os.path.exists(page.parent / target), f"{page.name}: {target}"
