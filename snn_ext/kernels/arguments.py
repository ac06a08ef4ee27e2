"""What every backend is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snn_ext.dynamics.description import Dynamics

__all__ = ["Call", "Result"]


@dataclass(frozen=True)
class Call:
    """One run of a neuron over a whole sequence.

    The first membrane is `v`, or ``dynamics.rest`` where there is none, plus `v0`; where there is no
    `v`, `v0` replaces the rest instead. A delayed reset that is due at the first step is decided on `v`,
    before `v0` is added: an initial potential above the threshold is no spike.

    Args:
        x: input [T, B, *], T >= 1.
        dynamics: the neuron.
        v: membrane [B, *] of an earlier call, or a start value of the user.
        v0: initial potential, broadcastable to [B, *].
        resume: with delayed timing, whether `v` may owe a reset.
        folded: signed thresholds of a folded MPBN, (threshold, sign), each [C, 1, ...] or [C, *]
            (inference only).
        scale, shift: affine of the input, scale * x + shift, each [T, C] or [C].
        store: also return the membrane after every step.
    """

    x: Tensor
    dynamics: Dynamics
    v: Tensor | None = None
    v0: Tensor | float | None = None
    resume: bool = False
    folded: tuple[Tensor, Tensor] | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    store: bool = False

    @property
    def state_dtype(self) -> torch.dtype:
        """Membranes are float32 at least, whatever the input."""
        return torch.float64 if self.x.dtype is torch.float64 else torch.float32


class Result(NamedTuple):
    """What a backend returns."""

    spikes: Tensor
    """[T, B, *], in the dtype of the input."""
    membrane: Tensor
    """[B, *], to be carried to the next call."""
    membranes: Tensor | None
    """[T, B, *] where they were asked for."""
