"""A stranger's adapter, installed beside snn-ext, passes the suite; snn-ext does not know its framework.

`make test` installs both; elsewhere these tests are skipped.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import snn_ext
from snn_ext.testing import check_adapter

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_adapter"


def test_no_part_of_this_project_knows_norse() -> None:
    sources = [*ROOT.glob("snn_ext/**/*.py"), *ROOT.glob("adapters/**/*.py")]
    assert not [path for path in sources if re.search("norse", path.read_text(), re.IGNORECASE)]


def test_the_adapter_is_small() -> None:
    sources = list(EXAMPLE.glob("snn_ext_norse/*.py"))
    assert sources
    assert sum(len(path.read_text().splitlines()) for path in sources) < 200


@pytest.fixture
def norse_adapter() -> str:
    pytest.importorskip("norse", reason="norse is not installed")
    pytest.importorskip("snn_ext_norse", reason="examples/third_party_adapter is not installed")
    return "norse"


def test_it_is_found_by_its_entry_point(norse_adapter: str) -> None:
    assert {a.name: a.state for a in snn_ext.adapters()}[norse_adapter] == "ready"


def test_it_passes_the_suite(norse_adapter: str) -> None:
    results = check_adapter(norse_adapter).results
    passed = {r.check for r in results if r.status == "passed"}
    never = {r.check: r.reason for r in results if r.check not in passed}
    assert set(never) == {
        "tebn_is_neutral",  # norse has no batch norms of its own
        "bntt_with_bias_is_neutral",
        "steps_equal_sequence",  # cells run step by step
        "pickling",  # its parameters do not pickle
    }
    assert all(r.status == "unsupported" and r.reason for r in results if r.check in never)
