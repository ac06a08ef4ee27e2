"""The equations, once, in plain torch: everything else in snn-ext is tested against this file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from snn_ext.dynamics.description import Dynamics
from snn_ext.dynamics.surrogates import fire
from snn_ext.errors import OptionError, ReadoutError

__all__ = [
    "Decide",
    "Sequence",
    "charge",
    "decide_folded",
    "decide_normalised",
    "decide_plain",
    "fold_threshold",
    "lts",
    "multistep",
    "reset",
    "sdt",
    "step",
    "tet",
]


class Sequence(NamedTuple):
    """What `multistep` returns."""

    spikes: Tensor
    """[T, B, *]"""
    membrane: Tensor
    """[B, *], carried to the next step: V[T], or H[T] when the reset is delayed."""
    membranes: Tensor
    """[T, B, *], `membrane` after every step."""


Decide = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From a charged membrane H [B, *]: the spikes, and the membrane that is reset and carried on."""


def decide_plain(dynamics: Dynamics, *, smooth: bool = False) -> Decide:
    """S = 1[H > theta], and H itself is carried."""
    d = dynamics
    return lambda h: (_fire(h - d.threshold, d, smooth), h)


def decide_normalised(
    norm: Callable[[Tensor], Tensor],
    threshold: float | Tensor,
    spike: Callable[[Tensor], Tensor],
    *,
    carry: Literal["raw", "normalised"] = "raw",
) -> Decide:
    """MPBN: S = spike(norm(H) - threshold); carried on is H ("raw", the authors) or norm(H)."""

    def decide(h: Tensor) -> tuple[Tensor, Tensor]:
        normalised = norm(h)
        return spike(normalised - threshold), h if carry == "raw" else normalised

    return decide


def fold_threshold(
    threshold: float | Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    fires_at_equality: bool,
) -> tuple[Tensor, Tensor]:
    """Threshold and sign for which `decide_folded` fires exactly where the normalised membrane would.

    With s = sqrt(var + eps): threshold' = (threshold - bias) * s / weight + mean, and sign that of
    `weight`. weight = 0 is a constant decision: threshold' = -inf (always) or +inf (never), sign +.
    Computed in float64 and rounded once.

    Args:
        threshold: theta, scalar or broadcastable to the statistics.
        mean, var: running statistics, [C] or [C, *].
        weight, bias: affine parameters of the same shape, or None.

    Returns:
        threshold' and sign, in the shape and dtype of `mean`.
    """
    mu, scale = mean.double(), (var.double() + eps).sqrt()
    gamma = torch.ones_like(mu) if weight is None else weight.double()
    beta = torch.zeros_like(mu) if bias is None else bias.double()
    # A membrane of this dtype is compared with the threshold as it is in that dtype.
    compared = torch.promote_types(mean.dtype, torch.float32)
    theta = torch.as_tensor(threshold, dtype=compared, device=mu.device).double().expand_as(mu)
    constant = gamma == 0
    folded = (theta - beta) * scale / torch.where(constant, torch.ones_like(gamma), gamma) + mu
    always = beta >= theta if fires_at_equality else beta > theta
    infinite = torch.where(always, -torch.inf, torch.inf).to(folded.dtype)
    sign = torch.where(gamma < 0, -1.0, 1.0)
    return torch.where(constant, infinite, folded).to(mean.dtype), sign.to(mean.dtype)


def decide_folded(threshold: Tensor, sign: Tensor, *, fires_at_equality: bool) -> Decide:
    """A folded MPBN: S = 1[H > threshold] where sign > 0, 1[H < threshold] where sign < 0.

    Compares instead of subtracting, so that infinite thresholds (constant decisions) are exact. There
    is no gradient: folding is for inference.
    """

    def decide(h: Tensor) -> tuple[Tensor, Tensor]:
        above = h >= threshold if fires_at_equality else h > threshold
        below = h <= threshold if fires_at_equality else h < threshold
        return torch.where(sign > 0, above, below).to(h.dtype), h

    return decide


def step(
    x: Tensor,
    v: Tensor,
    dynamics: Dynamics,
    *,
    pending: Tensor | None = None,
    decide: Decide | None = None,
    smooth: bool = False,
) -> tuple[Tensor, Tensor]:
    """One time step: charge, fire, reset (equations: `Dynamics`).

    Args:
        x: input [B, *].
        v: membrane carried from the step before, broadcastable to `x`.
        dynamics: the neuron.
        pending: with delayed timing, the spikes of the step before, whose reset is still due; None
            for an initial membrane. Ignored with immediate timing.
        decide: how spikes follow from the charged membrane; None: `decide_plain`.
        smooth: see `surrogates.fire`.

    Returns:
        spikes [B, *] and the membrane to carry [B, *].
    """
    d = dynamics
    delayed = d.timing == "delayed" and pending is not None
    if delayed and d.reset == "hard":
        v = reset(v, pending, d)
    h = charge(x, v, d)
    if delayed and d.reset == "soft":
        h = reset(h, pending, d)
    s, carried = (decide or decide_plain(d, smooth=smooth))(h)
    return s, reset(carried, s, d) if d.timing == "immediate" else carried


def charge(x: Tensor, v: Tensor, dynamics: Dynamics) -> Tensor:
    """H = decay * V + gain * x + (1 - decay) * rest, or the same as a `Leak`."""
    d = dynamics
    if d.leak is not None:
        distance = v - d.rest
        lost = x - distance if d.leak.input else distance
        lost = lost / d.leak.value if d.leak.divide else lost * d.leak.value
        return v + lost if d.leak.input else v - lost + x
    h = d.decay * v + d.gain * x
    return h + (1 - d.decay) * d.rest if d.rest else h


def reset(v: Tensor, spikes: Tensor | None, dynamics: Dynamics) -> Tensor:
    """The membrane after a hard, soft or no reset by `spikes` (None: no spikes)."""
    d = dynamics
    if spikes is None or d.reset == "none":
        return v
    s = spikes.detach() if d.detach_reset else spikes
    return v - d.threshold * s if d.reset == "soft" else v * (1 - s) + d.rest * s


def _fire(u: Tensor, d: Dynamics, smooth: bool) -> Tensor:
    return fire(u, d.surrogate, fires_at_equality=d.fires_at_equality, smooth=smooth)


def multistep(
    x: Tensor,
    v0: Tensor | float,
    dynamics: Dynamics,
    *,
    pending: Tensor | None = None,
    decide: Decide | None = None,
    smooth: bool = False,
) -> Sequence:
    """Run a neuron over a whole sequence from the membrane `v0`.

    Args:
        x: input current [T, B, *], T >= 1.
        v0: initial membrane V[0], broadcastable to [B, *] (per neuron, per channel, scalar, ...).
        dynamics: the neuron.
        pending: where `v0` is the `membrane` of an earlier call: the last spikes [B, *] of that call,
            whose delayed reset is still due.
        decide: how spikes follow from the charged membrane; None: `decide_plain`.
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
    s = None if pending is None else pending.to(state_dtype)
    spikes, membranes = [], []
    # unbind, not x[t]: indexing makes the backward quadratic in T.
    for x_t in x.to(state_dtype).unbind(0):
        s, v = step(x_t, v, dynamics, pending=s, decide=decide, smooth=smooth)
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
