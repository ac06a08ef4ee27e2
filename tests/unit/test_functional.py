"""`multistep` against loops and closed forms written here, independently of the library."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics, Leak, OptionError
from snn_ext.functional import charge, multistep, step
from snn_ext.surrogates import ATan, PiecewiseQuadratic, Sigmoid, Surrogate


def scalar_neuron(x: list[float], v0: float, d: Dynamics) -> tuple[list[float], list[float]]:
    """One neuron in plain Python, immediate or delayed reset."""
    decay, gain, theta = (float(p) for p in (d.decay, d.gain, d.threshold))
    spikes, membranes, v, fired = [], [], v0, False
    for value in x:
        if d.timing == "delayed" and fired and d.reset == "hard":
            v = d.rest
        h = decay * v + gain * value + (1 - decay) * d.rest
        if d.timing == "delayed" and fired and d.reset == "soft":
            h -= theta
        fired = h >= theta if d.fires_at_equality else h > theta
        v = h
        if d.timing == "immediate" and fired:
            v = {"hard": d.rest, "soft": h - theta, "none": h}[d.reset]
        spikes.append(float(fired))
        membranes.append(v)
    return spikes, membranes


GRID = list(
    itertools.product(
        ["hard", "soft", "none"], ["immediate", "delayed"], [True, False], [1.0, 0.5, 0.25], [0.0, 0.5]
    )
)


@pytest.mark.parametrize(("reset", "timing", "equality", "decay", "rest"), GRID)
def test_dyadic_inputs_match_a_scalar_loop_exactly(
    reset: str, timing: str, equality: bool, decay: float, rest: float
) -> None:
    """Dyadic numbers make float64 exact and hit the threshold exactly, where > and >= differ."""
    d = Dynamics(
        decay=decay,
        threshold=1.0,
        rest=rest,
        reset=reset,  # type: ignore[arg-type]
        timing=timing,  # type: ignore[arg-type]
        fires_at_equality=equality,
    )
    x = torch.randint(-2, 6, (12, 40)).double() / 4
    v0 = torch.randint(-8, 9, (40,)).double() / 8
    result = multistep(x.unsqueeze(1), v0, d)
    for n in range(40):
        spikes, membranes = scalar_neuron(x[:, n].tolist(), v0[n].item(), d)
        assert result.spikes[:, 0, n].tolist() == spikes
        assert result.membranes[:, 0, n].tolist() == membranes


def test_the_comparison_matters_on_dyadic_inputs() -> None:
    """The wrong twin of the test above: the other comparison gives other spikes."""
    x = torch.full((4, 1, 1), 0.5)
    at, above = (multistep(x, 0.0, Dynamics(fires_at_equality=e)).spikes.sum() for e in (True, False))
    assert (at, above) == (2, 1)


def test_spike_count_of_soft_reset_is_a_floor() -> None:
    """IF, soft reset, constant input x in [0, theta], V0 in [0, theta): floor((V0 + T x) / theta)."""
    for _ in range(200):
        steps, n, m = random.randint(1, 40), random.randint(0, 64), random.randint(0, 63)
        x = torch.full((steps, 1, 1), n / 64)
        count = multistep(x, m / 64, Dynamics(reset="soft")).spikes.sum().item()
        assert count == math.floor(m / 64 + steps * n / 64)


def closed_form(
    x: Tensor, h: Tensor, s: Tensor, grad_s: Tensor, grad_v: Tensor, d: Dynamics
) -> tuple[Tensor, Tensor]:
    """dL/dV0 per sample and dL/dx by the recursion a[t], b[t], for immediate resets."""
    psi = d.surrogate.derivative(h - d.threshold)
    if d.reset == "soft":
        carry = 1 - (0 if d.detach_reset else d.threshold * psi)
    elif d.reset == "hard":
        carry = (1 - s) + (0 if d.detach_reset else (d.rest - h) * psi)
    else:
        carry = torch.ones_like(h)
    b, grads = grad_v, []
    for t in reversed(range(len(x))):
        a = grad_s[t] * psi[t] + b * (carry[t] if isinstance(carry, Tensor) else carry)
        grads.append(d.gain * a)
        b = d.decay * a
    return b, torch.stack(grads[::-1])


def charged(x: Tensor, v0: Tensor, d: Dynamics) -> tuple[Tensor, Tensor]:
    """H[t] and S[t] by a loop of its own."""
    v, hs, ss = v0.expand(x.shape[1:]), [], []
    for x_t in x:
        h = d.decay * v + d.gain * x_t + (1 - d.decay) * d.rest
        s = (h >= d.threshold).to(h.dtype)
        v = {"hard": h * (1 - s) + d.rest * s, "soft": h - d.threshold * s, "none": h}[d.reset]
        hs.append(h)
        ss.append(s)
    return torch.stack(hs), torch.stack(ss)


def random_dynamics() -> Dynamics:
    surrogates: list[Surrogate] = [ATan(), Sigmoid(), PiecewiseQuadratic(0.7)]
    return Dynamics(
        decay=random.choice([1.0, 0.5, 0.9]),
        gain=random.choice([1.0, 0.5]),
        threshold=random.choice([1.0, 0.7]),
        rest=random.choice([0.0, 0.3]),
        reset=random.choice(["hard", "soft", "none"]),
        detach_reset=random.random() < 0.5,
        surrogate=random.choice(surrogates),
    )


@pytest.mark.parametrize("seed", range(100))
def test_gradients_match_the_closed_form(seed: int) -> None:
    random.seed(seed)
    d = random_dynamics()
    x = torch.randn(random.randint(1, 7), 3, 4, dtype=torch.float64, requires_grad=True)
    v0 = torch.randn(4, dtype=torch.float64, requires_grad=True)
    result = multistep(x, v0, d)
    grad_s, grad_v = torch.randn_like(result.spikes), torch.randn_like(result.membrane)
    loss = (result.spikes * grad_s).sum() + (result.membrane * grad_v).sum()
    got = torch.autograd.grad(loss, (v0, x))
    with torch.no_grad():
        b, grad_x = closed_form(x, *charged(x, v0, d), grad_s, grad_v, d)
    torch.testing.assert_close(got[0], b.sum(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got[1], grad_x, rtol=1e-10, atol=1e-10)
    # The twin that forgets the decay of V0 at the first step is caught wherever decay is not 1.
    if d.decay != 1.0 and b.abs().max() > 1e-6:
        assert not torch.allclose(got[0], b.sum(0) / d.decay, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("timing", ["immediate", "delayed"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_gradcheck_in_smooth_mode(reset: str, timing: str) -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    v0 = torch.randn(3, dtype=torch.float64, requires_grad=True)
    decay = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    theta = torch.full((3,), 0.9, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, v0: Tensor, decay: Tensor, theta: Tensor) -> Tensor:
        d = Dynamics(decay=decay, threshold=theta, rest=0.2, reset=reset, timing=timing)  # type: ignore[arg-type]
        return torch.cat([o.flatten() for o in multistep(x, v0, d, smooth=True)])

    assert torch.autograd.gradcheck(run, (x, v0, decay, theta))


@pytest.mark.parametrize("timing", ["immediate", "delayed"])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_chunks_continue_exactly(reset: str, timing: str) -> None:
    d = Dynamics(decay=0.5, reset=reset, timing=timing)  # type: ignore[arg-type]
    x, v0 = torch.randn(9, 2, 5) * 2, torch.randn(5)
    whole = multistep(x, v0, d)
    first = multistep(x[:4], v0, d)
    rest = multistep(x[4:], first.membrane, d, pending=first.spikes[-1])
    assert torch.equal(whole.spikes, torch.cat([first.spikes, rest.spikes]))
    assert torch.equal(whole.membrane, rest.membrane)


def test_an_initial_membrane_above_the_threshold_causes_no_delayed_reset() -> None:
    x = torch.zeros(2, 1, 1)
    for reset in ("soft", "hard"):
        d = Dynamics(reset=reset, timing="delayed", fires_at_equality=False)  # type: ignore[arg-type]
        result = multistep(x, 1.5, d)
        assert result.spikes.flatten().tolist()[0] == 1, "it fires, and is reset only afterwards"
        assert result.membranes.flatten().tolist()[0] == 1.5
        phantom = multistep(x, 1.5, d, pending=torch.ones(1, 1))
        assert phantom.spikes.flatten().tolist()[0] == 0, "the twin: a membrane that fired is reset"


def test_detached_resets_pass_no_gradient_through_the_spike() -> None:
    x = torch.full((3, 1, 1), 0.8, dtype=torch.float64, requires_grad=True)
    grads = []
    for detach in (True, False):
        d = Dynamics(reset="soft", detach_reset=detach)
        (grad,) = torch.autograd.grad(multistep(x, 0.0, d).membrane.sum(), x)
        grads.append(grad)
    assert torch.equal(grads[0], torch.ones_like(x))
    assert not torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_keep_a_float32_state(dtype: torch.dtype) -> None:
    x = torch.randn(6, 2, 8).to(dtype)
    d = Dynamics(decay=0.9, reset="soft")
    half, full = multistep(x, torch.zeros(8, dtype=dtype), d), multistep(x.float(), 0.0, d)
    assert half.spikes.dtype is dtype
    assert half.membrane.dtype is torch.float32
    assert torch.equal(half.spikes.float(), full.spikes)
    assert torch.equal(half.membrane, full.membrane)


def test_compiles_without_a_graph_break() -> None:
    x, v0 = torch.randn(4, 2, 3), torch.randn(3, requires_grad=True)
    d = Dynamics(decay=0.5, surrogate=Sigmoid())
    run = torch.compile(lambda x, v0: multistep(x, v0, d).spikes, fullgraph=True, backend="aot_eager")
    weight = torch.randn(4, 2, 3)
    (eager,) = torch.autograd.grad((multistep(x, v0, d).spikes * weight).sum(), v0)
    compiled = run(x, v0)
    assert torch.equal(compiled, multistep(x, v0, d).spikes)
    torch.testing.assert_close(torch.autograd.grad((compiled * weight).sum(), v0)[0], eager)


@pytest.mark.parametrize(
    ("x", "v0"),
    [
        (torch.zeros(3), 0.0),
        (torch.zeros(0, 2, 3), 0.0),
        (torch.zeros(2, 2, 3), torch.zeros(4)),
        (torch.zeros(2, 2, 3), torch.zeros(5, 2, 3)),
    ],
)
def test_bad_shapes_teach(x: Tensor, v0: Tensor | float) -> None:
    with pytest.raises(OptionError, match=r"\n  do: "):
        multistep(x, v0, Dynamics())


def test_unknown_resets_and_timings_teach() -> None:
    with pytest.raises(OptionError, match=r"do: use one of 'hard', 'soft', 'none'"):
        Dynamics(reset="zero")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"do: use one of 'immediate', 'delayed'"):
        Dynamics(timing="later")  # type: ignore[arg-type]


@pytest.mark.parametrize("rest", [0.0, -0.5])
@pytest.mark.parametrize("takes_input", [True, False])
@pytest.mark.parametrize("divide", [True, False])
def test_a_leak_is_computed_in_its_own_order(rest: float, takes_input: bool, divide: bool) -> None:
    """To the last bit, which another order of the same real numbers is not."""
    leak = Leak(3.0 if divide else 0.3, divide=divide, input=takes_input)
    x, v = torch.rand(200), torch.rand(200)

    def lost(distance: Tensor) -> Tensor:
        return distance / 3.0 if divide else distance * 0.3

    wanted = v + lost(x - (v - rest)) if takes_input else v - lost(v - rest) + x
    dynamics = Dynamics(leak=leak, rest=rest)
    h = charge(x, v, dynamics)
    assert torch.equal(h, wanted)
    rate = 1 / 3.0 if divide else 0.3
    assert leak.rate == rate
    assert (dynamics.decay, dynamics.gain) == (1 - rate, rate if takes_input else 1.0)
    general = charge(x, v, Dynamics(decay=1 - rate, gain=rate if takes_input else 1.0, rest=rest))
    torch.testing.assert_close(h, general)
    assert not torch.equal(h, general), "the twin: another order has other bits"


def test_a_membrane_decays_to_its_rest() -> None:
    x, v = torch.zeros(4), torch.tensor([-1.0, -0.5, 0.0, 1.0])
    h = charge(x, v, Dynamics(decay=0.5, rest=-0.5))
    assert h.tolist() == [-0.75, -0.5, -0.25, 0.25]
    zero = torch.tensor([-0.0])
    assert torch.signbit(charge(zero, zero, Dynamics())).all(), "nothing is added where it rests at zero"


def test_sequences_may_have_no_features() -> None:
    result = multistep(torch.tensor([[1.0, 0.25], [0.5, 0.25]]), 0.0, Dynamics(reset="soft"))
    assert result.spikes.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert result.membrane.tolist() == [0.5, 0.5]


def test_spikes_are_spikes_unless_asked() -> None:
    x = torch.rand(5, 7) * 2
    spikes, membrane = step(x, torch.zeros(()), Dynamics())
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(spikes, (x >= 1).float())
    assert torch.equal(membrane, x * (x < 1))
    assert set(multistep(x, 0.0, Dynamics()).spikes.unique().tolist()) == {0.0, 1.0}
    smooth, _ = step(x, torch.zeros(()), Dynamics(), smooth=True)
    assert len(smooth.unique()) > 2
