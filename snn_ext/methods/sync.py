"""Batch statistics over all processes of a distributed run, on any device and backend.

torch's SyncBatchNorm refuses CPU tensors, and converting to it loses what frameworks and methods keep in
their own batch norm classes (time dimensions, TEBN's scale). Here the norms stay what they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SYNC", "is_synchronised", "normalise_synchronised"]

SYNC = "_snn_ext_sync"
"""Attribute of a norm that takes its training statistics over all processes."""


def is_synchronised(norm: nn.Module) -> bool:
    """Whether this norm should, and can, look beyond its own process now."""
    asked = vars(norm).get(SYNC, False)  # getattr would look through all parameters first
    return (
        bool(asked)
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of a sum everybody uses is the sum of everybody's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        distributed.all_reduce(grad)
        return grad


def normalise_synchronised(norm: _BatchNorm, x: Tensor, bias: Tensor | None, momentum: float) -> Tensor:
    """Training-mode batch norm of [B, C, *] with the statistics of the batches of all processes.

    Two reductions (sum, then squared deviations) instead of one with squares: exact where the mean is
    large. The gradient flows through both. Processes may hold batches of different sizes.

    Args:
        norm: statistics to update, affine and eps.
        x: this process's part of the batch.
        bias: beta, or None.
        momentum: of the running statistics, in this very step.
    """
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    local = wide.new_full((1,), x.numel() // x.shape[1])
    total: Tensor = _Sum.apply(torch.cat([wide.sum(dims), local]))
    count = total[-1].detach()
    mean = total[:-1] / count
    centred = wide - mean.view(shape)
    var: Tensor = _Sum.apply(centred.square().sum(dims)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        unbiased = var.detach() * count / (count - 1)
        norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
    y = centred * (var + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        y = y * norm.weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y.to(x.dtype)
