"""dL/dV0 equals the closed form of snnTorch's own recursion, in float64, to 1e-10.

With the carried membrane U, the charged one H, the reset R[t] = 1[U[t-1] > theta] (a constant: snnTorch
detaches it; R[1] = 0, as V0 was not charged by an input), m[t] = 1 - R[t] for reset "zero" and 1 else::

    H[t] = m[t] * (lambda * U[t-1] + J[t]) - (theta * R[t] for "subtract")
    S[t] = k * 1[H[t] > theta],  U[t] = H[t] - D[t] * (theta | H[t] | 0)

where J holds the input, the synaptic current and the feedback of S[t-1] (Leaky's "zero" spares J), and
D = S/k - R only if ``reset_delay=False``; it is *not* detached. Backwards, with psi the surrogate::

    u[t] = dL/dU[t] + lambda * m[t+1] * h[t+1]
    s[t] = dL/dS[t] + feedback^T(c[t+1])
    h[t] = k * psi(H[t] - theta) * s[t] + e[t] * u[t]
    e[t] = 1 | 1 - theta * psi ("subtract", no delay) | 1 - D[t] - H[t] * psi ("zero", no delay)
    c[t] = m[t] * h[t]                       into the feedback, for RLeaky
    c[t] = m[t] * h[t] + alpha * c[t+1]      into the synaptic current, for RSynaptic
    dL/dp = phi'(p) * sum over the broadcast dimensions of lambda * h[1]
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from snntorch import surrogate
from torch import Tensor, nn

import snn_ext
from snn_ext_snntorch import neurons
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.test_snntorch_equations import (
    DELAYS,
    KINDS,
    RESETS,
    Setup,
    _adds_before_the_reset,
    drive,
    random_setup,
    reference,
)


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


class _ATan64(torch.autograd.Function):
    """snnTorch's default surrogate with spikes in the dtype of the membrane: its own are float32, which
    would round every gradient that passes through a spike."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grads[0] * _psi(u)


def _psi(u: Tensor) -> Tensor:
    return 1 / (1 + (math.pi * u).square())


def _feedback_transposed(setup: Setup, gradient: Tensor) -> Tensor:
    if isinstance(setup.recurrent, tuple):
        return gradient @ setup.recurrent[0]
    return gradient * setup.recurrent


def closed_form(
    setup: Setup, x: Tensor, v0: Tensor, on_spikes: Tensor, on_membranes: Tensor, *, phantom: bool = False
) -> Tensor:
    """dL/dU[0], shape [B, *features], for L = sum(on_spikes * S) + sum(on_membranes * U).

    `phantom` is the wrong twin: the reset that V0 would cause if it were an ordinary membrane.
    """
    s = setup
    spikes, charged, carried = reference(s, x, v0, torch.float64)
    start = v0.expand_as(x[0])
    u_next = c_next = torch.zeros_like(x[0])
    for t in reversed(range(len(x))):
        before = carried[t - 1] if t else start
        r = (before > s.threshold).to(x.dtype) if t or phantom else torch.zeros_like(before)
        kept = 1 - r if s.reset == "zero" else torch.ones_like(r)
        psi = _psi(charged[t] - s.threshold)
        e = torch.ones_like(psi)
        if not s.delay and s.reset == "subtract":
            e = 1 - s.threshold * psi
        elif not s.delay and s.reset == "zero":
            e = 1 - (spikes[t] / s.factor - r) - charged[t] * psi
        into_spikes = on_spikes[t]
        if s.recurrent is not None and s.kind in ("RLeaky", "RSynaptic"):
            into_spikes = into_spikes + _feedback_transposed(s, c_next)
        h = s.factor * psi * into_spikes + e * (on_membranes[t] + u_next)
        u_next = s.decay * kept * h
        c_next = kept * h + (s.alpha * c_next if s.kind == "RSynaptic" else 0)
    return u_next


def _random_option(rng: random.Random, features: tuple[int, ...]) -> snn_ext.IMP:
    choices: list[Any] = ["neuron", "channel", "layer", (features[-1],), (1, *features[1:])]
    squash = rng.choice([None, None, "sigmoid"])
    return snn_ext.IMP(init=(0.05, 0.95) if squash else (-1.0, 2.0), shape=rng.choice(choices), squash=squash)


