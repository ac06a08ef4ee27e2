"""MPBN in training: a batch norm on the membrane of every step, and one backward pass through all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from snn_ext.errors import OptionError, ShapeMismatchError
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.parts import Inputs, Part, Rule
from snn_ext.kernels.torch_backend import gather, refuse_double, room_for_result
from snn_ext.kernels.torch_gradients import Into, Outer, Room, backward, needs_input

__all__ = ["MembraneNorm", "run"]


@dataclass(frozen=True)
class MembraneNorm:
    """What `run` has to know of a batch norm over membranes [B, C, *].

    Args:
        running_mean, running_var: None where there are none; else updated at every step (`batch`), or
            normalised with. As weight and bias [C], or [C * ...] for ``per="element"``.
        weight, bias: of the affine, or None.
        eps: of the norm.
        factors: the share that each of the steps has in the updated statistics: the momentum, or for a
            cumulative average 1 / (number of batches so far, this one included). The caller counts them.
        batch: normalise by the statistics of the batch.
        carry: what is carried on, H ("raw") or the normalised membrane.
        per: what has statistics of its own.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    factors: Sequence[float]
    batch: bool
    carry: Literal["raw", "normalised"] = "raw"
    per: Literal["channel", "element"] = "channel"


def run(call: Call, norm: MembraneNorm, *, pending: Tensor | None = None, smooth: bool = False) -> Result:
    """Run a neuron that decides on its normalised membrane over a whole sequence [T, B, C, *].

    Equal to `functional.multistep` with `functional.decide_normalised`, statistics included.

    Args:
        call: what to run, without folded thresholds. Its `resume` is not read.
        norm: the norm.
        pending: with delayed timing, the spikes [B, C, *] of the step before the first, if their reset is
            due. (They cannot be decided anew from `call.v`: the norm would count another step.)
        smooth: see `torch_backend.run`.

    Raises:
        OptionError: no statistics, or over one value; in the backward pass, if it is to be differentiated
            again.
        ShapeMismatchError: the norm has another size.
    """
    _check(call.x, norm)
    weight, bias = (None if p is None else p.to(call.state_dtype) for p in (norm.weight, norm.bias))
    inputs, rule = gather(call, pending), Rule(call.dynamics, None, smooth)
    tensors = (weight, bias, *inputs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return Result(*_Normalised.apply(rule, call.store, norm, *tensors))
    with torch.no_grad():
        normalise = _Forward(norm, weight, bias, inputs.start.dtype, keep=False)
        result = room_for_result(inputs, store=call.store)
        return _run(Part(rule, inputs, ()), None, normalise, result)


def _check(x: Tensor, norm: MembraneNorm) -> None:
    """torch's own batch norm would check; the operation behind it reads out of bounds instead."""
    count = x.shape[2] if norm.per == "channel" else math.prod(x.shape[2:])
    for name in ("running_mean", "running_var", "weight", "bias"):
        given = getattr(norm, name)
        if given is not None and given.shape != (count,):
            raise ShapeMismatchError(
                f"{name} of shape {list(given.shape)} for {count} {norm.per}s of an input {list(x.shape)}.",
                do=f"pass one value per {norm.per}, [{count}]",
            )
    if not norm.batch and (norm.running_mean is None or norm.running_var is None):
        raise OptionError(
            "a norm without running statistics has only those of the batch.", do="pass batch=True"
        )
    if norm.batch and x[0].numel() <= count:
        raise OptionError(
            f"batch norm cannot take statistics over one value per {norm.per}: {list(x.shape)}.",
            do="train with more than one sample, or call .eval()",
        )


def _run(part: Part, charged: Tensor | None, normalise: _Forward, out: Result) -> Result:
    room = part.spare() if charged is None else charged.unbind(0)
    membranes = None if out.membranes is None else out.membranes.unbind(0)
    part.run(room, out.spikes.unbind(0), out.membrane, membranes, normalise)
    return out


def _flat(norm: MembraneNorm, h: Tensor) -> Tensor:
    """[B, C, *], or [B, C * ...] where every element has statistics of its own."""
    return h if norm.per == "channel" else h.flatten(1)


class _Forward:
    """The norm step by step.

    Attributes:
        outputs: of every step.
        statistics: mean and 1 / deviation of every step, one after the other.
    """

    def __init__(
        self,
        norm: MembraneNorm,
        weight: Tensor | None,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        keep: bool,
    ) -> None:
        self.norm, self.weight, self.bias, self.keep = norm, weight, bias, keep
        self.running = tuple(r if r is None else r.to(dtype) for r in (norm.running_mean, norm.running_var))
        self.outputs: list[Tensor] = []
        self.statistics: list[Tensor] = []

    def __call__(self, t: int, h: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.norm
        mean, var = self.running
        y, *used = torch.native_batch_norm(
            _flat(norm, h), self.weight, self.bias, mean, var, norm.batch, norm.factors[t], norm.eps
        )
        if norm.batch:
            self._round()
        if norm.per == "element":
            y = y.view(h.shape)
        if self.keep:
            self.outputs.append(y)
            self.statistics += used
        return y, h if norm.carry == "raw" else y

    def _round(self) -> None:
        """What running statistics in half precision make of an update."""
        for own, wide in zip((self.norm.running_mean, self.norm.running_var), self.running, strict=True):
            if own is not None and wide is not None and own is not wide:
                wide.copy_(own.copy_(wide))


class _Backward:
    """Back through the norm of any step; adds up the gradients of the affine."""

    def __init__(
        self,
        norm: MembraneNorm,
        charged: Sequence[Tensor],
        saved: Sequence[Tensor | None],
        statistics: Sequence[Tensor],
        wanted: Sequence[bool],
    ) -> None:
        self.norm, self.charged, self.saved, self.statistics = norm, charged, saved, statistics
        self.wanted = list(wanted)
        count = charged[0][0].numel() if norm.per == "element" else charged[0].shape[1]
        self.affine = [charged[0].new_zeros(count) if want else None for want in wanted]

    def __call__(self, t: int, decided: Tensor, kept: Tensor | None) -> Tensor:
        norm, h = self.norm, self.charged[t]
        weight, mean, var = self.saved
        raw = norm.carry == "raw"
        grad = decided if raw or kept is None else decided + kept
        used = self.statistics[2 * t : 2 * t + 2]
        g, *affine = torch.ops.aten.native_batch_norm_backward(
            _flat(norm, grad),
            _flat(norm, h),
            weight,
            mean,
            var,
            *used,
            norm.batch,
            norm.eps,
            [True, *self.wanted],
        )
        for total, new in zip(self.affine, affine, strict=True):
            if total is not None:
                total += new
        later: Tensor = g if norm.per == "channel" else g.view(h.shape)
        return later.add_(kept) if raw and kept is not None else later


class _Normalised(torch.autograd.Function):
    """Keeps the charged and the normalised membranes, and the input where the backward pass needs it."""

    @staticmethod
    def forward(
        ctx: Any,
        rule: Rule,
        store: bool,
        norm: MembraneNorm,
        weight: Tensor | None,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> Result:
        inputs = Inputs(*tensors)  # type: ignore[arg-type]
        ctx.rule, ctx.norm, ctx.dtype, ctx.steps = rule, norm, inputs.x.dtype, len(inputs.x)
        ctx.wanted, ctx.affine = Inputs(*ctx.needs_input_grad[5:]), ctx.needs_input_grad[3:5]
        norms = _Forward(norm, weight, bias, inputs.start.dtype, keep=True)
        charged = torch.empty_like(inputs.x, dtype=inputs.start.dtype)
        result = _run(Part(rule, inputs, ()), charged, norms, room_for_result(inputs, store=store))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            charged,
            inputs.x if needs_input(rule, ctx.wanted) else None,
            *inputs[1:],
            weight,
            *((None, None) if norm.batch else norms.running),
            *norms.outputs,
            *norms.statistics,
        )
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double()
        charged, x, *saved = ctx.saved_tensors
        others = len(Inputs._fields) - 1
        inputs = Inputs(charged if x is None else x, *saved[:others])
        outputs = saved[others + 3 :][: ctx.steps]
        hs = charged.unbind(0)
        norms = _Backward(
            ctx.norm, hs, saved[others : others + 3], saved[others + 3 + ctx.steps :], ctx.affine
        )
        room = Room.of(inputs, ctx.wanted, ctx.dtype)
        kept = hs if ctx.norm.carry == "raw" else outputs
        part, into = Part(ctx.rule, inputs, ()), Into.of(room, (), ctx.steps)
        backward(part, outputs, kept, Outer.of(outer, ()), into, norms)
        return None, None, None, *norms.affine, *room.gradients(ctx.rule, inputs)
