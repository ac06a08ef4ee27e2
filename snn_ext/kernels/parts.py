"""A call cut into parts of its neurons, each small enough for the cache while all time steps run over it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from snn_ext.dynamics.description import Dynamics
from snn_ext.kernels.inplace import Equations, Parameters

__all__ = ["Index", "Inputs", "Normalise", "Part", "Rule", "blocks", "steps"]

Index = tuple[slice, ...]
"""Of one step [B, *]; () is all of it."""

NEURONS = 2**16
"""Per part and thread: torch splits an operation into threads by half of that."""


def blocks(step: Tensor) -> Iterator[Index]:
    """The parts of one step [B, *]; off the CPU, everything at once."""
    shape, size = step.shape, torch.get_num_threads() * NEURONS
    if step.device.type != "cpu" or step.numel() <= size:
        yield ()
        return
    # Deeper than the batch only where memory is laid out in the order of the dimensions.
    deepest = step.ndim - 1 if step.is_contiguous() else 0
    inner = [math.prod(shape[d + 1 :]) for d in range(step.ndim)]
    split = next((d for d in range(deepest) if inner[d] <= size), deepest)
    chunk = max(1, size // inner[split])
    for outer in itertools.product(*([slice(i, i + 1) for i in range(n)] for n in shape[:split])):
        for first in range(0, shape[split], chunk):
            yield (*outer, slice(first, first + chunk))


def steps(value: Tensor, index: Index) -> tuple[Tensor, ...]:
    """Some neurons' share of a sequence [T, B, *], step by step."""
    return (value[(slice(None), *index)] if index else value).unbind(0)


class Rule(NamedTuple):
    """What a neuron does, apart from everything with a gradient."""

    dynamics: Dynamics
    folded: tuple[Tensor, Tensor | None] | None = None
    """See `Equations`."""
    smooth: bool = False


class Inputs(NamedTuple):
    """Everything of a call that may have a gradient."""

    x: Tensor
    """[T, B, *]"""
    start: Tensor
    """[B, *]"""
    owed: Tensor | None
    """[B, *], taken from the first charged membrane."""
    scale: Tensor | None
    """[T or 1, 1, C, 1, ...]"""
    shift: Tensor | None
    threshold: Tensor
    """This and the next two: `Parameters`."""
    rate: Tensor
    gain: Tensor


Normalise = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""From step and H: what is decided on, and what is carried on."""


class Part:
    """Some neurons of a call, over all its steps."""

    def __init__(self, rule: Rule, inputs: Inputs, index: Index) -> None:
        self.index, self._shape = index, inputs.start.shape
        self.x = steps(inputs.x, index)
        self.start = inputs.start[index]
        self.owed = None if inputs.owed is None else inputs.owed[index]
        self.scale, self.shift = (self._affine(p) for p in (inputs.scale, inputs.shift))
        parameters = Parameters(*(self._share(p) for p in (inputs.threshold, inputs.rate, inputs.gain)))
        folded = None
        if rule.folded is not None:
            threshold, sign = rule.folded
            folded = self._share(threshold), None if sign is None else self._share(sign)
        self.eq = Equations(rule.dynamics, parameters, folded=folded, smooth=rule.smooth)

    def _share(self, value: Tensor) -> Tensor:
        """These neurons' share of what broadcasts to one step."""
        return value if value.ndim == 0 or not self.index else value.expand(self._shape)[self.index]

    def _affine(self, value: Tensor | None) -> tuple[Tensor, ...] | None:
        return None if value is None else steps(value.expand(len(self.x), *self._shape), self.index)

    def current(self, t: int) -> Tensor:
        """The input of one step after its affine, in the dtype of the membrane."""
        a = self.x[t]
        if a.dtype != self.start.dtype:
            a = a.to(self.start.dtype)
        if self.scale is not None:
            a = self.scale[t] * a
        return a if self.shift is None else a + self.shift[t]

    def run(
        self,
        charged: Sequence[Tensor],
        spikes: Sequence[Tensor],
        membrane: Tensor,
        membranes: Sequence[Tensor] | None = None,
        normalise: Normalise | None = None,
    ) -> None:
        """Run all steps and fill in the charged membranes, spikes, the last membrane, and all of them.

        Where they are not looked at afterwards, `spare` is room enough for the charged membranes, and one
        step's for the spikes.
        """
        eq, v, owed = self.eq, self.start, self.owed
        number = None if spikes[0].dtype == membrane.dtype else torch.empty_like(membrane)
        for t in range(len(self.x)):
            h = eq.charge(self.current(t), v, out=charged[t % len(charged)])
            if owed is not None:
                h.sub_(owed)
            decided, kept = (h, h) if normalise is None else normalise(t, h)
            s = eq.fire(decided, out=spikes[t % len(spikes)] if number is None else number)
            if number is not None:
                spikes[t % len(spikes)].copy_(s)
            owed = s * eq.threshold if eq.owes else None
            v = eq.reset(kept, s, out=membrane) if eq.resets_now else kept
            if membranes is not None:
                membranes[t].copy_(kept if eq.delayed else v)
        membrane.copy_(kept if eq.delayed else v)

    def spare(self) -> list[Tensor]:
        """Room for a charged membrane, and for the one before where it is carried as it is."""
        return [torch.empty_like(self.start) for _ in range(1 if self.eq.resets_now else 2)]

    def charged(self) -> list[Tensor]:
        """The charged membranes once more."""
        h = [torch.empty_like(self.start) for _ in self.x]
        spare = torch.empty_like(self.start)
        self.run(h, [torch.empty_like(spare)], spare)
        return h

    def membrane_before(self, t: int, decided: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
        """What step `t` charged."""
        if t == 0:
            return self.start
        if not self.eq.resets_now:
            return kept[t - 1]
        s = self.eq.fire(decided[t - 1], out=torch.empty_like(kept[t - 1]))
        return self.eq.reset(kept[t - 1], s, out=torch.empty_like(s))
