"""dL/dV0 of patched neurons against the closed form, without autograd."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import snn_ext
from tests.adapters.spikingjelly_nets import SHAPES, Equations, patched_neuron, steps

FEATURES = (3, 2, 5)
BATCH = 3


def _psi(e: Equations, u: Tensor) -> Tensor:
    """dS/dH at the distance u to the threshold."""
    a = e.alpha
    if e.surrogate == "Sigmoid":
        s = 1 / (1 + torch.exp(-a * u))
        return a * s * (1 - s)
    if e.surrogate == "ATan":
        return a / 2 / (1 + (math.pi / 2 * a * u) ** 2)
    return torch.relu(a - a * a * u.abs())


@dataclass(frozen=True)
class Closed:
    """The closed form, and what can be got wrong in it."""

    batch_sum: bool = True
    decay_at_start: bool = True
    reset_path: bool = True
    squash_slope: bool = True

    def gradient(self, e: Equations, x: Tensor, p: Tensor, squash: bool, g_s: Tensor, g_v: Tensor) -> Tensor:
        """dL/dp for dL/dS = g_s [T, N, *] and dL/dV[T] = g_v [N, *]:

        a[t] = g_s[t] psi(u[t]) + b[t] D[t],  b[t-1] = decay a[t],  b[T] = g_v.
        """
        v0 = p.sigmoid() if squash else p
        charged, spikes, _ = e.run(x, v0)
        b = g_v
        for t in reversed(range(x.shape[0])):
            psi = _psi(e, charged[t] - e.threshold)
            through = torch.zeros_like(psi) if e.detach or not self.reset_path else psi
            if e.reset is None:
                slope = 1 - e.threshold * through
            else:
                slope = 1 - spikes[t] + (e.reset - charged[t]) * through
            b = g_s[t] * psi + b * slope
            b = e.decay * b if t or self.decay_at_start else b
        if not self.batch_sum:
            b = b[:1]
        total = b.sum_to_size(*(1,) * (b.ndim - p.ndim), *p.shape).view(p.shape)
        return total * v0 * (1 - v0) if squash and self.squash_slope else total


@dataclass(frozen=True)
class Case:
    equations: Equations
    mode: str
    shape: str | tuple[int, ...]
    squash: bool
    timesteps: int


def _random_case(rng: random.Random) -> Case:
    equations = Equations(
        kind=rng.choice(["IF", "LIF", "PLIF"]),
        tau=rng.uniform(1.1, 4.0),
        decay_input=rng.random() < 0.5,
        threshold=rng.uniform(0.4, 1.6),
        reset=rng.choice([0.0, 0.3, -0.2, None, None]),
        detach=rng.random() < 0.5,
        surrogate=rng.choice(["Sigmoid", "ATan", "PiecewiseQuadratic"]),
        alpha=rng.uniform(0.7, 4.0),
    )
    return Case(equations, rng.choice("sm"), rng.choice(list(SHAPES)), rng.random() < 0.3, rng.randint(1, 6))


CASES = [_random_case(random.Random(seed)) for seed in range(160)]


def _error(case: Case, closed: Closed, dtype: torch.dtype = torch.float64) -> float:
    """Largest deviation of autograd through the patched neuron from the closed form."""
    e = case.equations
    p = torch.rand(SHAPES[case.shape], dtype=dtype) * 2 - 0.7
    option = snn_ext.IMP(shape=case.shape, squash="sigmoid" if case.squash else None)
    node = patched_neuron(e.node(case.mode), 0.0, FEATURES, option=option)
    if dtype == torch.float64:
        node.double()
        if e.kind == "PLIF":  # made in float32; the closed form uses the tau that was asked for
            node.w.data.fill_(-math.log(e.tau - 1))
    node.imp.data.copy_(p)
    x = torch.randn(case.timesteps, BATCH, *FEATURES, dtype=dtype) * 1.3
    g_s, g_v = torch.randn_like(x), torch.randn_like(x[0])
    spikes = steps(node, x, case.mode)
    ((spikes * g_s).sum() + (node.v * g_v).sum()).backward()
    assert node.imp.grad.dtype == dtype
    assert node.imp.grad.shape == SHAPES[case.shape]
    expected = closed.gradient(e, x, p, case.squash, g_s, g_v)
    return (node.imp.grad - expected).abs().max().item()


def test_the_random_cases_cover_every_choice() -> None:
    def seen(choice: Callable[[Case], object]) -> set[object]:
        return {choice(case) for case in CASES}

    assert seen(lambda c: (c.equations.kind, c.equations.reset is None, c.equations.detach, c.mode)) == {
        (kind, soft, detach, mode)
        for kind in ("IF", "LIF", "PLIF")
        for soft in (True, False)
        for detach in (True, False)
        for mode in "sm"
    }
    assert seen(lambda c: c.shape) == set(SHAPES)
    assert len(seen(lambda c: (c.equations.surrogate, c.squash))) == 6
    assert seen(lambda c: c.timesteps) == set(range(1, 7))


def test_gradient_is_the_closed_form() -> None:
    errors = {index: _error(case, Closed()) for index, case in enumerate(CASES)}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 1e-10, CASES[worst]


def test_fused_float32_kernels_return_it_too() -> None:
    """float32 inputs take the framework's registered operators instead of its Python loop."""
    errors = {index: _error(case, Closed(), torch.float32) for index, case in enumerate(CASES[:60])}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= 2e-4, CASES[worst]  # float32, sums of up to 90 terms


@pytest.mark.parametrize(
    ("wrong", "concerns"),
    [
        (Closed(batch_sum=False), lambda c: True),
        (Closed(decay_at_start=False), lambda c: c.equations.kind != "IF"),
        (Closed(reset_path=False), lambda c: not c.equations.detach),
        (Closed(squash_slope=False), lambda c: c.squash),
    ],
    ids=["no sum over the batch", "V0 not decayed", "reset path dropped", "no slope of the squashing"],
)
def test_wrong_closed_forms_are_noticed(wrong: Closed, concerns: Callable[[Case], bool]) -> None:
    concerned = [case for case in CASES if concerns(case)]
    assert len(concerned) >= 20
    assert all(_error(case, wrong) > 1e-6 for case in concerned[:40])


def test_a_detached_reset_is_not_the_other_one() -> None:
    """The two reset gradients must differ, or the cases above would not tell them apart."""
    hard = Case(Equations(kind="IF"), "m", "neuron", False, 4)
    detached = Case(Equations(kind="IF", detach=True), "m", "neuron", False, 4)
    torch.manual_seed(3)
    assert _error(hard, Closed()) <= 1e-10
    torch.manual_seed(3)
    assert _error(detached, Closed()) <= 1e-10
    torch.manual_seed(3)
    assert _error(hard, Closed(reset_path=False)) > 1e-3
