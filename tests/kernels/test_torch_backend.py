"""The plain torch backend against the composite: outputs bit for bit, gradients to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_ext import OptionError
from snn_ext.dynamics.description import Dynamics, Leak
from snn_ext.dynamics.surrogates import (
    ATan,
    FastSigmoid,
    PiecewiseQuadratic,
    Rectangle,
    Sigmoid,
    Surrogate,
)
from snn_ext.kernels import parts
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.bumps import in_place
from snn_ext.kernels.torch_backend import run
from tests.kernels.composite import FORMS, assert_same, check, composite, dyadic, gradients, learning

SURROGATES = [ATan(), ATan(0.7), Sigmoid(), PiecewiseQuadratic(), FastSigmoid(), Rectangle()]
RESETS, TIMINGS = ["hard", "soft", "none"], ["immediate", "delayed"]
KINDS = list(itertools.product(RESETS, TIMINGS, [False, True]))


@dataclass(frozen=True)
class Triangle(Surrogate):
    """A user's surrogate, which returns what it was given where it can."""

    alpha: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return u.abs_().neg_().add_(self.alpha).clamp_min_(0) if self.alpha == 1 else u

    def primitive(self, u: Tensor) -> Tensor:
        return u


# --- every neuron ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("reset", "timing", "detach"), KINDS)
def test_every_neuron(reset: str, timing: str, detach: bool, form: str) -> None:
    options = itertools.product([*SURROGATES, Triangle()], [True, False], [torch.float32, torch.float64])
    for n, (surrogate, equality, dtype) in enumerate(options):
        d = replace(
            FORMS[form](),
            reset=reset,  # type: ignore[arg-type]
            timing=timing,  # type: ignore[arg-type]
            detach_reset=detach,
            fires_at_equality=equality,
            surrogate=surrogate,
        )
        x, v, v0 = (torch.randn(shape, dtype=dtype) * 1.5 for shape in ((5, 2, 3, 4), (2, 3, 4), (3, 1)))
        check(Call(x, d, v=v, v0=v0, resume=n % 2 == 0, store=n % 3 == 0), run)


@pytest.mark.parametrize("form", ["if", "plain", "leak/2", "leak*", "state/2", "state*"])
@pytest.mark.parametrize(("reset", "timing"), itertools.product(RESETS, TIMINGS))
def test_inputs_that_hit_the_threshold(reset: str, timing: str, form: str) -> None:
    counts = []
    for equality in (True, False):
        d = replace(FORMS[form](), reset=reset, timing=timing, fires_at_equality=equality)  # type: ignore[arg-type]
        call = Call(dyadic(9, 4, 64), d, v=dyadic(4, 64), resume=True, store=True)
        check(call, run)
        counts.append(run(replace(call, x=dyadic(4, 1, 1).fill_(1.0), v=None)).spikes.sum())
    assert counts[0] >= counts[1]
    if form == "if":
        assert counts[0] > counts[1], "the inputs do tell > from >="


@pytest.mark.parametrize("surrogate", [type(s) for s in SURROGATES[1:]])
def test_bumps_in_place(surrogate: type[Surrogate]) -> None:
    """Also at their edges; and a user's subclass of one keeps its own."""
    for alpha in (0.5, 1.0, 3.0):
        u = torch.cat(
            [torch.linspace(-3, 3, 97, dtype=torch.float64), torch.tensor([0.5 / alpha, -1 / alpha])]
        )
        bump = surrogate(alpha)
        torch.testing.assert_close(in_place(bump, u)(u.clone()), bump.derivative(u), rtol=1e-13, atol=1e-15)

    class Own(surrogate):  # type: ignore[misc, valid-type]
        def derivative(self, u: Tensor) -> Tensor:
            return u + 1

    assert torch.equal(in_place(Own(), u)(torch.ones(2)), torch.full((2,), 2.0))


