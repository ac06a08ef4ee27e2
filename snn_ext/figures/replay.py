"""Compute again, step by step in plain torch, what a neuron did in a call: membranes that kernels keep to
themselves. What comes out is compared with what the neuron gave."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from snn_ext.dynamics import functional
from snn_ext.dynamics.functional import Decide
from snn_ext.errors import UnsupportedSiteError
from snn_ext.kernels import Call
from snn_ext.methods.conversion import NormalisedInput
from snn_ext.methods.norms import MembraneBatchNorm, NormalisedMembrane
from snn_ext.patching.sequence import fired_by, is_carried, steps_behind
from snn_ext.patching.shapes import untouched

__all__ = ["Membranes", "Planned", "check", "plan", "replay"]


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
    """[T, B, *] each; see `SiteRecord`."""

    h: Tensor
    normalised: Tensor | None
    v: Tensor
    spikes: Tensor


def plan(module: nn.Module, call: Call, *, whole: bool) -> Planned:
    """Note what will not be known after the call any more."""
    v = call.v
    goes_on = v is not None and is_carried(v)
    counts = isinstance(module, NormalisedInput) and goes_on and not whole
    t = steps_behind(v, module) if counts and v is not None else 0
    fired = fired_by(v) if v is not None and isinstance(module, NormalisedMembrane) else None
    copy = None if v is None else v.detach().clone()
    return Planned(replace(call, v=copy), whole, t, None if fired is None else fired.clone())


def replay(module: nn.Module, planned: Planned, state: torch.dtype) -> Membranes:
    """What the neuron computed in the call, with membranes of the type `state`."""
    call, d = planned.call, planned.call.dynamics
    with _unchanged(module):
        x = _current(module, planned).to(state)
        seen = _Seen()
        decide = seen.watch(_decide(module, call, seen.note_normalised))
        v = _first(call, state)
        pending = planned.fired
        if call.resume and call.v is not None and not isinstance(module, NormalisedMembrane):
            pending, _ = functional.decide_plain(d)(call.v.to(state))
        vs, spikes = [], []
        for x_t in x.unbind(0):
            pending, v = functional.step(x_t, v, d, pending=pending, decide=decide)
            vs.append(v)
            spikes.append(pending)
    normalised = torch.stack(seen.normalised) if seen.normalised else None
    return Membranes(torch.stack(seen.h), normalised, torch.stack(vs), torch.stack(spikes))


class _Seen:
    """What passed by in a replay."""

    def __init__(self) -> None:
        self.h: list[Tensor] = []
        self.normalised: list[Tensor] = []

    def note_normalised(self, y: Tensor) -> Tensor:
        self.normalised.append(y)
        return y

    def watch(self, decide: Decide) -> Decide:
        def noted(h: Tensor) -> tuple[Tensor, Tensor]:
            self.h.append(h)
            return decide(h)

        return noted


def _decide(module: nn.Module, call: Call, note: object) -> Decide:
    if not isinstance(module, NormalisedMembrane):
        return functional.decide_plain(call.dynamics)
    norm, rule = module.mpbn, module.firing_rule()
    if not isinstance(norm, MembraneBatchNorm):
        return module.membrane_decision()  # folded: there is no normalised membrane any more
    return functional.decide_normalised(
        lambda h: note(norm(h)),  # type: ignore[operator]
        rule.threshold,
        rule.spike,
        carry=norm.carry,
    )


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


def check(where: str, found: Membranes, spikes: Tensor, last: Tensor | None) -> None:
    """Compare with the spikes [T, B, *] (graded ones too) that the neuron gave, and its last membrane.

    Raises:
        UnsupportedSiteError: any spike differs, or the membrane does by more than rounding.
    """
    reason = _difference(found, spikes, last)
    if reason:
        raise UnsupportedSiteError(
            "a neuron does something else than its equations: its membranes cannot be told.",
            where=where,
            why=reason,
            do="leave it out with exclude=; if its class is the framework's own, report it to the authors of"
            " the adapter",
        )


def _difference(found: Membranes, spikes: Tensor, last: Tensor | None) -> str | None:
    if spikes.shape != found.spikes.shape:
        return f"it gave {list(spikes.shape)} for an input {list(found.spikes.shape)}"
    wrong = int(((found.spikes != 0) != (spikes != 0)).sum())
    if wrong:
        return f"{wrong} of {spikes.numel()} spikes differ"
    if last is None:
        return None
    # Kernels may contract multiplications and additions; another equation differs by far more.
    rounding = math.sqrt(torch.finfo(last.dtype).eps)
    near = torch.isclose(last, found.v[-1], rtol=rounding, atol=rounding, equal_nan=True).all()
    return None if near else "its membrane after the last step differs"
