"""Makes the pages, which are written for the repository, fit for the site: see mkdocs.yml."""

from __future__ import annotations

import posixpath
import re
from typing import Any

FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Links that leave ``docs/`` become the name of the file: the site does not contain it."""
    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _plain(part, page.file.src_uri) for part in parts)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings announce a block of code with two colons, as terminals show them."""
    return html.replace("::</p>", ":</p>")


def _plain(text: str, page: str) -> str:
    def name(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[2]))
        if target.startswith("docs/"):
            return link[0]
        return f"`{target}`" if target in link[1] else f"{link[1]} (`{target}` in the repository)"

    return LINK.sub(name, text).replace("\\<", "&lt;")  # an escape that Python-Markdown does not know
