"""The equations, once, in plain torch: everything else in snn-ext is tested against this file."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_ext.dynamics.description import Dynamics
from snn_ext.dynamics.surrogates import fire
from snn_ext.errors import OptionError, ReadoutError

__all__ = ["Sequence", "lts", "multistep", "sdt", "step", "tet"]


class Sequence(NamedTuple):
    """What `multistep` returns."""

    spikes: Tensor
    """[T, B, *]"""
    membrane: Tensor
    """[B, *], carried to the next step: V[T], or H[T] when the reset is delayed."""
    membranes: Tensor
    """[T, B, *], `membrane` after every step."""


def step(
    x: Tensor, v: Tensor, dynamics: Dynamics, *, pending_reset: bool = True, smooth: bool = False
) -> tuple[Tensor, Tensor]:
    """One time step: charge, fire, reset (equations: `Dynamics`).

    Args:
        x: input [B, *].
        v: membrane carried from the step before, broadcastable to `x`.
        dynamics: the neuron.
        pending_reset: with delayed timing, whether `v` was charged by a step of this sequence and may
            still have to be reset; False for an initial membrane. Ignored with immediate timing.
        smooth: see `surrogates.fire`.

    Returns:
        spikes [B, *] and the membrane to carry [B, *].
    """
    d = dynamics
    reset_now = d.timing == "immediate"
    pending: Tensor | None = None
    if not reset_now and pending_reset and d.reset != "none":
        pending = _fire(v, d, smooth)
        pending = pending.detach() if d.detach_reset else pending
    if pending is not None and d.reset == "hard":
        v = v * (1 - pending) + d.rest * pending
    h = _charge(x, v, d)
    if pending is not None and d.reset == "soft":
        h = h - d.threshold * pending
    s = _fire(h, d, smooth)
    if not reset_now or d.reset == "none":
        return s, h
    s_reset = s.detach() if d.detach_reset else s
    if d.reset == "soft":
        return s, h - d.threshold * s_reset
    return s, h * (1 - s_reset) + d.rest * s_reset


def _charge(x: Tensor, v: Tensor, d: Dynamics) -> Tensor:
    h = d.decay * v + d.gain * x
    return h + (1 - d.decay) * d.rest if d.rest else h


def _fire(h: Tensor, d: Dynamics, smooth: bool) -> Tensor:
    return fire(h - d.threshold, d.surrogate, fires_at_equality=d.fires_at_equality, smooth=smooth)


def multistep(
    x: Tensor,
    v0: Tensor | float,
    dynamics: Dynamics,
    *,
    continues: bool = False,
    smooth: bool = False,
) -> Sequence:
    """Run a neuron over a whole sequence from the membrane `v0`.

    Args:
        x: input current [T, B, *], T >= 1.
        v0: initial membrane V[0], broadcastable to [B, *] (per neuron, per channel, scalar, ...).
        dynamics: the neuron.
        continues: `v0` is the `membrane` of an earlier call, so a delayed reset may be pending.
        smooth: replace the spike by the surrogate's primitive (for gradient checks only).

    Returns:
        `Sequence(spikes, membrane, membranes)`. float16/bfloat16 inputs give spikes in their own
        dtype and a float32 membrane.

    Raises:
        OptionError: `x` has no time or batch dimension, T = 0, or `v0` does not broadcast.
    """
    if x.ndim < 2 or x.shape[0] == 0:
        raise OptionError(
            f"multistep needs an input [T, B, *] with T >= 1, got {list(x.shape)}.",
            do="stack the steps first: x = torch.stack(steps)",
        )
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    v = torch.as_tensor(v0, device=x.device).to(state_dtype)
    try:
        v = v.expand(x.shape[1:])
    except RuntimeError:
        raise OptionError(
            f"v0 of shape {list(v.shape)} does not broadcast to one step {list(x.shape[1:])}.",
            do="pass v0 as a scalar, [C, 1, 1], the feature shape, or [B, *]",
        ) from None
    spikes, membranes = [], []
    # unbind, not x[t]: indexing makes the backward quadratic in T.
    for t, x_t in enumerate(x.to(state_dtype).unbind(0)):
        s, v = step(x_t, v, dynamics, pending_reset=continues or t > 0, smooth=smooth)
        spikes.append(s)
        membranes.append(v)
    return Sequence(torch.stack(spikes).to(x.dtype), v, torch.stack(membranes))


# --- objectives: scores o[t] of shape [T, B, C], labels [B] (indices) or [B, C] (probabilities) -----


def _checked(outputs: Tensor, labels: Tensor) -> Tensor:
    """Labels in the dtype cross_entropy wants, after checking all shapes."""
    if outputs.ndim != 3 or 0 in outputs.shape:
        raise ReadoutError(
            f"an objective needs scores [T, B, C], got {list(outputs.shape)}.",
            why="the loss or its readout looks at single time steps, so time must still be there",
            do="return the scores of every step from the model: torch.stack(steps) -> [T, B, C]",
        )
    soft = labels.ndim == 2
    expected = outputs.shape[1:] if soft else outputs.shape[1:2]
    if labels.shape != expected:
        raise ReadoutError(
            f"labels {list(labels.shape)} do not fit scores [T, B, C] = {list(outputs.shape)}.",
            why="time is expected first, then batch, then classes",
            do="pass labels [B] or [B, C], and transpose batch-first scores: outputs.transpose(0, 1)",
        )
    return labels.to(outputs.dtype) if soft else labels.long()


def sdt(outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Standard direct training: CE(mean_t o[t], y). Scalar."""
    labels = _checked(outputs, labels)
    return F.cross_entropy(outputs.mean(0), labels, label_smoothing=smoothing)


def tet(
    outputs: Tensor,
    labels: Tensor,
    *,
    lam: float = 0.0,
    target: float = 1.0,
    smoothing: float = 0.0,
) -> Tensor:
    """Temporal efficient training: (1 - lam) * mean_t CE(o[t], y) + lam * mean((o - target)^2). Scalar.

    The squared term is the mean over all T*B*C elements. Source: the published code of TET.
    """
    labels = _checked(outputs, labels)
    steps = outputs.shape[0]
    flat_labels = labels.repeat(steps, *[1] * (labels.ndim - 1))
    ce = F.cross_entropy(outputs.flatten(0, 1), flat_labels, label_smoothing=smoothing)
    if lam == 0:
        return ce
    return (1 - lam) * ce + lam * (outputs - target).square().mean()


def lts(outputs: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Last time step: CE(o[T], y). Scalar."""
    labels = _checked(outputs, labels)
    return F.cross_entropy(outputs[-1], labels, label_smoothing=smoothing)
