"""Both shipped adapters pass the compliance suite that third parties are given."""

from __future__ import annotations

import importlib.util

import pytest

import snn_ext
from snn_ext.testing import CHECKS, Case, Check, cases_of, check_adapter, parametrize_with_checks

SHIPPED = [name for name in ("spikingjelly", "snntorch") if importlib.util.find_spec(name)]


@parametrize_with_checks([case for name in SHIPPED for case in cases_of(name)])
def test_compliance(case: Case, check: Check) -> None:
    check(case)


@pytest.mark.parametrize("name", ["spikingjelly", "snntorch"])
def test_every_check_is_supported_by_some_case(name: str) -> None:
    """What no case of an adapter supports is named here, so that nothing drops out in silence."""
    pytest.importorskip(name, reason=f"{name} is not installed")
    results = check_adapter(name).results
    passed = {r.check for r in results if r.status == "passed"}
    never = {"snntorch": {"steps_equal_sequence"}, "spikingjelly": set()}
    assert {check.name for check in CHECKS} - passed == never[name]


def test_the_adapters_of_this_project_are_ready() -> None:
    states = {a.name: a.state for a in snn_ext.adapters()}
    assert {states[name] for name in SHIPPED} == {"ready"}
