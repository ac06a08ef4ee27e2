"""What a check is: one idea about adapters, as a function of a case, with errors that teach."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snn_ext.errors import SnnExtError
from snn_ext.testing.case import Case

__all__ = ["Check", "CheckFailure", "Unsupported", "check", "expect", "expect_equal", "need"]

Group = Literal["semantics", "structure", "life cycle"]


class CheckFailure(SnnExtError, AssertionError):  # noqa: N818
    """An adapter does not do what a check asks of it; the message starts with the name of the check."""


class Unsupported(Exception):  # noqa: N818
    """A case has nothing that a check could be run on; the message says what is missing."""


class _Wrong(Exception):  # noqa: N818
    def __init__(self, what: str, where: str, why: str) -> None:
        super().__init__(what)
        self.what, self.where, self.why = what, where, why


def expect(truth: bool, what: str, *, where: str = "", why: str = "") -> None:
    """Used in checks: the adapter is wrong unless `truth`; `what` says how, in one sentence."""
    if not truth:
        raise _Wrong(what, where, why)


def expect_equal(ours: Tensor, theirs: Tensor, what: str, *, where: str = "") -> None:
    """Used in checks: two tensors are equal to the last bit."""
    expect(
        ours.shape == theirs.shape,
        what,
        where=where,
        why=f"shapes {list(ours.shape)} and {list(theirs.shape)}",
    )
    wrong = ~((ours == theirs) | (ours.isnan() & theirs.isnan()))
    if bool(wrong.any()):
        first = tuple(wrong.nonzero()[0].tolist())
        raise _Wrong(
            what,
            where,
            f"{int(wrong.sum())} of {wrong.numel()} values differ, first at {list(first)}:"
            f" {float(theirs[first]):.9g} instead of {float(ours[first]):.9g}",
        )


def need(truth: object, reason: str) -> None:
    """Used in checks: without this, the case has nothing to check."""
    if not truth:
        raise Unsupported(reason)


@dataclass(frozen=True)
class Check:
    """One idea about adapters; call it with a `Case`.

    Attributes:
        name: of the function; the first word of every failure.
        group: "semantics", "structure" or "life cycle".
        idea: what is checked, one sentence.
        do: which hook to look at when it fails.
        function: the check itself.
    """

    name: str
    group: Group
    idea: str
    do: str
    function: Callable[[Case], None]

    def __call__(self, case: Case) -> None:
        """Run the check on a case.

        Raises:
            CheckFailure: the adapter is wrong.
            Unsupported: the case has nothing to check.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.function(case)
        except Unsupported:
            raise
        except _Wrong as wrong:
            raise self._failure(wrong.what, wrong.where, wrong.why) from None
        except Exception as error:
            raise self._failure(
                f"{type(error).__name__} instead of an answer.", f"case {case.name}", f"{error}"
            ) from error

    def _failure(self, what: str, where: str, why: str) -> CheckFailure:
        indented = why.replace("\n", "\n    ")
        return CheckFailure(f"{self.name}: {what}", where=where, why=indented, do=self.do)

    def __str__(self) -> str:
        return self.name


def check(group: Group, *, do: str) -> Callable[[Callable[[Case], None]], Check]:
    """Decorator: make a function a `Check`; its docstring is the idea, `do` the remedy."""

    def decorate(function: Callable[[Case], None]) -> Check:
        idea = (inspect.getdoc(function) or "").partition("\n")[0]
        return Check(function.__name__, group, idea, do, function)

    return decorate
