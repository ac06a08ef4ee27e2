"""The kernels against SpikingJelly's and snnTorch's own neurons: every spike and membrane equal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics, Leak
from snn_ext.kernels import fused
from snn_ext.kernels.arguments import Call
from snn_ext.surrogates import ATan, FastSigmoid, PiecewiseQuadratic, Rectangle, Sigmoid
from tests.kernels import harness

INPUTS = [
    lambda: torch.randn(6, 3, 4, 5) * 1.5,
    lambda: torch.randint(-6, 9, (6, 3, 4, 5)) / 4,  # hits thresholds exactly
]
Own = Callable[[Tensor], tuple[Tensor, Tensor]]
Pair = tuple[Own, Dynamics]


def compare(pairs: Iterable[Pair]) -> None:
    """Frameworks' neurons against the kernels: outputs equal, gradients close."""
    pairs = list(pairs)
    example = torch.zeros(6, 3, 4, 5, requires_grad=True)
    ways = {harness.HOST: None, harness.SINGLE: len(example)}
    for launcher, unrolled in ways.items():
        plans = [fused.prepare(Call(example, d), launcher, unrolled=unrolled)[0] for _, d in pairs]  # type: ignore[arg-type]
        launcher.prepare(plan.kernel for plan in plans)
    for (own, d), make in itertools.product(pairs, INPUTS):
        x = make()
        outer = torch.randn_like(x)
        mine, theirs = (x.clone().requires_grad_() for _ in range(2))
        spikes, membrane = own(theirs)
        (true,) = torch.autograd.grad((spikes * outer).sum() + membrane.sum(), theirs)
        for launcher, unrolled in ways.items():
            got = fused.run(Call(mine, d), launcher, unrolled=unrolled)  # type: ignore[arg-type]
            assert torch.equal(got.spikes, spikes), d
            assert torch.equal(got.membrane, membrane), d
            (grad,) = torch.autograd.grad((got.spikes * outer).sum() + got.membrane.sum(), mine)
            assert harness.error(grad, true) <= 2e-6, d


SPIKINGJELLY = {
    "ATan": ATan(),
    "Sigmoid": Sigmoid(),
    "PiecewiseQuadratic": PiecewiseQuadratic(),
    "Rect": Rectangle(),
}


def node(kind: str, decay_input: bool, v_reset: float | None, bump: str) -> Pair:
    from spikingjelly.activation_based import neuron, surrogate

    options: dict[str, Any] = {"v_reset": v_reset, "surrogate_function": getattr(surrogate, bump)()}
    if kind != "IFNode":
        options["decay_input"] = decay_input
    if kind.endswith("3"):
        options["tau"] = 3.0
    own = getattr(neuron, kind.partition(",")[0])(step_mode="m", **options)
    leaks: dict[str, Callable[[], Leak | None]] = {
        "IFNode": lambda: None,
        "LIFNode": lambda: Leak(2.0, input=decay_input),
        "LIFNode, tau 3": lambda: Leak(3.0, input=decay_input),
        "ParametricLIFNode": lambda: Leak(own.w.detach().sigmoid(), divide=False, input=decay_input),
    }
    dynamics = Dynamics(
        leak=leaks[kind](),
        rest=v_reset or 0.0,
        reset="soft" if v_reset is None else "hard",
        surrogate=SPIKINGJELLY[bump],
    )

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        own.reset()
        return own(x), own.v

    return run, dynamics


@pytest.mark.parametrize(
    ("kind", "decay_input"),
    [("IFNode", True), *itertools.product(["LIFNode", "LIFNode, tau 3", "ParametricLIFNode"], [True, False])],
)
def test_spikingjelly(kind: str, decay_input: bool) -> None:
    pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
    compare(node(kind, decay_input, v, bump) for v in (0.0, 0.25, None) for bump in SPIKINGJELLY)


SNNTORCH = {
    "atan": (ATan(), {}),
    "fast_sigmoid": (FastSigmoid(), {}),
    "sigmoid": (Sigmoid(5.0), {"slope": 5}),
}
RESETS = {"subtract": "soft", "zero": "hard", "none": "none"}


def leaky(beta: float | Tensor, reset: str, bump: str) -> tuple[Any, Dynamics]:
    import snntorch as snn

    surrogate, options = SNNTORCH[bump]
    neuron = snn.Leaky(beta=beta, reset_mechanism=reset, spike_grad=getattr(snn.surrogate, bump)(**options))
    return neuron, Dynamics(
        decay=neuron.beta.clamp(0, 1),
        reset=RESETS[reset],  # type: ignore[arg-type]
        timing="delayed",
        fires_at_equality=False,
        detach_reset=True,
        surrogate=surrogate,
    )


def stepwise(neuron: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    mem, out = torch.zeros_like(x[0]), []
    for step in x.unbind(0):
        s, mem = neuron(step, mem)
        out.append(s)
    return torch.stack(out), mem


@pytest.mark.parametrize("reset", RESETS)
def test_snntorch_leaky(reset: str) -> None:
    pytest.importorskip("snntorch", reason="snntorch is not installed")
    pairs = [leaky(beta, reset, bump) for beta in (0.5, 0.9, torch.rand(5)) for bump in SNNTORCH]
    compare((lambda x, neuron=neuron: stepwise(neuron, x), d) for neuron, d in pairs)  # type: ignore[misc]


def test_snntorch_lapicque() -> None:
    snn = pytest.importorskip("snntorch", reason="snntorch is not installed")
    neuron = snn.Lapicque(beta=0.9)
    step = neuron.time_step / (neuron.R * neuron.C)
    d = Dynamics(
        decay=(1 - step).detach(),
        gain=(step * neuron.R).detach(),
        reset="soft",
        timing="delayed",
        fires_at_equality=False,
        detach_reset=True,
    )
    x = torch.randn(6, 3, 4, 5)
    spikes, membrane = stepwise(neuron, x)
    got = fused.run(Call(x, d), harness.HOST)
    # snnTorch multiplies by R, by 1 / (R C) and by the time step, one after the other: not the same bits.
    torch.testing.assert_close(got.membrane, membrane, rtol=1e-5, atol=1e-6)
    assert (got.spikes != spikes).float().mean() < 0.01


@pytest.mark.parametrize("reset", RESETS)
def test_snntorch_steps_one_by_one(reset: str) -> None:
    """Calls of one step, each with the membrane of the one before, whose reset is still due."""
    pytest.importorskip("snntorch", reason="snntorch is not installed")
    neuron, d = leaky(0.9, reset, "atan")
    x = torch.randn(7, 3, 5).mul(2)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    spikes, membrane = stepwise(neuron, theirs)
    v, out = torch.zeros(3, 5), []
    for step in mine.unbind(0):
        s, v, _ = fused.run(Call(step.unsqueeze(0), d, v=v, resume=True), harness.HOST)
        out.append(s[0])
    assert torch.equal(torch.stack(out), spikes)
    assert torch.equal(v, membrane)
    outer = torch.randn_like(spikes)
    grads = [
        torch.autograd.grad((s * outer).sum() + m.sum(), leaf)[0]
        for s, m, leaf in ((torch.stack(out), v, mine), (spikes, membrane, theirs))
    ]
    assert harness.error(*grads) <= 2e-6
