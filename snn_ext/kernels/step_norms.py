"""Batch norms of single steps over whole sequences: one function instead of T results to stack.

The loop writes every output and every gradient twice; here each step's norm writes where it belongs. The
operation is torch's own batch norm, so that results and gradients are equal to the loop's to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_ext.kernels.eager import takes

__all__ = ["StepNorm", "fits", "run"]

_BACKWARD = torch.ops.aten.native_batch_norm_backward


@dataclass(frozen=True)
class StepNorm:
    """What `run` has to know of the batch norm of one step; torch's operation checks none of it.

    Args:
        running_mean, running_var: [C], updated in place (`batch`) or normalised with; or None.
        weight, bias: [C] of the affine, or None.
        eps: of the norm.
        momentum: the share of this batch in the running statistics.
        batch: normalise by the statistics of the batch.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    momentum: float
    batch: bool


def fits(x: Tensor) -> bool:
    """Whether the sequence x [T, B, C, *] is one for `run`; on a GPU torch's own norm is cuDNN's."""
    return x.device.type == "cpu" and x.dtype is torch.float32 and x.is_contiguous() and takes(x)


def run(x: Tensor, norms: Sequence[StepNorm]) -> Tensor:
    """Normalise every step: y[t] = norm_t(x[t]), over batch and space.

    Args:
        x: [T, B, C, *], one that `fits`.
        norms: of the T steps, in x's dtype, all with statistics of the batch or all without.

    Returns:
        y [T, B, C, *].
    """
    affine = [n.weight for n in norms] + [n.bias for n in norms]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *affine)):
        return _StepNorms.apply(x, norms, *affine)  # type: ignore[no-any-return]
    return _forward(x, norms)[0]


def _forward(x: Tensor, norms: Sequence[StepNorm]) -> tuple[Tensor, list[Tensor]]:
    """Outputs; then means and 1 / deviations of all steps."""
    y = torch.empty_like(x)
    size = x.shape[2] if norms[0].batch else 0
    statistics = [x.new_empty(size) for _ in range(2 * len(norms))]
    for t, (norm, x_t, y_t) in enumerate(zip(norms, x.unbind(0), y.unbind(0), strict=True)):
        torch.ops.aten.native_batch_norm.out(
            x_t,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.batch,
            norm.momentum,
            norm.eps,
            out=y_t,
            save_mean=statistics[2 * t],
            save_invstd=statistics[2 * t + 1],
        )
    return y, statistics


class _StepNorms(torch.autograd.Function):
    """Keeps x, as T batch norms would. Can be differentiated again, as they can."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norms: Sequence[StepNorm], *affine: Tensor | None) -> Tensor:
        y, statistics = _forward(x.detach(), norms)
        running = [] if norms[0].batch else [s for n in norms for s in (n.running_mean, n.running_var)]
        ctx.batch, ctx.eps = norms[0].batch, [n.eps for n in norms]
        ctx.save_for_backward(x, *affine[: len(norms)], *statistics, *running)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *saved = ctx.saved_tensors
        steps = len(x)
        weights, saved = saved[:steps], saved[steps:]
        pairs = [saved[2 * t : 2 * t + 2] for t in range(len(saved) // 2)]
        wanted = ctx.needs_input_grad
        results = []
        again = torch.is_grad_enabled()
        grad_x = None if again or not wanted[0] else torch.empty_like(x)
        for t, (grad_t, x_t) in enumerate(zip(grad.unbind(0), x.unbind(0), strict=True)):
            mask = [wanted[0], wanted[2 + t], wanted[2 + steps + t]]
            running = (None, None) if ctx.batch else pairs[steps + t]
            result = _BACKWARD(grad_t, x_t, weights[t], *running, *pairs[t], ctx.batch, ctx.eps[t], mask)
            if grad_x is not None:
                grad_x[t] = result[0]
                result = (None, *result[1:])
            results.append(result)
        if again and wanted[0]:
            grad_x = torch.stack([r[0] for r in results])
        return grad_x, None, *(r[1] for r in results), *(r[2] for r in results)
