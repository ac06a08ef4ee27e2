"""``python -m pytest --pyargs snn_ext.testing``: the suite for every installed adapter that ships cases."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from snn_ext.errors import SnnExtError
from snn_ext.patching import plugins
from snn_ext.testing.case import Case
from snn_ext.testing.check import Check
from snn_ext.testing.suite import cases_of, parametrize_with_checks


def _ready() -> list[plugins.Adapter]:
    return [a for a in plugins.adapters() if a.state == "ready"]


def _cases() -> list[Case]:
    found: list[Case] = []
    for adapter in _ready():
        with contextlib.suppress(SnnExtError):  # raised by `test_has_cases`
            found += cases_of(adapter.name)
    return found


@parametrize_with_checks(_cases())
def test_adapter(case: Case, check: Check) -> None:
    """One check on one case of one adapter."""
    check(case)


@pytest.mark.parametrize("adapter", plugins.adapters(), ids=lambda a: str(a.name))
def test_has_cases(adapter: Any) -> None:
    """An adapter that cannot be checked is named."""
    if adapter.error is not None:
        raise adapter.error
    if adapter.state != "ready":
        pytest.skip(f"{adapter.name}: {adapter.state}")
    if not cases_of(adapter.name):
        pytest.skip(f"{adapter.name} ships no cases (hook snn_ext_cases)")
