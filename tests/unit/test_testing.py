"""The compliance suite itself: what it reports, what it raises, and how pytest sees it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import snn_ext
from snn_ext import AdapterError, OptionError, SnnExtError
from snn_ext.testing import CHECKS, Case, Check, CheckFailure, Unsupported, cases_of, check_adapter
from snn_ext.testing.broken import BROKEN
from snn_ext.testing.check import check, expect, expect_equal, need
from snn_ext.testing.closed_form import spike_derivatives
from snn_ext.testing.suite import run_check
from snn_ext.testing.toy import CASE, ToyAdapter, registered


@pytest.fixture
def toy_framework() -> Iterator[str]:
    with registered(ToyAdapter()) as name:
        yield name


def named(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)


def failing(idea: str) -> Check:
    @check("structure", do="repair it")
    def always(case: Case) -> None:
        expect(False, idea, where="somewhere", why="one\ntwo")

    return always


def test_a_failure_starts_with_the_name_of_its_check_and_ends_with_what_to_do() -> None:
    with pytest.raises(CheckFailure) as caught:
        failing("it is wrong.")(CASE)
    lines = str(caught.value).splitlines()
    assert lines[0] == "always: it is wrong."
    assert lines[-1] == "  do: repair it"
    assert isinstance(caught.value, SnnExtError)
    assert isinstance(caught.value, AssertionError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_any_other_error_becomes_a_failure_with_its_cause() -> None:
    @check("structure", do="repair it")
    def crashes(case: Case) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(CheckFailure, match=r"^crashes: ZeroDivisionError") as caught:
        crashes(CASE)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_checks_leave_the_random_generator_alone(toy_framework: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    check_adapter(toy_framework)
    assert torch.equal(before, torch.get_rng_state())


def test_differences_are_told() -> None:
    @check("semantics", do="repair it")
    def differs(case: Case) -> None:
        expect_equal(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 2.0]]), "they differ.")

    with pytest.raises(CheckFailure, match=r"1 of 4 values differ, first at \[1, 1\]: 2 instead of 0"):
        differs(CASE)


def test_nan_equals_nan_and_shapes_count() -> None:
    expect_equal(torch.tensor([torch.nan]), torch.tensor([torch.nan]), "never")
    with pytest.raises(Exception, match="they differ"):
        expect_equal(torch.zeros(2), torch.zeros(1, 2), "they differ")


def test_every_check_says_what_it_is_about() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS) >= 30
    for each in CHECKS:
        assert each.idea.endswith(".")
        assert each.do
        assert not each.do.endswith(".")


class Test_check_adapter:  # noqa: N801
    def test_passes(self, toy_framework: str) -> None:
        compliance = check_adapter(toy_framework)
        assert len(compliance.results) == len(CHECKS)
        assert not compliance.wrong
        assert str(compliance).splitlines()[-1] == f"{len(CHECKS)} passed"

    def test_raises_with_everything_that_is_wrong(self) -> None:
        with registered(BROKEN["deepcopy"]()) as name, pytest.raises(CheckFailure) as caught:
            check_adapter(name)
        assert str(caught.value).startswith(f"deepcopy: 1 of {len(CHECKS)} checks")
        assert "toy: deepcopy: failed" in str(caught.value)

    def test_an_expected_failure_is_fine_and_must_fail(self) -> None:
        with registered(BROKEN["deepcopy"]()) as name:
            compliance = check_adapter(name, expected_failures={"deepcopy": "V0 is shared on purpose"})
            assert [r.reason for r in compliance.results if r.status == "expected failure"] == [
                "V0 is shared on purpose"
            ]
            with pytest.raises(CheckFailure, match="toy: pickling: unexpected pass"):
                check_adapter(name, expected_failures={"deepcopy": "", "pickling": "it does not"})

    def test_cases_may_carry_expected_failures(self, toy_framework: str) -> None:
        case = replace(CASE, expected_failures={"pickling": "it does not"})
        result = run_check(case, named("pickling"))
        assert result.status == "unexpected pass"
        with pytest.raises(CheckFailure, match="pickling"):
            check_adapter(toy_framework, cases=[case])

    def test_what_a_case_cannot_support_is_said(self, toy_framework: str) -> None:
        compliance = check_adapter(toy_framework, cases=[replace(CASE, play_steps=None)])
        unsupported = {r.check: r.reason for r in compliance.results if r.status == "unsupported"}
        assert set(unsupported) == {"steps_equal_sequence"}
        assert all(unsupported.values())

    @pytest.mark.parametrize("name", ["no such adapter", "toy"])
    def test_no_adapter_or_no_cases(self, name: str) -> None:
        with pytest.raises(AdapterError):
            check_adapter(name)  # tests/toy.py, which the fixtures register, ships none

    def test_unknown_checks_are_refused(self, toy_framework: str) -> None:
        with pytest.raises(OptionError, match="'picling'"):
            check_adapter(toy_framework, expected_failures={"picling": "typo"})
        with pytest.raises(OptionError, match="'picling'"):
            snn_ext.testing.parametrize_with_checks([CASE], {"picling": "typo"})
        with pytest.raises(OptionError, match="one name"):
            snn_ext.testing.parametrize_with_checks([CASE, CASE])

    def test_cases_of(self, toy_framework: str) -> None:
        assert cases_of(toy_framework) == (CASE,)


def test_need_says_what_is_missing() -> None:
    need(True, "nothing")
    with pytest.raises(Unsupported, match="a batch norm"):
        need([], "a batch norm")


def test_the_closed_form_is_what_autograd_computes() -> None:
    """Against autograd through the definition of truth, for every reset and timing."""
    for reset in ("hard", "soft", "none"):
        for timing in ("immediate", "delayed"):
            for detach in (False, True):
                d = snn_ext.Dynamics(
                    decay=0.75, threshold=0.7, rest=0.125, reset=reset, timing=timing, detach_reset=detach
                )
                x = torch.rand(5, 2, 3, dtype=torch.float64)
                v0 = torch.rand(3, dtype=torch.float64, requires_grad=True)
                weights = torch.rand_like(x)
                (snn_ext.functional.multistep(x, v0, d).spikes * weights).sum().backward()
                ours = (spike_derivatives(x, v0, d) * weights).sum((0, 1))
                torch.testing.assert_close(ours, v0.grad)


SUITE = """
import pytest
from dataclasses import replace
from snn_ext.testing import parametrize_with_checks
from snn_ext.testing.broken import BROKEN
from snn_ext.testing.toy import CASE, ToyAdapter, registered

