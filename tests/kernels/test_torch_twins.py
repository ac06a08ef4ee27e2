"""Wrong twins of the plain torch backend: the comparison with the composite catches every one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from snn_ext.kernels import bumps, inplace, parts, torch_backend, torch_gradients
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.torch_backend import run
from tests.kernels.composite import FORMS, assert_same, check, composite, dyadic
from tests.kernels.mutants import mutate

KINDS = list(itertools.product(["hard", "soft", "none"], ["immediate", "delayed"], [False, True]))

MUTANTS: list[tuple[ModuleType, str, str, str]] = [
    (inplace, "Equations.fire", "torch.ge if", "torch.gt if"),
    (inplace, "Equations.fire", "else torch.gt", "else torch.ge"),
    (inplace, "Equations.fire", "torch.mul(decided, self.sign, out=out)", "-decided"),
    (inplace, "Equations.reset", "self.threshold, s", "self.rate, s"),
    (inplace, "Equations.reset", "alpha=self.rest", "alpha=-self.rest"),
    (inplace, "Equations.charge", "v - self.rest if self.rest", "v if self.rest"),
    (
        inplace,
        "Equations.charge",
        "self._lost(out, out).add_(v)",
        "self._lost(out, out).mul_(1 + 1e-7).add_(v)",
    ),
    (inplace, "Equations._charge_plain", "self.gain * x", "x"),
    (inplace, "Equations._charge_plain", "out.add_(self.offset)", "out"),
    (inplace, "Equations._offset", "1 - (", "(1 - 2**-23) - ("),
    (inplace, "_exact_share", "!= 0.5", "== 0"),
    (inplace, "Equations.charge", "alpha=0.5", "alpha=0.5000001"),
    (bumps, "_atan", "math.pi**2 / 2", "math.pi**2 / 4"),
    (inplace, "Equations.slopes", "else 1 - rate", "else rate"),
    (inplace, "Equations.slopes", "rate if self.leak.input else None", "rate"),
    (inplace, "Equations.rate_slope", "x - distance", "x + distance"),
    (inplace, "Equations.rate_slope", "v - self.rest if self.rest", "v if self.rest"),
    (parts, "Part.current", "a + self.shift[t]", "a - self.shift[t]"),
    (parts, "Part.run", "h.sub_(owed)", "h.sub_(0)"),
    (parts, "Part.run", "if eq.resets_now", "if eq.hard or eq.soft"),
    (parts, "Part.run", "membrane.copy_(kept if eq.delayed else v)", "membrane.copy_(v)"),
    (parts, "Part.run", "membranes[t].copy_(kept if eq.delayed else v)", "membranes[t].copy_(v)"),
    (parts, "Part.membrane_before", "self.eq.fire(decided[t - 1]", "self.eq.fire(decided[t]"),
    (torch_backend, "gather", "call.v.to(dtype) + v0", "v0"),
    (torch_backend, "gather", "due.detach() if d.detach_reset else due", "due"),
    (torch_gradients, "Room.gradients", "self.rate.div_(", "self.rate.mul_("),
    (torch_gradients, "Outer.handed", "else step + end", "else step"),
    (
        torch_gradients,
        "decision",
        "past = torch.addcmul(carried, carried, s, value=-1, out=s)",
        "past = carried",
    ),
    (
        torch_gradients,
        "decision",
        "spike = torch.addcmul(spike, carried, kept, value=-1)",
        "spike = spike + 0",
    ),
    (torch_gradients, "decision", "spike.add_(carried, alpha=eq.rest)", "spike"),
    (torch_gradients, "decision", "spike = torch.addcmul(spike, due, eq.threshold, value=-1)", "pass"),
    (
        torch_gradients,
        "decision",
        "torch.empty_like(decided)), due, value=-1",
        "torch.empty_like(decided)), due",
    ),
    (torch_gradients, "decision", "theta.addcmul_(spike, bump, value=-1)", "pass"),
    (torch_gradients, "backward", "later if eq.owes else carried, outer", "carried, outer"),
    (torch_gradients, "backward", "else past + handed", "else past"),
    (torch_gradients, "backward", "handed is not None and not eq.delayed", "handed is not None"),
    (torch_gradients, "backward", "into.gain.addcmul_(later", "into.gain.addcmul_(kept[t]"),
    (torch_gradients, "backward", "later if decay is None else later * decay", "later"),
    (torch_gradients, "backward", "torch.neg(later, out=into.owed)", "into.owed.copy_(later)"),
    (torch_gradients, "through_affine", "(g * part.x[t])", "g"),
    (torch_gradients, "through_affine", "g if part.scale is None else g * part.scale[t]", "g"),
]


def check_everything() -> None:
    torch.manual_seed(0)
    for (reset, timing, detach), form in itertools.product(
        KINDS, ["plain", "odd", "leak/3", "leak*", "half", "state/3"]
    ):
        d = replace(
            FORMS[form](),
            reset=reset,
            timing=timing,
            detach_reset=detach,
            threshold=torch.tensor([1.0, 0.75]).view(2, 1),
        )
        if d.leak:
            d = replace(d, leak=replace(d.leak, value=torch.tensor(d.leak.value)))
        else:
            d = replace(d, decay=torch.tensor(d.decay), gain=torch.tensor(d.gain))
        call = Call(dyadic(5, 3, 2, 8), d, v=dyadic(3, 2, 8), v0=dyadic(2, 1), resume=True, store=True)
        check(call, run)
        check(replace(call, scale=torch.rand(5, 2), shift=torch.rand(2)), run)
        number = replace(
            call, dynamics=replace(FORMS[form](), reset=reset, timing=timing, fires_at_equality=detach)
        )
        check(number, run)
        folded = replace(number, folded=(torch.tensor([[1.0], [0.5]]), torch.tensor([[1.0], [-1.0]])))
        assert_same(run(folded), composite(folded))


def test_the_checks_pass() -> None:
    check_everything()


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_wrong_twins_are_caught(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, *MUTANTS[number])
    with pytest.raises((AssertionError, RuntimeError)):
        check_everything()
