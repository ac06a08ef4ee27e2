"""Derivatives of the surrogates in place: the same bumps in fewer operations, and without new memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from snn_ext.dynamics.surrogates import (
    ATan,
    FastSigmoid,
    PiecewiseQuadratic,
    Rectangle,
    Sigmoid,
    Surrogate,
)

__all__ = ["derivative_"]


def derivative_(surrogate: Surrogate, u: Tensor) -> Tensor:
    """``surrogate.derivative(u)``, to rounding; `u` may be overwritten."""
    known = _KNOWN.get(type(surrogate))
    return surrogate.derivative(u) if known is None else known(surrogate.alpha, u)


def _atan(a: float, u: Tensor) -> Tensor:
    """1 / (2/a + 2/a (pi/2 a u)^2)."""
    return torch.addcmul(u.new_full((), 2 / a), u, u, value=math.pi**2 / 2 * a, out=u).reciprocal_()


def _sigmoid(a: float, u: Tensor) -> Tensor:
    s = u.mul_(a).sigmoid_()
    return s.addcmul_(s, s, value=-1).mul_(a)


def _piecewise_quadratic(a: float, u: Tensor) -> Tensor:
    return u.abs_().mul_(-(a**2)).add_(a).clamp_min_(0)


def _fast_sigmoid(a: float, u: Tensor) -> Tensor:
    return u.abs_().mul_(a).add_(1).square_().reciprocal_()


def _rectangle(a: float, u: Tensor) -> Tensor:
    return u.abs_().lt_(0.5 / a).mul_(a)


_KNOWN: dict[type[Surrogate], Callable[[float, Tensor], Tensor]] = {
    ATan: _atan,
    Sigmoid: _sigmoid,
    PiecewiseQuadratic: _piecewise_quadratic,
    FastSigmoid: _fast_sigmoid,
    Rectangle: _rectangle,
}
