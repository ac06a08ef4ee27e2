"""Surrogate gradients: a Heaviside step forward, a bump psi(u) = dS/dH backward, u = H - theta.

Every surrogate has a *primitive* whose derivative is psi. In smooth mode the primitive replaces the
step, so that the whole neuron becomes differentiable and gradients can be checked numerically.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snn_ext.errors import OptionError

__all__ = [
    "ATan",
    "FastSigmoid",
    "PiecewiseQuadratic",
    "Rectangle",
    "Sigmoid",
    "Surrogate",
    "fire",
]


@dataclass(frozen=True)
class Surrogate:
    """Base of all surrogates: one sharpness `alpha` > 0 (per unit of membrane), larger is narrower."""

    alpha: float

    def __post_init__(self) -> None:
        if not self.alpha > 0 or not math.isfinite(self.alpha):
            raise OptionError(
                f"{type(self).__name__}(alpha={self.alpha!r}) has no usable width.",
                do=f"pass a finite alpha > 0, for example {type(self).__name__}()",
            )

    def derivative(self, u: Tensor) -> Tensor:
        """psi(u), same shape as `u`."""
        raise NotImplementedError

    def primitive(self, u: Tensor) -> Tensor:
        """A smooth function whose derivative is psi; 1/2 at u = 0."""
        raise NotImplementedError


@dataclass(frozen=True)
class ATan(Surrogate):
    """psi = (a/2) / (1 + (pi/2 * a * u)^2); SpikingJelly's and snnTorch's ``ATan(alpha=2)``."""

    alpha: float = 2.0

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())

    def primitive(self, u: Tensor) -> Tensor:
        return (math.pi / 2 * self.alpha * u).atan() / math.pi + 0.5


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """psi = a * s * (1 - s), s = logistic(a * u); SpikingJelly's default ``Sigmoid(alpha=4)``."""

    alpha: float = 4.0

    def derivative(self, u: Tensor) -> Tensor:
        s = (self.alpha * u).sigmoid()
        return self.alpha * s * (1 - s)

    def primitive(self, u: Tensor) -> Tensor:
        return (self.alpha * u).sigmoid()


@dataclass(frozen=True)
class PiecewiseQuadratic(Surrogate):
    """The triangle psi = max(0, a - a^2 * |u|), half-width gamma = 1/a; TET's and TEBN's surrogate."""

    alpha: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * u.abs()).clamp_min(0)

    def primitive(self, u: Tensor) -> Tensor:
        c = (self.alpha * u).clamp(-1, 1)
        return 0.5 + c - 0.5 * c * c.abs()


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """psi = 1 / (1 + a * |u|)^2; snnTorch's ``fast_sigmoid(slope=25)``."""

    alpha: float = 25.0

    def derivative(self, u: Tensor) -> Tensor:
        return (1 + self.alpha * u.abs()).square().reciprocal()

    def primitive(self, u: Tensor) -> Tensor:
        return 0.5 + u / (1 + self.alpha * u.abs())


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """psi = a where |u| < 1/(2a), else 0; SpikingJelly's ``Rect(alpha=1)``."""

    alpha: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return self.alpha * (u.abs() < 0.5 / self.alpha).to(u.dtype)

    def primitive(self, u: Tensor) -> Tensor:
        return (self.alpha * u + 0.5).clamp(0, 1)


class _Step(torch.autograd.Function):
    """Heaviside forward, ``grad * psi(u)`` backward. Saves u, never its output: spikes may be
    changed in place (SEW networks add the shortcut to them)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, surrogate: Surrogate, fires_at_equality: bool) -> Tensor:
        return ((u >= 0) if fires_at_equality else (u > 0)).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate, bool], output: Tensor) -> None:
        u, ctx.surrogate, _ = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(u), None, None


def fire(u: Tensor, surrogate: Surrogate, *, fires_at_equality: bool = True, smooth: bool = False) -> Tensor:
    """Spikes S = 1[u >= 0] (or u > 0), in the shape and dtype of `u`.

    Args:
        u: distance to the threshold, H - theta.
        surrogate: its `derivative` is the gradient.
        fires_at_equality: True for ``>=``, False for ``>``.
        smooth: return the surrogate's primitive instead of the step (for gradient checks only).
    """
    if smooth:
        return surrogate.primitive(u)
    spikes: Tensor = _Step.apply(u, surrogate, fires_at_equality)
    return spikes
