"""The pages that people read, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run: (.+) -->\n)?^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|toml))\n")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of these languages, without those that are marked as not run."""
    return [
        code for why, language, code in BLOCK.findall(page.read_text()) if language in languages and not why
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return BLOCK.sub("", page.read_text())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))