def _gradient_and_formula(seed: int, *, phantom: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(autograd's, the formula's, V0) for the configuration `seed`."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    features = rng.choice([(4,), (3,), (2, 3, 2)])
    kind = KINDS[seed % len(KINDS)]
    delay = rng.choice(DELAYS.get(kind, (True, False)))
    setup = random_setup(kind, rng.choice(RESETS), delay, rng.random() < 0.5, features, torch.float64)
    option = _random_option(rng, features)
    neuron = setup.build(hidden=rng.random() < 0.5, spike_grad=_ATan64.apply).double()
    x = torch.randn(9, 3, *features, dtype=torch.float64) * 1.5
    snn_ext.patch(neuron, imp=option, example_input=x[0])
    neuron.double()
    v0 = neuron.imp.detach()
    v0 = v0.sigmoid() if option.squash else v0
    on_spikes, on_membranes = torch.randn_like(x), torch.randn_like(x)
    spikes, membranes = drive(neuron, x)
    assert torch.equal(spikes, reference(setup, x, v0, torch.float64)[0])
    ((spikes * on_spikes).sum() + (membranes * on_membranes).sum()).backward()
    formula = closed_form(setup, x, v0, on_spikes, on_membranes, phantom=phantom)
    formula = formula.sum_to_size(neuron.imp.shape)
    if option.squash:
        formula = formula * v0 * (1 - v0)
    return neuron.imp.grad, formula, v0


@pytest.mark.parametrize("seed", range(100))
def test_gradient_equals_the_closed_form(seed: int) -> None:
    gradient, formula, _ = _gradient_and_formula(seed)
    # Different order of summation, nothing else.
    torch.testing.assert_close(gradient, formula, rtol=1e-10, atol=1e-10)


def test_wrong_twin_a_phantom_reset_in_the_formula_is_seen() -> None:
    """Where some V0 is above the threshold, the formula with R[1] = 1[V0 > theta] must disagree."""
    disagree = 0
    for seed in range(100):
        gradient, formula, _ = _gradient_and_formula(seed, phantom=True)
        disagree += not torch.allclose(gradient, formula, rtol=1e-10, atol=1e-10)
    assert disagree >= 10


def test_wrong_twin_a_phantom_reset_in_the_mixin_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons.IMP, "mem_reset", _adds_before_the_reset)
    failed = 0
    for seed in range(100):
        try:
            gradient, formula, _ = _gradient_and_formula(seed)
        except AssertionError:  # already the spikes differ
            failed += 1
            continue
        failed += not torch.allclose(gradient, formula, rtol=1e-10, atol=1e-10)
    assert failed >= 10


def _setup_with(kind: str, reset: str, surrogate_of: Any, **constants: Any) -> tuple[Setup, Any]:
    setup = random_setup(kind, reset, True, False, (4,), torch.float64)
    return setup, setup.build(hidden=False, spike_grad=surrogate_of, **constants).double()


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["Leaky", "Synaptic", "Lapicque"])
def test_gradient_with_the_stock_surrogate(kind: str, reset: str) -> None:
    """snnTorch's own atan gives float32 spikes; with weights that float32 holds, and a membrane loss in
    float64, nothing is rounded and the closed form holds to the same 1e-10."""
    setup, neuron = _setup_with(kind, reset, surrogate.atan())
    snn_ext.patch(neuron, imp=snn_ext.IMP(init=(-1.0, 1.0), shape=(4,)))
    neuron.double()
    v0 = neuron.imp.detach()
    x = torch.randn(9, 3, 4, dtype=torch.float64) * 1.5
    spikes, membranes = drive(neuron, x)
    assert spikes.dtype == torch.float32
    assert membranes.dtype == torch.float64
    on_spikes = torch.randint(-8, 8, x.shape) / 4
    on_membranes = torch.randn_like(x)
    ((spikes * on_spikes).sum().double() + (membranes * on_membranes).sum()).backward()
    formula = closed_form(setup, x, v0, on_spikes.double(), on_membranes).sum(0)
    torch.testing.assert_close(neuron.imp.grad, formula, rtol=1e-10, atol=1e-10)


def test_gradient_of_a_later_sequence_alone() -> None:
    """Three sequences, a loss on the second: V0 is read anew in each, and only the second counts."""
    setup, neuron = _setup_with("Leaky", "subtract", _ATan64.apply)
    snn_ext.patch(neuron, imp=snn_ext.IMP(init=(-1.0, 1.0), shape=(4,)))
    neuron.double()
    v0 = neuron.imp.detach()
    sequences = torch.randn(3, 6, 2, 4, dtype=torch.float64)
    on_membranes = torch.randn_like(sequences[0])
    outputs = [drive(neuron, x)[1] for x in sequences]
    (outputs[1] * on_membranes).sum().backward()
    formula = closed_form(setup, sequences[1], v0, torch.zeros_like(on_membranes), on_membranes).sum(0)
    torch.testing.assert_close(neuron.imp.grad, formula, rtol=1e-10, atol=1e-10)


def test_v0_is_read_in_forward_not_at_the_reset() -> None:
    """Reset under no_grad, then an optimiser step, then the forward: the new value and its gradient."""
    neuron = random_setup("Leaky", "subtract", True, False, (4,)).build(hidden=True)
    net = snn_ext.patch(nn.Sequential(nn.Linear(4, 4), neuron), imp=snn_ext.IMP(init=0.1))
    x = torch.randn(2, 4)
    net(x)
    with torch.no_grad():
        snn_ext.reset(net)
        neuron.imp.fill_(0.3)
    _, mem = net(x)
    expected = neuron.beta * 0.3 + net[0](x)
    torch.testing.assert_close(mem, expected)
    mem.sum().backward()
    torch.testing.assert_close(neuron.imp.grad, (2 * neuron.beta).expand(4))
