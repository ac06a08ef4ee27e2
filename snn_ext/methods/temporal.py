"""Batch norms with a time axis: BNTT (one norm per step) and TEBN (one norm, a scale per step)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.dynamics.description import Time
from snn_ext.errors import OptionError, TimestepError
from snn_ext.kernels import step_norms
from snn_ext.methods.batch_norms import BatchNorm, check_values, count, described, is_silent, normalise
from snn_ext.methods.paths import located
from snn_ext.methods.sync import is_synchronised

__all__ = [
    "BatchNormThroughTime",
    "Slot",
    "TemporalEffectiveBatchNorm",
    "at_step",
    "check_exact",
    "joint_per_call",
    "scaled",
    "through_time",
    "without_bias",
]


def at_step(t: int, made_for: int, norm: nn.Module) -> None:
    """Refuse a step that a norm has no statistics for.

    Raises:
        TimestepError: t (0-based) is not below the number of steps the norm was made for.
    """
    if t >= made_for:
        raise TimestepError(
            f"step {t + 1} of a sequence, but its norm was made for {made_for} steps.",
            where=located(norm),
            why="the sequence is longer, or the reset between two sequences is missing",
            do="call snn_ext.reset(model) before every sequence, or patch with timesteps=<longest>",
        )


class Slot(NamedTuple):
    """The batch norm of one step, and the bias it adds there."""

    norm: _BatchNorm
    bias: Tensor | None
    is_called: bool = True
    """As a module, with its hooks. Otherwise it is the one being called now."""

    @classmethod
    def of(cls, norm: nn.Module) -> Slot:
        """A norm of its own."""
        return cls(norm, norm.bias)  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        """One step [B, C, *]."""
        return self.norm(x) if self.is_called else normalise(self.norm, x, self.bias)

    @property
    def is_plain(self) -> bool:
        """Whether nobody would notice that torch's operation takes its place."""
        return not is_synchronised(self.norm) and (not self.is_called or is_silent(self.norm))


def through_time(x: Tensor, slots: Sequence[Slot], whole: nn.Module) -> Tensor:
    """BNTT: y[t] = norm_t(x[t]) over [T, B, C, *], T at most the number of slots; `whole` is what they are
    the parts of.

    In one function where that gives the same numbers: a loop writes every result and every gradient twice
    (half as fast as a plain batch norm; benchmarks/norms.py).
    """
    at_step(len(x) - 1, len(slots), whole)
    slots = slots[: len(x)]
    norms = [described(slot.norm, slot.bias) for slot in slots]
    if not (all(slot.is_plain for slot in slots) and step_norms.fits(x, norms)):
        return torch.stack([slot(x_t) for slot, x_t in zip(slots, x.unbind(0), strict=True)])
    check_values(slots[0].norm, x[0])
    return step_norms.run(x, norms, [count(slot.norm) for slot in slots])


def scaled(y: Tensor, scale: Tensor) -> Tensor:
    """TEBN: scale[t] * y[t] over [T, B, C, *]."""
    scale = scale if len(scale) == len(y) else scale[: len(y)]  # a slice has a gradient of its own
    return y * scale.view(-1, *[1] * (y.ndim - 1)).to(y.dtype)


def check_exact(steps: int, made_for: int, norm: nn.Module, *, training: bool) -> None:
    """TEBN's joint statistics are those of whole sequences.

    Raises:
        TimestepError: more steps than made for, or fewer in training (one step included: a sequence
            of length 1 would otherwise be broadcast against the whole scale).
    """
    at_step(steps - 1, made_for, norm)
    if training and steps != made_for:
        raise TimestepError(
            f"a norm was made for {made_for} steps and is trained with {steps}.",
            where=located(norm),
            why="its statistics are taken over all steps together",
            do=f"train with sequences of {made_for} steps, or patch with timesteps={steps}",
        )


