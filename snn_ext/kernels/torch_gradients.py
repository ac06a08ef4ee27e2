"""The backward pass through some neurons of a call, from the last step to the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snn_ext.kernels.inplace import Equations
from snn_ext.kernels.parts import Index, Inputs, Part, Rule, steps

__all__ = ["Into", "Outer", "Room", "backward", "decision", "needs_input"]


ThroughNorm = Callable[[int, Tensor, Tensor | None], Tensor]
"""From step and the gradients of what is decided on and of what is carried on (None: zero): that of H."""


class Outer(NamedTuple):
    """Gradients of what a call returned, where there are any."""

    spikes: Sequence[Tensor] | None
    membrane: Tensor | None
    membranes: Sequence[Tensor] | None

    @classmethod
    def of(cls, grads: Sequence[Tensor | None], index: Index) -> Outer:
        """Some neurons' share."""
        spikes, membrane, membranes = grads
        return cls(
            None if spikes is None else steps(spikes, index),
            None if membrane is None else membrane[index],
            None if membranes is None else steps(membranes, index),
        )

    def spike(self, t: int, like: Tensor) -> Tensor:
        """Of the spikes of step t."""
        if self.spikes is None:
            return like.new_zeros(())
        grad = self.spikes[t]
        return grad if grad.dtype == like.dtype else grad.to(like.dtype)

    def handed(self, t: int, last: bool) -> Tensor | None:
        """Of the membrane after step t."""
        step = None if self.membranes is None else self.membranes[t]
        end = self.membrane if last else None
        return step if end is None else end if step is None else step + end


def needs_input(rule: Rule, wanted: Inputs) -> bool:
    """Whether the backward pass needs x, not only the membranes."""
    leak = rule.dynamics.leak
    return bool(wanted.scale or wanted.gain or (wanted.rate and leak is not None and leak.input))


class Room(NamedTuple):
    """For the gradients that are wanted, in the order of `Inputs`."""

    x: Tensor | None
    start: Tensor | None
    owed: Tensor | None
    scale: Tensor | None
    """This and all that follow are added up, from zero."""
    shift: Tensor | None
    threshold: Tensor | None
    """[B, *], as the next two: a parameter of broadcast shape gets one value per neuron here."""
    rate: Tensor | None
    gain: Tensor | None

    @classmethod
    def of(cls, inputs: Inputs, wanted: Inputs, dtype: torch.dtype) -> Room:
        """For the inputs marked in `wanted`; `dtype` is that of x."""

        def zeros(like: Tensor | None, want: Tensor | None) -> Tensor | None:
            return torch.zeros_like(like) if want and like is not None else None

        x, start = inputs.x, inputs.start
        return cls(
            x=torch.empty_like(x, dtype=dtype) if wanted.x else None,
            start=torch.empty_like(start) if wanted.start else None,
            owed=torch.empty_like(start) if wanted.owed else None,
            scale=zeros(inputs.scale, wanted.scale),
            shift=zeros(inputs.shift, wanted.shift),
            threshold=zeros(start, wanted.threshold),
            rate=zeros(start, wanted.rate),
            gain=zeros(start, wanted.gain),
        )

    def gradients(self, rule: Rule, inputs: Inputs) -> list[Tensor | None]:
        """The gradients of `inputs`, once this room is filled."""
        leak = rule.dynamics.leak
        if self.rate is not None and leak is not None and leak.divide:
            self.rate.div_(-inputs.rate.square())
        pairs = zip(self, inputs, strict=True)
        return [None if g is None or p is None else g.sum_to_size(p.shape) for g, p in pairs]


class Into(NamedTuple):
    """Some neurons' share of a `Room`."""

    x: Sequence[Tensor] | None
    start: Tensor | None
    owed: Tensor | None
    scale: Sequence[Tensor] | None
    """[1, C, 1, ...], one for every step, or the same for all."""
    shift: Sequence[Tensor] | None
    threshold: Tensor | None
    rate: Tensor | None
    gain: Tensor | None

    @classmethod
    def of(cls, room: Room, index: Index, length: int) -> Into:
        """The share of the neurons at `index` in sequences of this length."""
        return cls(
            x=None if room.x is None else steps(room.x, index),
            start=None if room.start is None else room.start[index],
            owed=None if room.owed is None else room.owed[index],
            scale=None if room.scale is None else _channels(room.scale, index, length),
            shift=None if room.shift is None else _channels(room.shift, index, length),
            threshold=None if room.threshold is None else room.threshold[index],
            rate=None if room.rate is None else room.rate[index],
            gain=None if room.gain is None else room.gain[index],
        )


