"""Derivatives of the spike that the frameworks do not have, as the authors define them; u = H - threshold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _TanhSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        slope = 3 * (1 - torch.tanh(3 * u) ** 2) / (2 * math.tanh(1.5))
        return grad * torch.where(u.abs() <= 0.5, slope, 0)


class Tanh(nn.Module):
    """MPBN's: the derivative of tanh(3u) / (2 tanh 1.5) for abs(u) <= 1/2, 0 elsewhere. Fires at u >= 0."""

    def forward(self, u: Tensor) -> Tensor:
        spikes: Tensor = _TanhSpike.apply(u)
        return spikes


class _TriangleSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * 0.3 * (1 - u.abs()).clamp(min=0)


def flat_triangle(u: Tensor) -> Tensor:
    """BNTT's: 0.3 * max(0, 1 - abs(u)). Fires at u > 0."""
    spikes: Tensor = _TriangleSpike.apply(u)
    return spikes
