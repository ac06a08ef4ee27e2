"""Gradients in float64: against numbers in smooth mode, and against the float64 reference; and twice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics, Leak, OptionError
from snn_ext.kernels import fused, host_backend, ops
from snn_ext.kernels.arguments import Call
from snn_ext.surrogates import ATan, FastSigmoid, PiecewiseQuadratic, Rectangle, Sigmoid
from tests.kernels import harness

SURROGATES = [ATan(), Sigmoid(), FastSigmoid(3.0), PiecewiseQuadratic(0.3), Rectangle(0.3)]


def double(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return (torch.rand(shape, dtype=torch.float64) * (high - low) + low).requires_grad_()


@pytest.mark.parametrize("unrolled", [None, 0], ids=["h kept", "h again"])
@pytest.mark.parametrize("timing", ["immediate", "delayed"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_gradcheck_in_smooth_mode(reset: str, timing: str, unrolled: int | None) -> None:
    """Every gradient there is, numerically; charges and surrogates take turns."""
    number = ["hard", "soft", "none"].index(reset) + 3 * (timing == "delayed") + (unrolled is None)
    form = [None, (True, True), (True, False), (False, True), (False, False)][number % 5]
    surrogate = SURROGATES[number % 5]
    x, v, v0 = double(4, 2, 3), double(2, 3), double(3)
    decay, threshold = double(3, low=0.4, high=0.9), double(low=0.4, high=0.9)
    scale, shift = double(4, 3), double(3)

    def run(*tensors: Tensor) -> Tensor:
        x, v, v0, decay, threshold, scale, shift = tensors
        leak = form and Leak(1 / decay if form[0] else decay, divide=form[0], input=form[1])
        d = Dynamics(
            decay=decay,
            leak=leak,
            threshold=threshold,
            rest=0.2,
            reset=reset,  # type: ignore[arg-type]
            timing=timing,  # type: ignore[arg-type]
            surrogate=surrogate,
        )
        call = Call(x, d, v=v, v0=v0, scale=scale, shift=shift, store=True)
        result = fused.run(call, harness.HOST, unrolled=unrolled, smooth=True)
        return torch.cat([t.flatten() for t in result if t is not None])

    assert torch.autograd.gradcheck(run, (x, v, v0, decay, threshold, scale, shift))


def test_gradcheck_fails_where_the_backward_is_wrong() -> None:
    """The twin: with detached resets the derivative is not that of the function, and gradcheck says so."""
    d = Dynamics(decay=0.8, detach_reset=True)

    def run(x: Tensor) -> Tensor:
        return fused.run(Call(x, d), harness.HOST, smooth=True).spikes

    assert not torch.autograd.gradcheck(run, (double(4, 2, 3),), raise_exception=False)


FORMS: list[dict[str, Any]] = [
    {"decay": 0.9},
    {"leak": Leak(3.0)},
    {"leak": Leak(3.0, input=False)},
    {"leak": Leak(0.3, divide=False)},
    {"leak": Leak(0.3, divide=False, input=False)},
]


def test_float64_is_as_exact_as_the_reference() -> None:
    resets = itertools.product(["hard", "soft", "none"], ["immediate", "delayed"])
    calls = []
    for i, (reset, timing) in enumerate(resets):
        for j, form in enumerate(FORMS):
            d = Dynamics(**form, reset=reset, timing=timing, surrogate=SURROGATES[(i + j) % 5], rest=0.1)  # type: ignore[arg-type]
            calls.append(Call(double(5, 2, 7, low=-2, high=3), d, v0=double(7), store=True))
    calls = calls[::3] + [replace(c, dynamics=replace(c.dynamics, detach_reset=True)) for c in calls[:2]]
    ways = {"host": lambda c: fused.run(c, harness.HOST)}
    harness.HOST.prepare(fused.prepare(c, harness.HOST)[0].kernel for c in calls)
    for call in calls:
        harness.check(call, ways)


@pytest.mark.parametrize("way", ["function", "operator"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_derivative_is_an_error_not_a_zero(way: str, dtype: torch.dtype) -> None:
    """Whether x is kept for the backward (bfloat16) or not (float32)."""
    run = fused.run if way == "function" else ops.run
    x = torch.randn(3, 2, 4, dtype=dtype, requires_grad=True)
    unrolled = host_backend.recompute(Call(x, Dynamics()))
    spikes = run(Call(x, Dynamics()), host_backend.HOST, unrolled=unrolled).spikes
    (grad,) = torch.autograd.grad(spikes.square().sum(), x, create_graph=True)
    with pytest.raises(OptionError, match="reference"):
        grad.square().sum().backward()


def test_a_graph_of_gradients_that_nobody_differentiates_is_fine() -> None:
    x = torch.randn(3, 2, 4, requires_grad=True)
    spikes = host_backend.run(Call(x, Dynamics())).spikes
    (grad,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    assert grad.isfinite().all()
