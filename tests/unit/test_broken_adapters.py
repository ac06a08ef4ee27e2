"""Every check of the compliance suite can fail: one wrong adapter each, noticed by its own check only."""

from __future__ import annotations

import pytest

from snn_ext.testing import CHECKS, check_adapter
from snn_ext.testing.broken import BROKEN
from snn_ext.testing.toy import ToyAdapter, registered


def statuses(adapter: ToyAdapter) -> dict[str, str]:
    with registered(adapter) as name:
        return {r.check: r.status for r in check_adapter(name, strict=False).results}


def test_every_check_has_a_broken_adapter() -> None:
    assert list(BROKEN) == [check.name for check in CHECKS]
    assert all(adapter.__doc__ for adapter in BROKEN.values())


def test_the_correct_adapter_passes_every_check() -> None:
    assert set(statuses(ToyAdapter()).values()) == {"passed"}


@pytest.mark.parametrize("check", BROKEN)
def test_a_broken_adapter_fails_its_own_check_and_no_other(check: str) -> None:
    wrong = {name: status for name, status in statuses(BROKEN[check]()).items() if status != "passed"}
    assert wrong == {check: "failed"}
