"""Batch norms over [B, C, *] of any rank: what torch computes, with a bias of choice, over processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.errors import OptionError
from snn_ext.kernels.step_norms import StepNorm
from snn_ext.methods.paths import located
from snn_ext.methods.sync import is_synchronised, normalise_synchronised

__all__ = ["BatchNorm", "SynchronisedNorm", "normalise"]


def normalise(norm: _BatchNorm, x: Tensor, bias: Tensor | None) -> Tensor:
    """What torch's batch norm computes over [B, C, *] of any rank, with the `bias` given here.

    A framework's subclass may expect a time dimension, and BNTT leaves the bias out; the statistics,
    momentum and modes are those of `norm`.

    Raises:
        OptionError: training on one value per channel, which has no variance.
    """
    check_values(norm, x)
    momentum = count(norm)
    if norm.training and is_synchronised(norm):
        return normalise_synchronised(norm, x, bias, momentum)
    mean, var, weight, _, eps, batch = step = described(norm, bias)
    if x.dtype is torch.float32 and norm.running_mean is not None and norm.running_mean.dtype != x.dtype:
        # a float32 membrane in a model that was cast to half: torch takes only the opposite mixture
        return _normalise_cast(x, step, momentum)
    return F.batch_norm(x, mean, var, weight, bias, batch, momentum, eps)


def described(norm: _BatchNorm, bias: Tensor | None) -> StepNorm:
    """What torch's operation is given for a norm in its present mode, with this `bias`."""
    keep = not norm.training or norm.track_running_stats
    return StepNorm(
        norm.running_mean if keep else None,
        norm.running_var if keep else None,
        norm.weight,
        bias,
        norm.eps,
        norm.training or norm.running_mean is None,
    )


def is_silent(module: nn.Module) -> bool:
    """Whether nobody would notice that this module is not called."""
    forward = module._forward_pre_hooks or module._forward_hooks
    return not (forward or module._backward_pre_hooks or module._backward_hooks)


def check_values(norm: _BatchNorm, x: Tensor) -> None:
    """Raises OptionError: statistics would be taken over one value per channel of [B, C, *]."""
    alone = (norm.training or norm.running_mean is None) and not is_synchronised(norm)
    if x.ndim < 2 or (alone and x.numel() <= x.shape[1]):
        raise OptionError(
            f"batch norm cannot take statistics over one value per channel: {list(x.shape)}.",
            where=located(norm),
            do="train with more than one sample, or call .eval()",
        )


def count(norm: _BatchNorm) -> float:
    """Count a batch in training; the share it has in the running statistics."""
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average
            return 1.0 / float(norm.num_batches_tracked)
    return norm.momentum or 0.0


def _normalise_cast(x: Tensor, step: StepNorm, momentum: float) -> Tensor:
    wide = [None if t is None else t.to(x.dtype) for t in step[:4]]
    mean, var, weight, bias = wide
    y = F.batch_norm(x, mean, var, weight, bias, step.batch, momentum, step.eps)
    for kept, updated in zip(step[:2], wide, strict=False):
        if kept is not None and updated is not None and step.batch:
            kept.copy_(updated)
    return y


class BatchNorm(_BatchNorm):
    """A torch batch norm over [B, C, *] of any rank."""

    def forward(self, input: Tensor) -> Tensor:
        return normalise(self, input, self.bias)


class SynchronisedNorm(nn.Module):
    """Mixin: a batch norm that no method was put into, with statistics over all processes."""

    _ext_leading = False  # [T, B, C, *] instead of [B, C, *]

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1) if self._ext_leading else x
        return normalise(self, flat, self.bias).view(x.shape)  # type: ignore[arg-type]
