"""Does a loss see what the network returns as scores [T, B, C]?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snn_ext.methods.objectives import LTS, SDT, TET, TETS, Objective
from snn_ext.patching.hookspecs import Want
from snn_ext.patching.training import loss
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, expect, expect_equal
from snn_ext.testing.models import inputs, stock

__all__ = ["objective_values", "readout_layout"]

_WANTS: tuple[Want, ...] = ("membrane", "spikes")


@check(
    "semantics",
    do="implement snn_ext_readout: from what the framework's networks return, the recording asked for, time"
    " first (not needed where they return [T, B, C])",
)
def readout_layout(case: Case) -> None:
    """A loss reads scores [T, B, C] out of what the network returns, from the recording asked for."""
    x, model = inputs(case), stock(case)
    with torch.no_grad():
        returned = case.run(model, x)
        for want in _WANTS:
            scores = loss(model, "sdt", on=want).scores(returned)
            expect(
                scores.ndim == 3 and scores.shape[:2] == x.shape[:2],
                f"scores on={want!r} have the shape {list(scores.shape)}.",
                where=f"case {case.name}",
                why=f"[T, B, C] with T = {x.shape[0]} and B = {x.shape[1]} is wanted",
            )
            expect_equal(
                case.scores(returned, want),
                scores,
                f"scores on={want!r} are not the recording that the case names.",
                where=f"case {case.name}",
            )


@check(
    "semantics",
    do="let the loss that snn_ext_loss returns be objective(readout(output), target), or do without the hook",
)
def objective_values(case: Case) -> None:
    """Every objective has the value, and the prediction, of its definition."""
    model = stock(case)
    with torch.no_grad():
        returned = case.run(model, inputs(case))
        for objective, value, readout in _OBJECTIVES:
            crit = loss(model, objective)
            scores = crit.scores(returned)
            labels = torch.randint(scores.shape[2], scores.shape[1:2])
            ours, theirs = value(scores, labels), crit(returned, labels)
            expect(
                torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7),
                f"{objective!r} has the value {float(theirs):.6g}, by definition {float(ours):.6g}.",
                where=f"case {case.name}",
            )
            expect_equal(
                readout(scores), crit.predict(returned), f"{objective!r} predicts from other scores."
            )


def _cross_entropy(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of -sum_c q_c log p_c, written out."""
    log_p = scores - scores.exp().sum(-1, keepdim=True).log()
    q = torch.full_like(scores, smoothing / scores.shape[-1])
    q[torch.arange(len(labels)), labels] += 1 - smoothing
    return -(q * log_p).sum(-1).mean()


def _every_step(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    return torch.stack([_cross_entropy(o, labels, smoothing) for o in scores]).mean()


def _mean(scores: Tensor) -> Tensor:
    return scores.mean(0)


def _last(scores: Tensor) -> Tensor:
    return scores[-1]


_Value = Callable[[Tensor, Tensor], Tensor]
_OBJECTIVES: tuple[tuple[Objective, _Value, Callable[[Tensor], Tensor]], ...] = (
    (SDT(), lambda o, y: _cross_entropy(o.mean(0), y), _mean),
    (TET(lam=0.05), lambda o, y: 0.95 * _every_step(o, y) + 0.05 * (o - 1).square().mean(), _mean),
    (TETS(), lambda o, y: _every_step(o, y, 0.01), _mean),
    (LTS(), lambda o, y: _cross_entropy(o[-1], y), _last),
)
