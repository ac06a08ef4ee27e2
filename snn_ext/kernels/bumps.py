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

__all__ = ["Bump", "in_place"]


Bump = Callable[[Tensor], Tensor]


def in_place(surrogate: Surrogate, like: Tensor) -> Bump:
    """``surrogate.derivative``, to rounding, for tensors of the kind of `like`, which may be overwritten."""
    known = _KNOWN.get(type(surrogate))
    return surrogate.derivative if known is None else known(surrogate.alpha, like)


def _atan(a: float, like: Tensor) -> Bump:
    """1 / (2/a + 2/a (pi/2 a u)^2)."""
    flat, steep = like.new_full((), 2 / a), math.pi**2 / 2 * a
    return lambda u: torch.addcmul(flat, u, u, value=steep, out=u).reciprocal_()


def _sigmoid(a: float, like: Tensor) -> Bump:
    def bump(u: Tensor) -> Tensor:
        s = u.mul_(a).sigmoid_()
        return s.addcmul_(s, s, value=-1).mul_(a)

    return bump


def _piecewise_quadratic(a: float, like: Tensor) -> Bump:
    return lambda u: u.abs_().mul_(-(a**2)).add_(a).clamp_min_(0)


def _fast_sigmoid(a: float, like: Tensor) -> Bump:
    return lambda u: u.abs_().mul_(a).add_(1).square_().reciprocal_()


def _rectangle(a: float, like: Tensor) -> Bump:
    return lambda u: u.abs_().lt_(0.5 / a).mul_(a)


_KNOWN: dict[type[Surrogate], Callable[[float, Tensor], Bump]] = {
    ATan: _atan,
    Sigmoid: _sigmoid,
    PiecewiseQuadratic: _piecewise_quadratic,
    FastSigmoid: _fast_sigmoid,
    Rectangle: _rectangle,
}
