"""Compute again, step by step in plain torch, what a neuron did in a call: membranes that kernels keep to
themselves. The spikes that the neuron gave do the resetting, and are compared with those that come out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from snn_ext.dynamics import functional
from snn_ext.dynamics.functional import Decide
from snn_ext.kernels import Call
from snn_ext.methods.conversion import NormalisedInput
from snn_ext.methods.norms import FoldedMembraneNorm, MembraneBatchNorm, NormalisedMembrane
from snn_ext.patching.sequence import fired_by, is_carried, steps_behind
from snn_ext.patching.shapes import untouched

__all__ = ["Membranes", "Planned", "difference", "plan", "replay"]


@dataclass(frozen=True, eq=False)
class Planned:
    """A call that is about to happen.

    Attributes:
        call: the call; `v` a copy, as the membrane may be written into.
        whole: whether it is a sequence, or one step.
        t: steps behind in the sequence of a step.
        fired: the spikes that a delayed reset is due for, where the membrane does not show them.
    """

    call: Call
    whole: bool
    t: int
    fired: Tensor | None


@dataclass(frozen=True, eq=False)
class Membranes:
    """What came out, [T, B, *] each.

    Attributes:
        h, normalised, v: see `SiteRecord`.
        wrong: where the decision was another than the neuron's.
        margin: how far from its threshold each decision was.
    """

    h: Tensor
    normalised: Tensor | None
    v: Tensor
    wrong: Tensor
    margin: Tensor


def plan(module: nn.Module, call: Call, *, whole: bool) -> Planned:
    """Note what will not be known after the call any more."""
    v = call.v
    if v is None:
        return Planned(call, whole, 0, None)
    counts = isinstance(module, NormalisedInput) and is_carried(v) and not whole
    fired = fired_by(v) if isinstance(module, NormalisedMembrane) else None
    return Planned(
        replace(call, v=v.detach().clone()),
        whole,
        steps_behind(v, module) if counts else 0,
        None if fired is None else fired.clone(),
    )


def replay(module: nn.Module, planned: Planned, given: Tensor, state: torch.dtype) -> Membranes:
    """What the neuron computed in the call, with membranes of the type `state`.

    Args:
        module: the neuron, after the call.
        planned: the call, noted before it.
        given: spikes that it gave, in the shape of the input [T, B, *]; graded ones too.
    """
    call, d = planned.call, planned.call.dynamics
    fired = (given != 0).to(state)
    with _unchanged(module):
        x, seen = _current(module, planned).to(state), _Seen()
        decide = _decide(module, call, seen)
        v, pending = _first(call, state), planned.fired
        if call.resume and call.v is not None and not isinstance(module, NormalisedMembrane):
            pending, _ = functional.decide_plain(d)(call.v.to(state))
        for x_t, s in zip(x.unbind(0), fired.unbind(0), strict=True):
            _, v = functional.step(x_t, v, d, pending=pending, decide=seen.instead_of(decide, s))
            seen.v.append(v)
            pending = s
    h, normalised = torch.stack(seen.h), torch.stack(seen.normalised) if seen.normalised else None
    margin = ((h if normalised is None else normalised) - _threshold(module, call)).abs()
    return Membranes(h, normalised, torch.stack(seen.v), torch.stack(seen.decided) != fired, margin)


@dataclass
class _Seen:
    """What passed by in a replay, step by step."""

    h: list[Tensor] = field(default_factory=list)
    normalised: list[Tensor] = field(default_factory=list)
    decided: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)

    def instead_of(self, decide: Decide, given: Tensor) -> Decide:
        """Note what `decide` decides, and return the given spikes."""

        def noted(h: Tensor) -> tuple[Tensor, Tensor]:
            self.h.append(h)
            spikes, kept = decide(h)
            self.decided.append(spikes)
            return given, kept

        return noted


def _decide(module: nn.Module, call: Call, seen: _Seen) -> Decide:
    if not isinstance(module, NormalisedMembrane):
        return functional.decide_plain(call.dynamics)
    norm, rule = module.mpbn, module.firing_rule()
    if not isinstance(norm, MembraneBatchNorm):
        return module.membrane_decision()  # folded: there is no normalised membrane any more

    def normalise(h: Tensor) -> Tensor:
        seen.normalised.append(norm(h))
        return seen.normalised[-1]

    return functional.decide_normalised(normalise, rule.threshold, rule.spike, carry=norm.carry)


def _threshold(module: nn.Module, call: Call) -> float | Tensor:
    norm = module.mpbn if isinstance(module, NormalisedMembrane) else None
    return norm.threshold if isinstance(norm, FoldedMembraneNorm) else call.dynamics.threshold


def _current(module: nn.Module, planned: Planned) -> Tensor:
    """The input as the membrane gets it: behind BNTT or TEBN."""
    x = planned.call.x
    if not isinstance(module, NormalisedInput):
        return x
    if planned.whole:
        return module.input_norm.sequence(x)
    return module.input_norm.step(planned.t, x[0]).unsqueeze(0)


def _first(call: Call, state: torch.dtype) -> Tensor:
    """The first membrane (the rule is that of `Call`)."""
    v0 = None if call.v0 is None else torch.as_tensor(call.v0, device=call.x.device).to(state)
    if call.v is not None:
        v = call.v.to(call.x.device, state)
        return v if v0 is None else v + v0
    first = v0 if v0 is not None else torch.tensor(call.dynamics.rest, dtype=state, device=call.x.device)
    return first.expand(call.x.shape[1:])


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Norms in training mode count what they are given: not twice."""
    with contextlib.ExitStack() as stack:
        for norm in module._modules.values():
            if norm is not None:
                stack.enter_context(untouched(norm))
        yield


def difference(found: Membranes, last: Tensor | None, *, exact: bool) -> str:
    """In words, what is another than the neuron did; empty if nothing is.

    Kernels on CUDA may contract multiplications and additions, so that membranes differ by rounding and, next
    to the threshold, decisions do; other equations differ by far more.

    Args:
        last: the membrane that the neuron holds after the call, if it holds one.
        exact: no decision may differ.
    """
    rounding = math.sqrt(torch.finfo(found.v.dtype).eps)
    wrong = found.wrong if exact else found.wrong & ~(found.margin <= rounding)
    if wrong.any():
        return f"{int(wrong.sum())} of {wrong.numel()} spikes differ"
    if last is None:
        return ""
    near = torch.isclose(last, found.v[-1], rtol=rounding, atol=rounding, equal_nan=True).all()
    return "" if near else "its membrane after the last step differs"