class _OverTime(nn.Module):
    """A norm that is given whole sequences, or steps that it counts until `reset`."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        if time is Time.MERGED:
            raise OptionError(
                "a norm over time cannot see time that is merged into the batch.",
                do="use Time.LEADING with [T, B, C, *], or Time.PER_CALL with [B, C, *]",
            )
        self.time, self.t = time, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.time is Time.LEADING:
            return self.sequence(x)
        y = self.step(self.t, x)
        self.t += 1
        return y

    def sequence(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def step(self, t: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def reset(self) -> None:
        """Begin a new sequence (per-call use)."""
        self.t = 0


class BatchNormThroughTime(_OverTime):
    """BNTT: an independent batch norm per time step, without a bias by default.

    y[t] = gamma_t * (x[t] - mu_t) / sqrt(var_t + eps), statistics over batch and space of step t.

    Args:
        timesteps: T, the longest sequence. Shorter ones are fine (early exit).
        num_features: C.
        bias: add beta_t; the authors do not.
        eps, momentum: of every step's norm; eps is 1e-4 in the authors' code.
        time: ``LEADING`` for [T, B, C, *], ``PER_CALL`` for one step [B, C, *] a call.

    Raises:
        TimestepError: a step beyond T; in per-call use usually a missing `reset`.

    Source: Kim and Panda, Frontiers in Neuroscience 2021, and its published code.
    """

    def __init__(
        self,
        timesteps: int,
        num_features: int,
        *,
        bias: bool = False,
        eps: float = 1e-4,
        momentum: float = 0.1,
        time: Time = Time.LEADING,
    ) -> None:
        super().__init__(time)
        self.slots = nn.ModuleList(
            without_bias(BatchNorm(num_features, eps, momentum), bias) for _ in range(timesteps)
        )

    def sequence(self, x: Tensor) -> Tensor:
        """A whole sequence [T, B, C, *]."""
        return through_time(x, [Slot.of(norm) for norm in self.slots], self)

    def step(self, t: int, x: Tensor) -> Tensor:
        """One step [B, C, *] by its 0-based number."""
        at_step(t, len(self.slots), self)
        return self.slots[t](x)  # type: ignore[no-any-return]


class TemporalEffectiveBatchNorm(_OverTime):
    """TEBN: one batch norm over all steps together, and a learnable scale per step.

    y[t] = p[t] * (gamma * (x[t] - mu) / sqrt(var + eps) + beta), statistics jointly over time, batch and
    space; p starts at 1 and scales beta too.

    Args:
        timesteps: T. Training (of `bn`: it may be frozen alone) needs exactly T steps, inference at most.
        num_features: C.
        stats: ``"joint"`` (the authors) or ``"step"``: every step normalised by its own statistics,
            another method, possible one call at a time.
        eps, momentum, affine: of the batch norm.
        time: ``LEADING`` for [T, B, C, *], ``PER_CALL`` for one step [B, C, *] a call.

    Raises:
        TimestepError: another number of steps; per-call training with joint statistics.

    Source: Duan et al., NeurIPS 2022, and its published code.
    """

    def __init__(
        self,
        timesteps: int,
        num_features: int,
        *,
        stats: Literal["joint", "step"] = "joint",
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        time: Time = Time.LEADING,
    ) -> None:
        super().__init__(time)
        self.stats = stats
        self.bn = BatchNorm(num_features, eps, momentum, affine)
        self.scale = nn.Parameter(torch.ones(timesteps))

    def sequence(self, x: Tensor) -> Tensor:
        """A whole sequence [T, B, C, *]."""
        if self.stats == "step":
            return scaled(through_time(x, [Slot.of(self.bn)] * len(self.scale), self), self.scale)
        check_exact(len(x), len(self.scale), self, training=self.bn.training)
        return scaled(self.bn(x.flatten(0, 1)).view(x.shape), self.scale)

    def step(self, t: int, x: Tensor) -> Tensor:
        """One step [B, C, *] by its 0-based number."""
        at_step(t, len(self.scale), self)
        if self.bn.training and self.stats == "joint":
            raise joint_per_call(self)
        return self.bn(x) * self.scale[t].to(x.dtype)  # type: ignore[no-any-return]


def joint_per_call(norm: nn.Module) -> TimestepError:
    """The error for TEBN trained one step at a time."""
    return TimestepError(
        "TEBN's joint statistics cannot be taken one step at a time.",
        where=located(norm),
        why="the first step would need the statistics of the last",
        do="pass whole sequences [T, B, ...], or patch with TEBN(stats='step')",
    )


def without_bias(norm: BatchNorm, keep: bool) -> BatchNorm:
    """A batch norm whose bias is removed unless `keep`."""
    if not keep:
        norm.register_parameter("bias", None)
    return norm