# --- every kind of call ----------------------------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any shapes, parameters as numbers or as tensors of every shape that broadcasts."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    steps, batch = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    features = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    channels = features[0]
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))

    def tensor(shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, dtype=dtype) * (high - low) + low

    shapes = [(), features, (channels, *[1] * (len(features) - 1)), (batch, *features)]

    def number(low: float, high: float) -> float | Tensor:
        choice = draw(st.integers(0, 5))
        return low + (high - low) * (choice + 1) / 7 if choice > 3 else tensor(shapes[choice], low, high)

    def affine(low: float, high: float) -> Tensor | None:
        shape = draw(st.sampled_from([None, (channels,), (steps, channels)]))
        return None if shape is None else tensor(shape, low, high)

    divide = draw(st.booleans())
    leak = Leak(number(1.2, 3) if divide else number(0.1, 0.9), divide=divide, input=draw(st.booleans()))
    d = Dynamics(
        number(0.3, 1.0),
        number(0.5, 1.5),
        leak=draw(st.sampled_from([None, leak])),
        threshold=number(0.3, 0.9),
        rest=draw(st.sampled_from([0.0, -0.2])),
        reset=draw(st.sampled_from(RESETS)),  # type: ignore[arg-type]
        timing=draw(st.sampled_from(TIMINGS)),  # type: ignore[arg-type]
        fires_at_equality=draw(st.booleans()),
        detach_reset=draw(st.booleans()),
        surrogate=draw(st.sampled_from(SURROGATES)),
    )
    return Call(
        tensor((steps, batch, *features), -2, 3),
        d,
        v=draw(st.sampled_from([None, tensor((batch, *features))])),
        v0=draw(st.sampled_from([None, 0.3, *(tensor(shape) for shape in shapes)])),
        resume=draw(st.booleans()),
        scale=affine(0.5, 1.5),
        shift=affine(-0.5, 0.5),
        store=draw(st.booleans()),
    )


@given(calls())
@settings(max_examples=150, deadline=None)
def test_every_call(call: Call) -> None:
    check(call, run)


@given(calls(), st.sampled_from([torch.float16, torch.bfloat16]))
@settings(max_examples=50, deadline=None)
def test_half_inputs_keep_a_float32_state(call: Call, dtype: torch.dtype) -> None:
    """Spikes are those of the rounded inputs in float32; gradients of x are rounded once, at the end."""
    state = torch.promote_types(call.x.dtype, torch.float32)
    if state is not torch.float32:
        return
    result, grads = gradients(replace(call, x=call.x.to(dtype)), run)
    truth, wanted = gradients(replace(call, x=call.x.to(dtype)), composite)
    assert_same(result, truth)
    assert result.spikes.dtype is dtype
    for name, grad in grads.items():
        assert grad.dtype == wanted[name].dtype
        scale = max(1e-30, float(wanted["x"].abs().max()), float(wanted[name].abs().max()))
        error = (grad.float() - wanted[name].float()).abs().max()
        assert error <= (torch.finfo(dtype).eps if name == "x" else 4e-6) * scale


@pytest.mark.parametrize("equality", [True, False])
@pytest.mark.parametrize("timing", TIMINGS)
def test_folded_thresholds(timing: str, equality: bool) -> None:
    threshold = torch.tensor([1.0, 0.5, -torch.inf, torch.inf, 0.25]).view(5, 1)
    sign = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]).view(5, 1)
    for reset, form in itertools.product(RESETS, FORMS):
        d = replace(FORMS[form](), reset=reset, timing=timing, fires_at_equality=equality)
        for folded in ((threshold, sign), (threshold.expand(5, 6).clone(), sign.expand(5, 6).clone())):
            call = Call(dyadic(7, 3, 5, 6), d, v=dyadic(3, 5, 6), resume=True, folded=folded, store=True)
            assert_same(run(call), composite(call))
            learned, _ = learning(call)
            assert not run(learned).spikes.requires_grad


# --- gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_in_smooth_mode(form: str, reset: str, timing: str) -> None:
    d = FORMS[form]()
    rate = torch.tensor(d.leak.value if d.leak else d.decay, dtype=torch.float64)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    call, tensors = learning(
        Call(x, d, v=x[0].clone(), v0=torch.randn(2, dtype=torch.float64), resume=True, store=True)
    )
    inputs = [
        *tensors.values(),
        rate.requires_grad_(),
        torch.full((2,), 0.9, dtype=torch.float64).requires_grad_(),
    ]

    def outputs(x: Tensor, v: Tensor, v0: Tensor, rate: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
        changed = {"leak": replace(d.leak, value=rate)} if d.leak else {"decay": rate}
        new = replace(d, threshold=theta, reset=reset, timing=timing, **changed)  # type: ignore[arg-type]
        return tuple(
            t for t in run(replace(call, x=x, v=v, v0=v0, dynamics=new), smooth=True) if t is not None
        )

    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("wanted", ["spikes", "membrane", "membranes"])
@pytest.mark.parametrize(("reset", "timing"), itertools.product(RESETS, TIMINGS))
def test_a_loss_on_one_output_only(reset: str, timing: str, wanted: str) -> None:
    d = Dynamics(0.8, threshold=torch.tensor(0.9), reset=reset, timing=timing)  # type: ignore[arg-type]
    call = Call(torch.randn(4, 2, 3), d, store=True)

    def only(backend: Callable[[Call], object]) -> list[Tensor]:
        learned, tensors = learning(call)
        loss = getattr(backend(learned), wanted).sum()
        return list(torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True))

    for ours, truth in zip(only(run), only(composite), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=2e-6)


