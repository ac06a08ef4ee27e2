"""When does a sequence start, and who may say so?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.methods.options import IMP
from snn_ext.patching.record import patched_modules
from snn_ext.patching.sequence import reset
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, expect_equal, need
from snn_ext.testing.models import (
    BATCH,
    Neuron,
    everything,
    expect_same_output,
    inputs,
    neurons,
    output,
    patched,
    stock,
    unlike,
)

__all__ = [
    "batch_size_may_change",
    "framework_reset",
    "reset_is_scoped",
    "snn_ext_reset",
    "steps_equal_sequence",
    "v0_acts_once",
    "v0_is_read_in_forward",
]

_V0 = IMP(init=(0.3, 0.6))


@check(
    "semantics",
    do="let V0 (and MPBN) enter both ways of running the neuron: find what the two have in common, or"
    " override both",
)
def steps_equal_sequence(case: Case) -> None:
    """Step by step, a patched neuron gives the same spikes as in one call."""
    need(case.play_steps, "the case has one way to run a neuron (Case.play_steps)")
    for neuron in neurons(case):
        for options in _combinations(neuron):
            x = _input(neuron)
            with torch.no_grad():
                whole = neuron.play(neuron.patched(**options), x)
                if case.play_steps is not None:
                    stepped = case.play_steps(neuron.patched(**options), x)
            expect_equal(
                whole,
                stepped,
                f"step by step, it gives other spikes with {', '.join(options)}.",
                where=neuron.where,
            )


def _combinations(neuron: Neuron) -> list[dict[str, Any]]:
    wanted: list[dict[str, Any]] = [{"imp": _V0}]
    if not neuron.spec.refusal("mpbn"):
        wanted.append({"imp": _V0, "mpbn": True})
    return wanted


def _input(neuron: Neuron) -> Tensor:
    if neuron.spec.dynamics is not None:
        return neuron.drive(8, -1.0, 2.5)
    return torch.rand(8, BATCH, *neuron.features) * 4 - 1


@check(
    "semantics",
    do="use initial_membrane only where the framework itself would start anew; a state that is carried on"
    " stays as it is",
)
def v0_acts_once(case: Case) -> None:
    """A sequence given in two calls without a reset gets V0 exactly as often as the framework starts anew."""
    for neuron in neurons(case):
        x = _input(neuron)
        parts = x[:4], x[4:]
        with torch.no_grad():
            carries = torch.equal(_in_two(neuron, neuron.fresh(), x), neuron.play(neuron.fresh(), x))
            module = neuron.patched(imp=_V0)
            halves = [neuron.patched(imp=_V0), neuron.patched(imp=_V0)]
            two = _in_two(neuron, module, x)
            one = neuron.play(neuron.patched(imp=_V0), x)
            anew = torch.cat([neuron.play(half, part) for half, part in zip(halves, parts, strict=True)])
        expect_equal(
            one if carries else anew,
            two,
            "in the second call of one sequence, V0 was applied again."
            if carries
            else "the framework starts every call anew, and V0 was not applied again.",
            where=neuron.where,
        )


def _in_two(neuron: Neuron, module: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([neuron.play(module, x[:4]), neuron.play(module, x[4:])])


@check(
    "semantics",
    do="leave the framework's reset as it is, and let the first step after it ask initial_membrane; where"
    " states are in the user's hands, find out from the state that a step is given whether it is a first one",
)
def framework_reset(case: Case) -> None:
    """After the framework's own reset (or, where states are explicit, by itself) a sequence starts anew."""
    if case.reset is None:
        _starts_again(case, lambda model: None, "a first sequence, without a reset")
    else:
        _starts_again(case, case.reset, "the framework's reset")


@check("semantics", do="implement snn_ext_reset: forget the state of every neuron inside root")
def snn_ext_reset(case: Case) -> None:
    """After snn_ext.reset a sequence starts anew: from V0, and at the first time step."""
    _starts_again(case, reset, "snn_ext.reset")


def _starts_again(case: Case, again: Any, name: str) -> None:
    next(neurons(case))
    model = patched(case, **everything(case))
    with torch.no_grad():
        need(
            unlike(output(case, stock(case)), output(case, patched(case, imp=_V0))),
            "V0 changes no output of the case",
        )
        first = output(case, model)
        again(model)
        second = output(case, model)
    expect_same_output(
        first, second, f"after {name}, the same input gave another output.", where=f"case {case.name}"
    )


@check(
    "semantics",
    do="call initial_membrane inside the first step; what is stored at reset (or at patch) is one optimiser"
    " step old",
)
def v0_is_read_in_forward(case: Case) -> None:
    """A V0 that an optimiser changed after the reset is the one the next sequence starts from."""
    next(neurons(case))
    model, other = patched(case, imp=_V0), patched(case, imp=_V0)
    with torch.no_grad():
        before = output(case, model)
        _start_over(case, model)
        for changed in (model, other):
            for module, _ in patched_modules(changed).values():
                module.get_parameter("imp").sub_(1.0)
        expected = output(case, other)
        need(unlike(before, expected), "V0 changes no output of the case")
        after = output(case, model)
    expect_same_output(expected, after, "a sequence started from an old V0.", where=f"case {case.name}")


def _start_over(case: Case, model: nn.Module) -> None:
    """By all means: which of them works is the business of other checks."""
    if case.reset is not None:
        case.reset(model)
    reset(model)


@check("semantics", do="reset in snn_ext_reset what is inside root, and nothing else")
def reset_is_scoped(case: Case) -> None:
    """snn_ext.reset(one network) leaves the states of another one alone."""
    x = inputs(case)
    half = len(x) // 2
    results: list[list[Tensor]] = []
    for disturb in (False, True):
        model, other = patched(case, imp=_V0), patched(case, imp=_V0)
        with torch.no_grad():
            output(case, other, x)
            output(case, model, x[:half])
            if disturb:
                reset(other)
            results.append(output(case, model, x[half:]))
    expect_same_output(
        results[0],
        results[1],
        "resetting one network changed what another one had in mind.",
        where=f"case {case.name}",
    )


@check(
    "semantics",
    do="take the batch size from the input of the first step: V0 has no batch dimension, and nothing of a"
    " sequence may outlive it",
)
def batch_size_may_change(case: Case) -> None:
    """A sequence with another batch size starts from V0 too."""
    next(neurons(case))
    small, large = inputs(case, BATCH), inputs(case, BATCH + 2)
    model = patched(case, imp=_V0)
    with torch.no_grad():
        output(case, model, small)
        _start_over(case, model)
        second = output(case, model, large)
        expected = output(case, patched(case, imp=_V0), large)
    expect_same_output(
        expected,
        second,
        "a second sequence with a larger batch is not as a first one.",
        where=f"case {case.name}",
    )