def _channels(affine: Tensor, index: Index, length: int) -> Sequence[Tensor]:
    share = steps(affine, (slice(None), *index[1:2]))
    return share if len(share) == length else share * length


def decision(
    eq: Equations,
    decided: Tensor,
    kept: Tensor,
    spike: Tensor,
    carried: Tensor | None,
    due: Tensor | None,
    theta: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Back through reset and firing, S = fire(decided - theta) and V = reset(kept, S).

    Args:
        eq: the neuron.
        decided, kept: both H, unless a norm sits between charge and decision.
        spike, carried: gradients of S, and of V (None: zero).
        due: gradient of what a soft reset takes theta * S from.
        theta: where the gradient of the threshold is added up.

    Returns:
        dL/dS, dS/d decided, and the gradient that reaches `kept` past the reset.
    """
    bump = eq.bump(decided)
    past = carried
    if eq.hard and carried is not None:
        s = eq.fire(decided, out=torch.empty_like(decided))
        past = torch.addcmul(carried, carried, s, value=-1, out=s)
        if not eq.d.detach_reset:
            spike = torch.addcmul(spike, carried, kept, value=-1)
            if eq.rest:
                spike.add_(carried, alpha=eq.rest)
    elif eq.soft and due is not None:
        if theta is not None:
            theta.addcmul_(eq.fire(decided, out=torch.empty_like(decided)), due, value=-1)
        if not eq.d.detach_reset:
            spike = torch.addcmul(spike, due, eq.threshold, value=-1)
    if theta is not None:
        theta.addcmul_(spike, bump, value=-1)
    return spike, bump, past


def backward(
    part: Part,
    decided: Sequence[Tensor],
    kept: Sequence[Tensor],
    outer: Outer,
    into: Into,
    through_norm: ThroughNorm | None = None,
) -> None:
    """Fill in the gradients of some neurons.

    Args:
        part: the neurons.
        decided, kept: per step, what they decided on and what they carried on: the charged membranes
            both, unless a norm sits in between.
        outer: gradients of what they returned.
        into: their share of the gradients.
        through_norm: back through what sits in between.
    """
    eq = part.eq
    gain, decay = eq.slopes
    affine = part.scale is not None or part.shift is not None
    direct = not affine and into.x is not None and into.x[0].dtype == part.start.dtype
    carried = later = None
    for t in reversed(range(len(kept))):
        handed = outer.handed(t, last=t == len(kept) - 1)
        if handed is not None and not eq.delayed:
            carried = handed if carried is None else carried + handed
        due, spike = later if eq.owes else carried, outer.spike(t, kept[t])
        spike, bump, past = decision(eq, decided[t], kept[t], spike, carried, due, into.threshold)
        if handed is not None and eq.delayed:
            past = handed if past is None else past + handed
        to = into.x[t] if direct and into.x else None
        if through_norm is None:
            later = _sum(past, spike, bump, to if gain is None else None)
        else:
            later = through_norm(t, spike * bump, past)
        if into.rate is not None:
            before = part.membrane_before(t, decided, kept)
            into.rate.addcmul_(later, eq.rate_slope(part.current(t), before))
        if into.gain is not None:
            into.gain.addcmul_(later, part.current(t))
        g = later if gain is None else torch.mul(later, gain, out=to)
        if not direct:
            through_affine(part, t, g, into)
        elif to is not None and g is not to:
            to.copy_(g)
        if t or into.start is not None:
            carried = g if decay is gain else later if decay is None else later * decay
    if into.start is not None and carried is not None:
        into.start.copy_(carried)
    if into.owed is not None and later is not None:
        torch.neg(later, out=into.owed)


def _sum(past: Tensor | None, spike: Tensor, bump: Tensor, out: Tensor | None) -> Tensor:
    return torch.mul(spike, bump, out=out) if past is None else torch.addcmul(past, spike, bump, out=out)


def through_affine(part: Part, t: int, g: Tensor, into: Into) -> None:
    """Back from the input current to x[t]."""
    others = [d for d in range(g.ndim) if d != 1]
    if into.shift is not None:
        into.shift[t].add_(g.sum(others, keepdim=True))
    if into.scale is not None:
        into.scale[t].add_((g * part.x[t]).sum(others, keepdim=True))
    if into.x is not None:
        into.x[t].copy_(g if part.scale is None else g * part.scale[t])
