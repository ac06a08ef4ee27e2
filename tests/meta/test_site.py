"""The site that `make docs` builds: no warning, every public name, nothing from other hosts; its links."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.meta.pages import PAGES, ROOT, name, prose

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[docs]'")

MODULES = ["snn_ext"]
MODULES += [f"snn_ext.{part}" for part in ("errors", "figures", "functional", "kernels", "neurons", "norms")]
MODULES += [f"snn_ext.{part}" for part in ("objectives", "surrogates", "testing")]


def build(to: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to), *options],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("site")
    done = build(to)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return to


# ---------------------------------------------------------------- what is built


def documented(inventory: Path) -> set[str]:
    """The names in a Sphinx inventory: four lines of header, then compressed lines that begin with a name."""
    lines = zlib.decompress(inventory.read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def public(module: ModuleType) -> set[str]:
    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    return {n for n in names if not isinstance(getattr(module, n), ModuleType)}


def test_the_site_is_complete_and_loads_nothing_from_elsewhere(site: Path) -> None:
    """One test, because other processes would have to build the site again."""
    found = documented(site / "objects.inv")
    for module in MODULES:
        missing = {f"{module}.{n}" for n in public(importlib.import_module(module))} - found
        assert not missing, f"not in docs/reference: {sorted(missing)}"
    assert "snn_ext.cli.main" not in found, "the twin: what is not in the reference is not found"
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not foreign(page.read_text()), f"{page.name} loads {foreign(page.read_text())}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "see [the file](../../examples/digits.py).",
            "see the file (`examples/digits.py` in the repository).",
        ),
        ("[benchmarks/README.md](../../benchmarks/README.md)", "`benchmarks/README.md`"),
        ("[IMP](../imp.md#options)", "[IMP](../imp.md#options)"),
        ("[there](https://example.org)", "[there](https://example.org)"),
        ("1 \\< 2", "1 &lt; 2"),
        ("```text\n[a](../../b) \\<\n```", "```text\n[a](../../b) \\<\n```"),
    ],
)
def test_pages_are_made_fit_for_the_site(text: str, shown: str) -> None:
    hooks = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))
    page = SimpleNamespace(file=SimpleNamespace(src_uri="adapters/page.md"))
    assert hooks["on_page_markdown"](text, page=page) == shown


def unknown_parameters(item: Any) -> set[str]:
    """Names below "Args:" in a docstring that the signature has not; `a, b: ...` are two."""
    _, _, section = (inspect.getdoc(item) or "").partition("\nArgs:\n")
    names = re.findall(r"^    ([\w*]+(?:, [\w*]+)*): ", re.split(r"\n(?=\S)", section)[0], re.MULTILINE)
    named = {n.strip(" *") for group in names for n in group.split(",")}
    return named - set(inspect.signature(item).parameters)


def test_docstrings_name_real_parameters() -> None:
    for module in map(importlib.import_module, MODULES):
        for item in (getattr(module, n) for n in public(module)):
            if inspect.isfunction(item) or (inspect.isclass(item) and "Args:" in (item.__doc__ or "")):
                assert not unknown_parameters(item), f"{item}: {unknown_parameters(item)}"


def test_parameters_that_are_not_there_are_found() -> None:
    """The twin."""

    def function(a: int, b: int) -> None:
        """Do it.

        Args:
            a, b: two.
            c: none;
                more of it: d.

        Returns:
            e: no parameter.
        """

    assert unknown_parameters(function) == {"c"}


class _Loaded(HTMLParser):
    """Collects what a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        link = tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate")
        self.loaded += [v for v in (given.get("src"), given.get("href") if link else None) if v]


def foreign(page: str) -> list[str]:
    parser = _Loaded()
    parser.feed(page)
    return [url for url in parser.loaded if urlsplit(url).netloc]


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/css">',
        '<img src="https://example.org/badge.svg">',
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(html: str) -> None:
    """The twin."""
    assert foreign(html)
    assert not foreign('<script src="assets/x.js"></script><a href="https://example.org">there</a>')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a](none.md)", "none.md"),
        ("[a](other.md#none)", "#none"),
        ("[a](#none)", "#none"),
        ("![a](none.png)", "none.png"),
        ("[a](/other.md)", "absolute"),
        ("fine", None),
    ],
)
def test_broken_links_fail_a_build(text: str, said: str | None, tmp_path: Path) -> None:
    """The twin: with the settings of this site, but no reference, so that it is quick."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Index\n\n[other](other.md#here)\n\n{text}\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n\n## Here\n")
    settings = f"INHERIT: {ROOT / 'mkdocs.yml'}\nplugins: []\nhooks: []\nnav: [index.md, other.md]\n"
    (tmp_path / "mkdocs.yml").write_text(settings)
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert (done.returncode == 0) is (said is None), done.stderr
    assert (said or "") in done.stderr


# ---------------------------------------------------------------- links to other hosts


def wrong_address(address: str) -> bool:
    """Whether it cannot be right; nothing is fetched."""
    parts = urlsplit(address)
    host = re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc)
    return parts.scheme != "https" or not host or bool(re.search(r"[\s<>\"]", address))


def addresses() -> Iterator[tuple[str, str]]:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for address in re.findall(r"\]\(([a-z]+:[^)]*)\)|<(https?:[^>]*)>", prose(page)):
            yield name(page), "".join(address)


def test_links_to_other_hosts_are_well_formed() -> None:
    assert list(addresses())
    for page, address in addresses():
        assert not wrong_address(address), f"{page}: {address}"


@pytest.mark.parametrize(
    "address",
    ["http://example.org", "https://example", "https:/example.org", "https://a.org/b c", "file:///x"],
)
def test_bad_addresses_are_found(address: str) -> None:
    """The twin."""
    assert wrong_address(address)


# ---------------------------------------------------------------- pictures

MADE_BY = {
    r"bench-\w+": "make bench",
    r"figure\d": "snn-ext figures --out docs/figures",
    r"(convergence|digits|norms|early-exit).*": "python examples/results_page.py --write",
}


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "figures").glob("*.png")), ids=lambda p: p.name)
def test_pages_say_which_command_makes_a_picture(picture: Path) -> None:
    [command] = [c for pattern, c in MADE_BY.items() if re.fullmatch(pattern, picture.stem)]
    pages = [p for p in PAGES if f"figures/{picture.name})" in prose(p)]
    assert pages, "shown nowhere"
    for page in pages:
        assert command in page.read_text(), f"{name(page)} does not say: {command}"


def test_pictures_are_in_the_repository() -> None:
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose(page)):
            assert (page.parent / target).is_file(), f"{name(page)}: {target}"
