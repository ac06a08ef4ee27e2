"""Batch norms of single steps over whole sequences: one function instead of T results to stack.

The loop writes every output twice and records T operations; here each step's norm writes where it belongs.
The operation is torch's own batch norm: results and gradients are equal to the loop's to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_ext.kernels.eager import takes

__all__ = ["StepNorm", "fits", "run"]

_FORWARD = torch.ops.aten.native_batch_norm.out
_BACKWARD = torch.ops.aten.native_batch_norm_backward.default


class StepNorm(NamedTuple):
    """What `run` has to know of the batch norm of one step.

    Args:
        running_mean, running_var: [C], updated in place (`batch`) or normalised with; or None.
        weight, bias: [C] of the affine, or None.
        eps: of the norm.
        batch: normalise by the statistics of the batch.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    batch: bool

    def fits(self, x: Tensor) -> bool:
        """Whether torch's operation takes these tensors as they are; it checks none of them itself."""
        return all(t is None or (t.dtype is x.dtype and t.numel() == x.shape[2]) for t in self[:4])


def fits(x: Tensor, norms: Sequence[StepNorm]) -> bool:
    """Whether a sequence x [T, B, C, *] and its norms are for `run`; on a GPU torch's own norm is cuDNN's."""
    plain = x.device.type == "cpu" and x.dtype is torch.float32 and x.is_contiguous() and takes(x)
    return plain and len({norm.batch for norm in norms}) == 1 and all(norm.fits(x) for norm in norms)


def run(x: Tensor, norms: Sequence[StepNorm], momenta: Sequence[float]) -> Tensor:
    """Normalise every step: y[t] = norm_t(x[t]), over batch and space.

    Args:
        x: [T, B, C, *].
        norms: of the T steps, all of which `fits` says yes to.
        momenta: the share of each step in its running statistics.

    Returns:
        y [T, B, C, *].
    """
    affine = [n.weight for n in norms] + [n.bias for n in norms]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *affine)):
        return _StepNorms.apply(x, norms, momenta, *affine)  # type: ignore[no-any-return]
    return _forward(x, norms, momenta)[0]


def _forward(x: Tensor, norms: Sequence[StepNorm], momenta: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Outputs, and statistics [2T, C]: mean and 1 / deviation of every step, one after the other."""
    y = torch.empty_like(x)
    statistics = x.new_empty(2 * len(norms), x.shape[2] if norms[0].batch else 0)
    rows = statistics.unbind(0)
    for t, (norm, x_t, y_t) in enumerate(zip(norms, x.unbind(0), y.unbind(0), strict=True)):
        mean, var, weight, bias, eps, batch = norm
        into = {"out": y_t, "save_mean": rows[2 * t], "save_invstd": rows[2 * t + 1]}
        _FORWARD(x_t, weight, bias, mean, var, batch, momenta[t], eps, **into)
    return y, statistics


class _StepNorms(torch.autograd.Function):
    """Keeps x, as T batch norms would. Can be differentiated again, as they can."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norms: Sequence[StepNorm], momenta: Sequence[float], *affine: Tensor | None
    ) -> Tensor:
        y, statistics = _forward(x.detach(), norms, momenta)
        batch = norms[0].batch
        running = [] if batch else [s for n in norms for s in (n.running_mean, n.running_var)]
        ctx.batch, ctx.eps = batch, [n.eps for n in norms]
        ctx.save_for_backward(x, statistics, *affine[: len(norms)], *running)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, statistics, *saved = ctx.saved_tensors
        steps, rows = len(x), statistics.unbind(0)
        wanted = ctx.needs_input_grad
        results = []
        for t, (grad_t, x_t) in enumerate(zip(grad.unbind(0), x.unbind(0), strict=True)):
            running = (None, None) if ctx.batch else saved[steps + 2 * t : steps + 2 * t + 2]
            used, mask = rows[2 * t : 2 * t + 2], [wanted[0], wanted[3 + t], wanted[3 + steps + t]]
            results.append(_BACKWARD(grad_t, x_t, saved[t], *running, *used, ctx.batch, ctx.eps[t], mask))
        of_x, of_weight, of_bias = zip(*results, strict=True)
        return torch.stack(of_x) if wanted[0] else None, None, None, *of_weight, *of_bias
