"""Surrogates: derivative and primitive agree, the step is exact, gradients are what they claim."""

from __future__ import annotations

import math

import pytest
import torch

from snn_ext import OptionError
from snn_ext.surrogates import (
    ATan,
    FastSigmoid,
    PiecewiseQuadratic,
    Rectangle,
    Sigmoid,
    Surrogate,
    fire,
)

ALL = [
    ATan(),
    ATan(3.0),
    Sigmoid(),
    PiecewiseQuadratic(),
    PiecewiseQuadratic(2.0),
    FastSigmoid(),
    Rectangle(),
    Rectangle(0.5),
]
U = torch.linspace(-2.0317, 2.0171, 401, dtype=torch.float64)  # hits no kink


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_the_derivative_is_that_of_the_primitive(surrogate: Surrogate) -> None:
    u = U.clone().requires_grad_()
    (slope,) = torch.autograd.grad(surrogate.primitive(u).sum(), u)
    torch.testing.assert_close(slope, surrogate.derivative(U), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_the_primitive_is_one_half_at_the_threshold_and_rises(surrogate: Surrogate) -> None:
    assert surrogate.primitive(torch.zeros(1)).item() == 0.5
    assert bool((surrogate.primitive(U).diff() >= 0).all())


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_backward_is_the_derivative(surrogate: Surrogate) -> None:
    u = U.clone().requires_grad_()
    weight = torch.randn_like(U)
    (grad,) = torch.autograd.grad((fire(u, surrogate) * weight).sum(), u)
    assert torch.equal(grad, weight * surrogate.derivative(U))


def test_equality_with_the_threshold_is_decided_as_asked() -> None:
    u = torch.tensor([-1e-30, 0.0, -0.0, 1e-30])
    assert fire(u, ATan()).tolist() == [0, 1, 1, 1]
    assert fire(u, ATan(), fires_at_equality=False).tolist() == [0, 0, 0, 1]


def test_published_constants() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert ATan(2.0).derivative(zero).item() == 1.0
    assert Sigmoid(4.0).derivative(zero).item() == 1.0
    assert PiecewiseQuadratic(1.0).derivative(zero + 0.25).item() == 0.75
    assert FastSigmoid(25.0).derivative(zero + 0.04).item() == 0.25
    assert math.isclose(ATan(2.0).derivative(zero + 0.5).item(), 1 / (1 + (math.pi / 2) ** 2))


def test_spikes_may_be_changed_in_place() -> None:
    u = torch.randn(5, requires_grad=True)
    spikes = fire(u, ATan())
    spikes += 1  # SEW networks do this; a function that saved its output would fail in backward
    spikes.sum().backward()
    assert u.grad is not None


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_widths_must_be_usable(alpha: float) -> None:
    with pytest.raises(OptionError, match=r"do: pass a finite alpha"):
        ATan(alpha)