def test_chunks_continue_exactly() -> None:
    for reset, timing, form in itertools.product(RESETS, TIMINGS, FORMS):
        d = replace(FORMS[form](), reset=reset, timing=timing)
        x = torch.randn(9, 2, 5) * 2
        whole, first = run(Call(x, d)), run(Call(x[:4], d))
        rest = run(Call(x[4:], d, v=first.membrane, resume=True))
        assert torch.equal(whole.spikes, torch.cat([first.spikes, rest.spikes]))
        assert torch.equal(whole.membrane, rest.membrane)


def test_spikes_may_be_changed_in_place() -> None:
    x = torch.randn(4, 2, 3, requires_grad=True)
    for timing, store in itertools.product(TIMINGS, [False, True]):
        outputs = run(Call(x, Dynamics(timing=timing), store=store))  # type: ignore[arg-type]
        (plain,) = torch.autograd.grad(outputs.spikes.sum(), x, retain_graph=True)
        for output in outputs:
            if output is not None:
                output.add_(1.0)
        (changed,) = torch.autograd.grad(outputs.spikes.sum(), x)
        assert torch.equal(plain, changed)


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(4, 2, 3, requires_grad=True)
    with pytest.raises(OptionError, match=r"differentiated again.*\n.*\n  do: .*reference"):
        torch.autograd.grad(run(Call(x, Dynamics())).spikes.sum(), x, create_graph=True)


def test_what_is_kept_for_the_backward_pass() -> None:
    """4 bytes per neuron and step, 2 for half inputs, and a little per neuron."""
    for dtype, per_step in ((torch.float32, 4), (torch.bfloat16, 2), (torch.float16, 2)):
        for d in (
            Dynamics(),
            Dynamics(timing="delayed"),
            Dynamics(leak=Leak(torch.tensor(2.0).requires_grad_())),
        ):
            kept: dict[int, int] = {}

            def pack(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
                kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            x = torch.randn(8, 16, 64).to(dtype).requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                run(Call(x, d, store=True))
            assert sum(kept.values()) <= per_step * x.numel() + 4 * x[0].numel() + 100


# --- memory ----------------------------------------------------------------------------------------------


def layouts() -> dict[str, Tensor]:
    x = torch.randn(3, 4, 6, 5, 7) * 1.5
    return {
        "contiguous": x,
        "channels last": x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (3, 4)),
        "transposed": x.transpose(0, 4).contiguous().transpose(0, 4),
        "every second": torch.randn(3, 4, 6, 5, 14)[..., ::2],
        "repeated": x[:1].expand(3, -1, -1, -1, -1),
    }


@pytest.mark.parametrize("neurons", [2**16, 300, 100, 20, 3])
@pytest.mark.parametrize("layout", layouts())
def test_parts_and_layouts(layout: str, neurons: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result does not depend on how the neurons are cut into parts, nor on where they lie."""
    monkeypatch.setattr(parts, "NEURONS", neurons)
    d = Dynamics(
        torch.rand(6, 1, 1),
        torch.rand(6, 5, 7) + 0.5,
        threshold=torch.rand(4, 6, 5, 7) + 0.5,
        rest=-0.1,
        timing="delayed",
        reset="soft",
    )
    call = Call(
        layouts()[layout], d, v=torch.randn(4, 6, 5, 7), v0=torch.randn(6, 1, 1), resume=True, store=True
    )
    check(call, run)
    check(replace(call, scale=torch.rand(3, 6), shift=torch.rand(6)), run)
    d = replace(d, leak=Leak(torch.rand(6, 1, 1) + 1), timing="immediate", reset="hard")
    check(replace(call, dynamics=d, shift=torch.rand(3, 6)), run)
    assert run(call).spikes.stride() == torch.empty_like(call.x).stride()


def test_parts_cover_every_neuron_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for neurons, shape in itertools.product([1, 2, 5, 24, 1000], [(3, 4, 2, 5), (1, 7), (9,), (2, 0, 3)]):
        monkeypatch.setattr(parts, "NEURONS", neurons)
        seen = torch.zeros(shape)
        for index in parts.blocks(seen):
            assert seen[index].numel() <= max(neurons, 1)
            seen[index] += 1
        assert bool((seen == 1).all())


def test_edges() -> None:
    for shape in [(3, 0, 4), (1, 2, 3), (1000, 1, 2), (2, 5), (4, 3, 0)]:
        check(Call(torch.randn(shape), Dynamics(0.9), store=True), run)
