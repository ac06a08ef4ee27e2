"""float16 and bfloat16 in and out, bit by bit, through a neuron that only adds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics
from snn_ext.kernels import fused
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.launches import Launcher
from snn_ext.surrogates import PiecewiseQuadratic
from tests.kernels import harness

ADD = Dynamics(reset="none", surrogate=PiecewiseQuadratic())
HALVES = [torch.float16, torch.bfloat16]
BUILDS = [harness.HOST, harness.SINGLE]


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, but for the payload of what is not a number."""
    return torch.equal(a.nan_to_num(1.5), b.nan_to_num(1.5)) and torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_exactly(dtype: torch.dtype, build: Launcher) -> None:
    reads(dtype, build)


def reads(dtype: torch.dtype, build: Launcher) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, -1)
    result = fused.run(Call(x, ADD), build)
    assert same(result.membrane[0], x[0, 0].float())


def awkward(dtype: torch.dtype) -> Tensor:
    """Every finite half, what lies between neighbours, and the floats beside both."""
    every = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    finite = every[every.isfinite()]
    between = (finite[1:].double() + finite[:-1].double()).div(2).float()
    points = torch.cat([finite, between])
    beside = [torch.nextafter(points, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    special = torch.tensor([torch.inf, torch.nan, 65519.99, 65520.0, 3.4e38, 1e-45])
    points = torch.cat([points, *beside, special, torch.rand(1000) * 1e-6])
    return torch.cat([points, -points])


@pytest.mark.parametrize("build", BUILDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_rounded_as_torch_does(dtype: torch.dtype, build: Launcher) -> None:
    writes(dtype, build)


def writes(dtype: torch.dtype, build: Launcher) -> None:
    outer = awkward(dtype)
    x = torch.zeros(1, 1, len(outer), dtype=dtype, requires_grad=True)
    result = fused.run(Call(x, ADD), build)
    (grad,) = torch.autograd.grad(result.membrane, x, outer.view(1, -1))
    assert same(grad.float().flatten(), outer.to(dtype).float())