@pytest.fixture(autouse=True)
def adapter():
    with registered(BROKEN["deepcopy"]()):
        yield

case = replace(CASE, play_steps=None)
expected = {"deepcopy": "shared on purpose", "pickling": "passes", "steps_equal_sequence": "unsupported"}

@parametrize_with_checks([case], expected)
def test_toy(case, check):
    if check.name in ("deepcopy", "pickling", "steps_equal_sequence", "describe_is_pure"):
        check(case)

@parametrize_with_checks([case])
def test_without(case, check):
    if check.name in ("deepcopy", "steps_equal_sequence"):
        check(case)
"""


def test_pytest_sees_strict_expected_failures_and_skips(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    lines = result.stdout.splitlines()

    def outcome(test: str) -> str:
        return next(line.split()[0] for line in lines if test in line and line[:4].isupper())

    assert outcome("test_toy[toy-deepcopy]") == "XFAIL"
    assert outcome("test_toy[toy-pickling]") == "FAILED"
    assert outcome("test_toy[toy-steps_equal_sequence]") == "FAILED"
    assert outcome("test_toy[toy-describe_is_pure]") == "PASSED"
    assert outcome("test_without[toy-deepcopy]") == "FAILED"
    assert "unsupported: the case has one way to run a neuron" in result.stdout
