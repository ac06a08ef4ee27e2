"""A method that has learned nothing yet changes nothing: outputs are equal to the last bit."""

from __future__ import annotations

from typing import Any

from snn_ext.dynamics.description import NormSpec, Time
from snn_ext.methods.options import BNTT, IMP, TEBN
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, need
from snn_ext.testing.models import expect_same_output, neurons, output, patched, stock, takes

__all__ = ["bntt_with_bias_is_neutral", "imp_rest_is_neutral", "tebn_is_neutral"]


@check(
    "semantics",
    do="describe as NeuronSpec.rest the membrane that the framework starts from, and change nothing of the"
    " step but its first membrane (also in training mode)",
)
def imp_rest_is_neutral(case: Case) -> None:
    """IMP(init="rest") changes no bit of any output, in eval and in train mode."""
    next(neurons(case))
    for training in (False, True):
        theirs = output(case, stock(case).train(training))
        ours = output(case, patched(case, imp=IMP(init="rest"), training=training))
        mode = "train" if training else "eval"
        expect_same_output(
            theirs, ours, f"the output changed in {mode} mode.", where=f"case {case.name}, IMP(init='rest')"
        )


@check(
    "semantics",
    do="let the class that snn_ext_replace gives a norm compute TimedNorm.sequence(x) or .step(t, x), on the"
    " input as the framework's own norm sees it",
)
def tebn_is_neutral(case: Case) -> None:
    """A fresh TEBN on the batch norms changes no bit of any output in eval mode."""
    _neutral_norm(case, "tebn", TEBN(stats=_stats(case), at="norm"))


@check(
    "semantics",
    do="let the class that snn_ext_replace gives a norm compute TimedNorm.sequence(x) or .step(t, x), on the"
    " input as the framework's own norm sees it; the bias is TimedNorm's business",
)
def bntt_with_bias_is_neutral(case: Case) -> None:
    """A fresh BNTT(bias=True) on the batch norms changes no bit of any output in eval mode."""
    _neutral_norm(case, "bntt", BNTT(bias=True, at="norm"))


def _stats(case: Case) -> Any:
    per_call = any(s.spec.time is Time.PER_CALL for s in takes(case, "tebn") if isinstance(s.spec, NormSpec))
    return "step" if per_call else "joint"


def _neutral_norm(case: Case, method: str, option: Any) -> None:
    norms = [site for site in takes(case, method) if isinstance(site.spec, NormSpec)]
    need(norms, f"no batch norm of the case takes {method.upper()}")
    model = patched(case, **{method: option})
    theirs = output(case, stock(case))
    expect_same_output(
        theirs, output(case, model), "the output changed.", where=f"case {case.name}, {option}"
    )
