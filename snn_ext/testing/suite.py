"""All checks, and three ways to run them: in your tests, for an installed adapter, from a shell."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from snn_ext.errors import AdapterError, OptionError
from snn_ext.patching import plugins
from snn_ext.testing.case import Case
from snn_ext.testing.check import Check, CheckFailure, Unsupported
from snn_ext.testing.checks import (
    claims,
    equations,
    life_cycle,
    modes,
    neutral,
    norms,
    readouts,
    sequences,
    structure,
)

__all__ = ["CHECKS", "CheckResult", "Compliance", "cases_of", "check_adapter", "parametrize_with_checks"]

CHECKS: tuple[Check, ...] = (
    equations.dynamics_reproduce_spikes,
    equations.fires_at_threshold_as_described,
    equations.start_above_threshold,
    equations.v0_gradient,
    neutral.imp_rest_is_neutral,
    neutral.tebn_is_neutral,
    neutral.bntt_with_bias_is_neutral,
    norms.mpbn_follows_its_definition,
    norms.fold_is_exact,
    norms.bntt_knows_its_step,
    modes.half_inputs,
    sequences.steps_equal_sequence,
    sequences.v0_acts_once,
    sequences.v0_is_read_in_forward,
    sequences.framework_reset,
    sequences.snn_ext_reset,
    sequences.reset_is_scoped,
    sequences.batch_size_may_change,
    readouts.readout_layout,
    readouts.objective_values,
    claims.claims_only_its_own,
    claims.finds_every_neuron,
    claims.describe_is_pure,
    claims.user_subclass,
    structure.tied_sites,
    structure.outside_aliases,
    structure.nested_containers,
    structure.keys_unchanged,
    structure.hooks_survive,
    structure.optimiser_identity,
    modes.training_flags,
    modes.half_precision,
    modes.moves_with_the_model,
    modes.conversion_keeps_the_sequence,
    modes.deepcopy,
    modes.pickling,
    life_cycle.patching_twice,
    life_cycle.unpatch_is_exact,
    life_cycle.older_checkpoint,
    life_cycle.save_and_load,
    life_cycle.atomic_on_failure,
    claims.nothing_matched,
)
"""Every check, in the order in which they are best read and repaired."""

Status = Literal["passed", "failed", "unsupported", "expected failure", "unexpected pass"]


@dataclass(frozen=True)
class CheckResult:
    """One check on one case.

    Attributes:
        case, check: their names.
        status: "passed", "failed", "unsupported", "expected failure" or "unexpected pass".
        reason: why it failed, is unsupported, or was expected to fail; "" if it passed.
    """

    case: str
    check: str
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Compliance:
    """What `check_adapter` found: ``print(compliance)`` is a table, `results` the same as data."""

    adapter: str
    results: tuple[CheckResult, ...]

    @property
    def wrong(self) -> tuple[CheckResult, ...]:
        """Failures nobody expected, and expected failures that pass."""
        return tuple(r for r in self.results if r.status in ("failed", "unexpected pass"))

    def __str__(self) -> str:
        width = max((len(r.case) + len(r.check) for r in self.results), default=0) + 3
        lines = [
            f"{r.case + ' ' + r.check:{width}}{r.status}"
            + (f": {r.reason.splitlines()[0]}" if r.reason else "")
            for r in self.results
        ]
        counts = [f"{n} {s}" for s in Status.__args__ if (n := sum(r.status == s for r in self.results))]  # type: ignore[attr-defined]
        return "\n".join([f"adapter {self.adapter}", *lines, ", ".join(counts) or "no cases"])


def run_check(case: Case, check: Check, expected_failures: Mapping[str, str] | None = None) -> CheckResult:
    """One check on one case as data; nothing is raised for a wrong adapter.

    Args:
        expected_failures: name of a check -> reason, added to those of the case.
    """
    expected = {**case.expected_failures, **(expected_failures or {})}
    result = functools.partial(CheckResult, case.name, check.name)
    try:
        check(case)
    except Unsupported as error:
        return result("unsupported", str(error))
    except CheckFailure as error:
        if check.name in expected:
            return result("expected failure", expected[check.name])
        return result("failed", str(error))
    if check.name in expected:
        return result("unexpected pass", f"it was expected to fail: {expected[check.name]}")
    return result("passed")


def cases_of(adapter: str) -> tuple[Case, ...]:
    """The cases that an adapter ships (its hook ``snn_ext_cases``).

    Raises:
        AdapterError: no such adapter, it could not be loaded, or its hook answers something else.
        UnsupportedReleaseError: the adapter refuses the installed release of its framework.
        OptionError: it names a check that does not exist.
    """
    known = {a.name: a for a in plugins.adapters()}
    if adapter not in known or known[adapter].error is not None:
        raise AdapterError(
            f"there is no usable adapter {adapter!r}.",
            seen=", ".join(f"{a.name} ({a.state})" for a in known.values()) or "none",
            do="install it, or snn_ext.register(...) it first",
        ) from (known[adapter].error if adapter in known else None)
    plugins.ask(adapter, "snn_ext_check_release")
    cases = plugins.ask(adapter, "snn_ext_cases") or ()
    if not isinstance(cases, tuple | list) or not all(isinstance(case, Case) for case in cases):
        raise plugins.answered(adapter, "snn_ext_cases", cases, "a sequence of snn_ext.testing.Case")
    for case in cases:
        _check_names(case.expected_failures)
    return tuple(cases)


def check_adapter(
    name: str,
    *,
    cases: Iterable[Case] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Compliance:
    """Run every check on every case of an adapter, without pytest.

    Args:
        name: of a registered adapter, see `snn_ext.adapters`.
        cases: None takes those that the adapter ships.
        expected_failures: name of a check -> why it is known to fail.
        strict: raise if something is wrong; otherwise it is only in the result.

    Returns:
        One result per case and check.

    Raises:
        AdapterError: no such adapter, or it has no cases.
        CheckFailure: checks failed that were not expected to, or passed that were.
        OptionError: `expected_failures` names a check that does not exist.
    """
    _check_names(expected_failures or {})
    chosen = cases_of(name) if cases is None else tuple(cases)
    if not chosen:
        raise AdapterError(
            f"the adapter {name!r} ships no cases.",
            do="pass cases=[snn_ext.testing.Case(...)], or add the hook snn_ext_cases() to it",
        )
    results = [run_check(case, check, expected_failures) for case in chosen for check in CHECKS]
    compliance = Compliance(name, tuple(results))
    if strict and compliance.wrong:
        first = compliance.wrong[0]
        raise CheckFailure(
            f"{first.check}: {len(compliance.wrong)} of {len(results)} checks of {name!r} went wrong.",
            why="\n    ".join(f"{r.case}: {r.check}: {r.status}" for r in compliance.wrong),
            seen=first.reason.replace("\n", "\n    "),
            do="repair the hooks named above, or pass expected_failures={check: reason}",
        )
    return compliance


def parametrize_with_checks(
    cases: Sequence[Case], expected_failures: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """pytest decorator: run a test ``def test_...(case, check): check(case)`` for every case and check.

    A check that a case cannot support is reported as skipped, with the reason. Expected failures are
    strict: one that passes, or is unsupported, is a failure.

    Args:
        cases: the networks to check the adapter with.
        expected_failures: name of a check -> why it is known to fail, in addition to those of the cases.

    Raises:
        OptionError: a check that does not exist, or two cases of one name.
    """
    import pytest

    _check_names(expected_failures or {})
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise OptionError(f"two cases have one name: {names}.", do="give every Case a name of its own")

    def parameters() -> Iterator[Any]:
        for case in cases:
            _check_names(case.expected_failures)
            for check in CHECKS:
                reason = {**case.expected_failures, **(expected_failures or {})}.get(check.name)
                marks = []
                if reason is not None:
                    marks = [pytest.mark.xfail(strict=True, raises=CheckFailure, reason=reason)]
                yield pytest.param(case, check, id=f"{case.name}-{check.name}", marks=marks)

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def wrapper(*args: Any, case: Case, check: Check, **kwargs: Any) -> Any:
            try:
                return test(*args, case=case, check=check, **kwargs)
            except Unsupported as error:
                if check.name in {**case.expected_failures, **(expected_failures or {})}:
                    raise
                pytest.skip(f"unsupported: {error}")

        marked: Callable[..., Any] = pytest.mark.parametrize(("case", "check"), list(parameters()))(wrapper)
        return marked

    return decorate


def _check_names(expected: Mapping[str, str]) -> None:
    unknown = set(expected) - {check.name for check in CHECKS}
    if unknown:
        raise OptionError(
            f"there is no check {sorted(unknown)[0]!r}.",
            seen=", ".join(check.name for check in CHECKS),
            do="use the names of snn_ext.testing.CHECKS",
        )
