"""MPBN without any framework: the norm, the decision, the training step, and the fold into a threshold.

`reference` is the neuron written down a second time, in float64 and without the library: the adapters'
tests compare with it too.
"""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext import MPBN, Dynamics, FoldError, OptionError, ShapeMismatchError, functional
from snn_ext.norms import (
    BatchNorm,
    FiringRule,
    FoldedMembraneNorm,
    MembraneBatchNorm,
    NormalisedMembrane,
    membrane_batch_norm,
)
from snn_ext.surrogates import ATan, fire

FEATURES = (3, 2, 2)
EPS, MOMENTUM = 1e-3, 0.3


# --- the neuron, written down a second time ------------------------------------------------------------


class Spike(torch.autograd.Function):
    """1[u >= 0] or 1[u > 0] in the dtype of u; backward (a/2) / (1 + (pi/2 a u)^2) with a = 2."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, at_equality: bool) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0 if at_equality else u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grads[0] / (1 + (math.pi * u) ** 2), None


@dataclass
class HandNorm:
    """Batch norm of one step at a time, by its formula; running statistics get one update per call."""

    gamma: Tensor
    beta: Tensor
    per: str
    eps: float = EPS
    momentum: float = MOMENTUM
    mean: Tensor = field(init=False)
    var: Tensor = field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self.mean = torch.zeros_like(self.gamma).detach()
        self.var = torch.ones_like(self.gamma).detach()

    def __call__(self, h: Tensor) -> Tensor:
        over = (0,) if self.per == "element" else (0, *range(2, h.ndim))
        mean = h.mean(over, keepdim=True)
        var = (h - mean).square().mean(over, keepdim=True)
        count = h.numel() / mean.numel()
        self._track(mean.detach().flatten(), var.detach().flatten() * count / (count - 1))
        shape = mean.shape
        return (h - mean) / (var + self.eps).sqrt() * self.gamma.view(shape) + self.beta.view(shape)

    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        self.mean = (1 - self.momentum) * self.mean + self.momentum * mean
        self.var = (1 - self.momentum) * self.var + self.momentum * unbiased
        self.calls += 1


@dataclass(frozen=True)
class Neuron:
    """The equations that `reference` runs.

    `late_wipe` is Lapicque's reset to zero, which wipes the new input as well; Leaky's spares it.
    """

    charge: Callable[[Tensor, Tensor], Tensor]
    threshold: float | Tensor = 1.0
    at_equality: bool = True
    reset: str = "hard"
    rest: float = 0.0
    delayed: bool = False
    late_wipe: bool = False
    detach: bool = False
    carry: str = "raw"

    def due(self, v: Tensor, fired: Tensor | None) -> Tensor:
        """What the reset of the step before does to the membrane, before the charge."""
        wipe = self.reset == "hard" and not self.late_wipe and fired is not None
        return v * (1 - fired) if wipe else v  # type: ignore[operator]

    def due_late(self, h: Tensor, fired: Tensor | None) -> Tensor:
        """What the reset of the step before does to the charged membrane."""
        if fired is None:
            return h
        if self.reset == "soft":
            return h - self.threshold * fired
        return h * (1 - fired) if self.reset == "hard" and self.late_wipe else h

    def after(self, v: Tensor, s: Tensor) -> Tensor:
        """The reset in the step of the spike itself."""
        s = s.detach() if self.detach else s
        if self.reset == "none":
            return v
        return v - self.threshold * s if self.reset == "soft" else v * (1 - s) + self.rest * s


def reference(x: Tensor, v0: Tensor, norm: Callable[[Tensor], Tensor], n: Neuron) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, *] and the membrane after the last step, from V[0] = `v0`."""
    v, fired, spikes = v0.expand(x.shape[1:]), None, []
    for t in range(x.shape[0]):
        h = n.due_late(n.charge(x[t], n.due(v, fired)), fired)
        normalised = norm(h)
        s: Tensor = Spike.apply(normalised - n.threshold, n.at_equality)
        carried = h if n.carry == "raw" else normalised
        if n.delayed:
            v, fired = carried, s.detach()
        else:
            v = n.after(carried, s)
        spikes.append(s)
    return torch.stack(spikes), v


@dataclass(frozen=True)
class Step:
    """What one training step gave: spikes, the last membrane, gradients and running statistics."""

    spikes: Tensor
    membrane: Tensor
    gradients: dict[str, Tensor]
    mean: Tensor
    var: Tensor
    calls: int

    def check_equals(self, other: Step) -> None:
        """Spikes are the same; the rest to 1e-9, as the sums run in another order."""
        assert torch.equal(self.spikes, other.spikes)
        assert 0.1 < self.spikes.mean() < 0.9, "a silent neuron proves nothing"
        assert self.calls == other.calls == self.spikes.shape[0]
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(self.membrane, other.membrane, **close)
        torch.testing.assert_close(self.mean, other.mean, **close)
        torch.testing.assert_close(self.var, other.var, **close)
        assert self.gradients.keys() == other.gradients.keys()
        assert {"x", "v0", "gamma", "beta"} <= self.gradients.keys()
        for name, gradient in self.gradients.items():
            assert bool((gradient != 0).any()), name
            torch.testing.assert_close(gradient, other.gradients[name], **close, msg=name)

    def differs_from(self, other: Step) -> bool:
        try:
            self.check_equals(other)
        except AssertionError:
            return True
        return False


def loss_weights(like: Tensor) -> Tensor:
    """Different for every spike, and exact in float32 (snnTorch's spikes have that dtype)."""
    steps = torch.arange(like.numel(), dtype=like.dtype) * 7 % 16
    return (steps.view(like.shape) - 7.5) / 8


def reference_step(
    x: Tensor,
    v0: Tensor,
    gamma: Tensor,
    beta: Tensor,
    per: str,
    neuron: Neuron,
    learnt: dict[str, Tensor] | None = None,
) -> Step:
    """One training step of `reference`; `learnt` are further leaves that ``neuron.charge`` reads."""
    leaves = {
        "x": x.clone().requires_grad_(),
        "v0": v0.clone().requires_grad_(),
        "gamma": gamma.clone().requires_grad_(),
        "beta": beta.clone().requires_grad_(),
        **(learnt or {}),
    }
    norm = HandNorm(leaves["gamma"], leaves["beta"], per)
    spikes, v = reference(leaves["x"], leaves["v0"], norm, neuron)
    ((spikes * loss_weights(spikes)).sum() + (v * loss_weights(v)).sum()).backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return Step(spikes.detach(), v.detach(), gradients, norm.mean, norm.var, norm.calls)


def step_inputs(per: str, *, steps: int = 4) -> dict[str, Tensor]:
    """x, V0, gamma (of both signs) and beta in float64, such that about half of the neurons fire."""
    g = torch.Generator().manual_seed(3)
    count = math.prod(FEATURES) if per == "element" else FEATURES[0]
    gamma = torch.rand(count, generator=g, dtype=torch.float64) + 0.5
    return {
        "x": torch.randn(steps, 5, *FEATURES, generator=g, dtype=torch.float64) + 0.6,
        "v0": torch.rand(FEATURES, generator=g, dtype=torch.float64) * 1.5,
        "gamma": gamma * torch.where(torch.arange(count) % 3 == 1, -1.0, 1.0),
        "beta": torch.rand(count, generator=g, dtype=torch.float64) + 0.3,
    }


# --- the training step ---------------------------------------------------------------------------------

KINDS: dict[str, Dynamics] = {
    "IF": Dynamics(),
    "LIF": Dynamics(decay=0.5, gain=0.5, rest=0.25),
    "LIF-detached": Dynamics(decay=0.25, detach_reset=True, fires_at_equality=False),
    "Leaky-delayed": Dynamics(decay=0.9, timing="delayed", fires_at_equality=False, detach_reset=True),
}


def core_step(d: Dynamics, per: str, carry: str, inputs: dict[str, Tensor]) -> Step:
    norm = MembraneBatchNorm(FEATURES, per=per, carry=carry, eps=EPS, momentum=MOMENTUM).double()  # type: ignore[arg-type]
    with torch.no_grad():
        norm.bn.weight.copy_(inputs["gamma"])
        norm.bn.bias.copy_(inputs["beta"])
    x, v0 = inputs["x"].clone().requires_grad_(), inputs["v0"].clone().requires_grad_()

    def spike(u: Tensor) -> Tensor:
        return fire(u, ATan(2.0), fires_at_equality=d.fires_at_equality)

    decide = functional.decide_normalised(norm, d.threshold, spike, carry=norm.carry)
    result = functional.multistep(x, v0, d, decide=decide)
    v = result.membrane
    ((result.spikes * loss_weights(result.spikes)).sum() + (v * loss_weights(v)).sum()).backward()
    return step_of(result.spikes, v, norm, {"x": x, "v0": v0})


def step_of(spikes: Tensor, v: Tensor, norm: MembraneBatchNorm, leaves: dict[str, Tensor]) -> Step:
    """What a patched neuron did, in the form that `reference_step` returns."""
    leaves = {**leaves, "gamma": norm.bn.weight, "beta": norm.bn.bias}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    bn = norm.bn
    return Step(
        spikes.detach(), v.detach(), gradients, bn.running_mean, bn.running_var, int(bn.num_batches_tracked)
    )


def as_neuron(d: Dynamics, carry: str) -> Neuron:
    return Neuron(
        lambda x, v: d.decay * v + d.gain * x + (1 - d.decay) * d.rest,
        threshold=d.threshold,
        at_equality=d.fires_at_equality,
        reset=d.reset,
        rest=d.rest,
        delayed=d.timing == "delayed",
        detach=d.detach_reset,
        carry=carry,
    )


def with_reset(kind: str, reset: str) -> Dynamics:
    values = {**vars(KINDS[kind]), "reset": reset}
    return Dynamics(**values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
@pytest.mark.parametrize("carry", ["raw", "normalised"])
@pytest.mark.parametrize("per", ["channel", "element"])
def test_a_training_step_equals_the_equations(kind: str, reset: str, carry: str, per: str) -> None:
    d, inputs = with_reset(kind, reset), step_inputs(per)
    expected = reference_step(**inputs, per=per, neuron=as_neuron(d, carry))
    core_step(d, per, carry, inputs).check_equals(expected)


TWINS: dict[str, dict[str, Any]] = {
    "the other carry": {"carry": "normalised"},
    "the other reset": {"reset": "soft"},
    "a reset in the next step": {"delayed": True},
    "no gradient through the reset": {"detach": True},
    "another threshold": {"threshold": 0.9},
}


@pytest.mark.parametrize("twin", TWINS)
def test_the_comparison_sees_wrong_equations(twin: str) -> None:
    inputs = step_inputs("channel")
    right = as_neuron(Dynamics(), "raw")
    step = core_step(Dynamics(), "channel", "raw", inputs)
    step.check_equals(reference_step(**inputs, per="channel", neuron=right))
    wrong = Neuron(**{**vars(right), **TWINS[twin]})
    assert step.differs_from(reference_step(**inputs, per="channel", neuron=wrong))


def test_the_comparison_sees_statistics_over_all_steps() -> None:
    """Joint statistics over time are another method (TEBN's); T = 1 cannot tell them apart."""
    inputs = step_inputs("channel")
    x = inputs["x"].clone()
    norm = MembraneBatchNorm(FEATURES).double()
    joint = norm.bn(x.flatten(0, 1)).view_as(x)
    assert not torch.allclose(norm(x), joint, atol=1e-3)
    torch.testing.assert_close(norm(x[:1])[0], norm.bn(x[0]), rtol=0, atol=0)


# --- the norm ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["channel", "element"])
def test_statistics_are_over_one_step(per: str) -> None:
    norm = MembraneBatchNorm(FEATURES, per=per)  # type: ignore[arg-type]
    h = torch.randn(7, *FEATURES) * 3 + 2
    out = norm(h)
    over = 0 if per == "element" else (0, 2, 3)
    # float32: the mean of normalised values is zero up to rounding, their variance up to eps.
    torch.testing.assert_close(out.mean(over), torch.zeros_like(out.mean(over)), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        out.var(over, correction=0), torch.ones_like(out.mean(over)), rtol=1e-4, atol=0
    )
    assert norm.bn.num_features == (12 if per == "element" else 3)


@pytest.mark.parametrize("per", ["channel", "element"])
@pytest.mark.parametrize("training", [True, False])
def test_a_sequence_is_its_steps(per: str, training: bool) -> None:
    whole = MembraneBatchNorm(FEATURES, per=per).train(training)  # type: ignore[arg-type]
    steps = MembraneBatchNorm(FEATURES, per=per).train(training)  # type: ignore[arg-type]
    x = torch.randn(4, 5, *FEATURES)
    assert torch.equal(whole(x), torch.stack([steps(x_t) for x_t in x]))
    assert all(torch.equal(a, b) for a, b in zip(whole.buffers(), steps.buffers(), strict=True))
    assert int(whole.bn.num_batches_tracked) == (4 if training else 0), "one update per step"


def test_later_steps_weigh_more_in_the_running_statistics() -> None:
    """With momentum 0.1 and T = 4: 0.0729, 0.0810, 0.0900, 0.1000 (the published code's order)."""
    norm = MembraneBatchNorm((1,)).double()
    means = [1.0, 10.0, 100.0, 1000.0]
    norm(torch.tensor([[[m - 1], [m + 1]] for m in means], dtype=torch.float64))
    expected = sum(w * m for w, m in zip([0.0729, 0.081, 0.09, 0.1], means, strict=True))
    torch.testing.assert_close(norm.bn.running_mean.item(), expected, rtol=1e-12, atol=0)


def test_channels_last_and_one_step() -> None:
    norm = MembraneBatchNorm(FEATURES).eval()
    norm.bn.running_mean.uniform_()
    h = torch.randn(5, *FEATURES)
    assert torch.equal(norm(h.to(memory_format=torch.channels_last)), norm(h))
    assert torch.equal(norm(h[None]), norm(h)[None])
    element = MembraneBatchNorm(FEATURES, per="element").eval()
    element.bn.running_mean.uniform_()
    assert torch.equal(element(h.to(memory_format=torch.channels_last)), element(h))


def test_a_batch_of_one() -> None:
    """With space there is something to take statistics over; without it is a typed error."""
    assert MembraneBatchNorm(FEATURES)(torch.randn(1, *FEATURES)).shape == (1, *FEATURES)
    for norm, one in (
        (MembraneBatchNorm((3,)), torch.randn(1, 3)),
        (MembraneBatchNorm((3, 1, 1)), torch.randn(1, 3, 1, 1)),
        (MembraneBatchNorm(FEATURES, per="element"), torch.randn(1, *FEATURES)),
    ):
        with pytest.raises(OptionError, match=r"(?s)one value per channel.*do: train with more than one"):
            norm(one)
        assert int(norm.bn.num_batches_tracked) == 0
        assert norm.eval()(one).shape == one.shape


@pytest.mark.parametrize(
    ("per", "shape"),
    [
        ("channel", (5, 4, 2, 2)),
        ("channel", (5, 3, 2)),
        ("channel", (3,)),
        ("element", (5, 3, 4, 4)),
        ("element", (4, 5, 3, 4, 4)),
        ("element", (5, 2, 3, 2)),
    ],
)
def test_other_features_are_refused(per: str, shape: tuple[int, ...]) -> None:
    norm = MembraneBatchNorm(FEATURES, per=per)  # type: ignore[arg-type]
    with pytest.raises(ShapeMismatchError, match=r"(?s)features \[3, 2, 2\] per .*do: "):
        norm(torch.randn(shape))


def test_per_channel_the_resolution_is_free() -> None:
    assert MembraneBatchNorm(FEATURES)(torch.randn(5, 3, 4, 7)).shape == (5, 3, 4, 7)


def test_the_module_an_option_asks_for() -> None:
    option = MPBN(features="element", carry="normalised", eps=1e-3, momentum=0.3, affine=False)
    norm = membrane_batch_norm(option, FEATURES)
    assert (norm.per, norm.carry, norm.bn.eps, norm.bn.momentum) == ("element", "normalised", 1e-3, 0.3)
    assert list(norm.parameters()) == []
    assert norm.bn.num_features == 12
    assert isinstance(norm.bn, nn.modules.batchnorm._BatchNorm), "what SyncBatchNorm conversions look for"
    plain = membrane_batch_norm(MPBN(), FEATURES)
    assert [*plain.state_dict()] == [
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    ]
    assert repr(plain).startswith("MembraneBatchNorm(\n  features=[3, 2, 2], per='channel', carry='raw'")


def test_the_batch_norm_equals_torchs() -> None:
    for torchs, shape in ((nn.BatchNorm1d(3), (5, 3)), (nn.BatchNorm2d(3), (5, 3, 2, 4))):
        ours, x = BatchNorm(3), torch.randn(shape)
        assert torch.equal(ours(x), torchs(x))
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), torchs.buffers(), strict=True))


# --- the threshold it folds into -----------------------------------------------------------------------


def exact_threshold(theta: float, mean: float, var: float, gamma: float, beta: float, eps: float) -> Fraction:
    """theta' from the same binary values, in 60 decimal digits."""
    d = decimal.Decimal
    with decimal.localcontext(prec=60):
        return Fraction((d(theta) - d(beta)) * (d(var) + d(eps)).sqrt() / d(gamma) + d(mean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["number", "scalar", "per channel"])
def test_the_threshold_is_rounded_once(dtype: torch.dtype, form: str) -> None:
    """Within an ulp of the exact value, plus what float64 loses in the sum of its two terms.

    0.7 is no binary number, so that a threshold that passed through float32 shows in float64.
    """
    g = torch.Generator().manual_seed(5)
    n, eps = 200, 1e-5
    mean, beta, gamma = (torch.randn(n, generator=g, dtype=dtype) for _ in range(3))
    var = 10 ** (-12 * torch.rand(n, generator=g, dtype=dtype))
    threshold: Any = {
        "number": 0.7,
        "scalar": torch.tensor(0.7, dtype=dtype),
        "per channel": torch.rand(n, generator=g, dtype=dtype),
    }[form]
    folded, sign = functional.fold_threshold(
        threshold, mean, var, gamma, beta, eps=eps, fires_at_equality=True
    )
    assert folded.dtype is sign.dtype is dtype
    assert torch.equal(sign, gamma.sign())
    # What the neuron itself compares with: the number in its own dtype.
    thetas = torch.as_tensor(threshold, dtype=dtype).expand(n)
    for i in range(n):
        theta, m, *others = (t[i].item() for t in (thetas, mean, var, gamma, beta))
        exact = exact_threshold(theta, m, *others, eps)
        error = float(abs(Fraction(folded[i].item()) - exact))
        allowed = torch.finfo(dtype).eps * abs(float(exact)) + 2**-50 * (
            abs(float(exact - Fraction(m))) + abs(m)
        )
        assert error <= allowed, i


def test_eps_belongs_to_it() -> None:
    one = torch.ones(1)
    folded, _ = functional.fold_threshold(
        1.0, 0 * one, 1e-12 * one, one, 0 * one, eps=1e-4, fires_at_equality=True
    )
    torch.testing.assert_close(folded, torch.tensor([0.01]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("zero", "beta", "at_equality"), list(itertools.product([0.0, -0.0], [1.5, 1.0, 0.5], [True, False]))
)
def test_gamma_zero_is_a_constant_decision(zero: float, beta: float, at_equality: bool) -> None:
    norm = MembraneBatchNorm((1,)).eval()
    with torch.no_grad():
        norm.bn.weight.fill_(zero)
        norm.bn.bias.fill_(beta)
        norm.bn.running_mean.fill_(0.3)
    fires = beta > 1.0 or (at_equality and beta == 1.0)
    folded = norm.fold(1.0, fires_at_equality=at_equality)
    assert folded.threshold.item() == (-math.inf if fires else math.inf)
    assert folded.sign.item() == 1.0, "-0.0 too"
    h = torch.tensor([[-1e30], [-1.0], [0.0], [0.3], [1.0], [1e30]])
    decide = functional.decide_folded(folded.threshold, folded.sign, fires_at_equality=at_equality)
    assert torch.equal(decide(h)[0], torch.full_like(h, fires))

    def spike(u: Tensor) -> Tensor:
        return fire(u, ATan(), fires_at_equality=at_equality)

    assert torch.equal(functional.decide_normalised(norm, 1.0, spike)(h)[0], decide(h)[0])


def test_without_affine() -> None:
    norm = MembraneBatchNorm((2,), affine=False, eps=2**-10).eval()
    norm.bn.running_mean.copy_(torch.tensor([0.25, -0.5]))
    norm.bn.running_var.fill_(4 - 2**-10)
    folded = norm.fold(1.0, fires_at_equality=True)
    assert torch.equal(folded.threshold, torch.tensor([2.25, 1.5]))
    assert torch.equal(folded.sign, torch.ones(2))


def test_the_sign_of_gamma_is_the_direction() -> None:
    h = torch.tensor([[0.9, 0.9], [1.0, 1.0], [1.1, 1.1]])
    theta, sign = torch.ones(2), torch.tensor([1.0, -1.0])
    expected = {True: [[0, 1], [1, 1], [1, 0]], False: [[0, 1], [0, 0], [1, 0]]}
    for at_equality, spikes in expected.items():
        s, carried = functional.decide_folded(theta, sign, fires_at_equality=at_equality)(h)
        assert s.tolist() == spikes
        assert s.dtype is h.dtype
        assert carried is h, "the raw membrane is carried"


def test_plain_and_normalised_decisions() -> None:
    h = torch.tensor([[0.5, 1.0, 1.5]])
    s, carried = functional.decide_plain(Dynamics())(h)
    assert s.tolist() == [[0, 1, 1]]
    assert carried is h
    norm, spike = (lambda h: 2 * h), (lambda u: (u > 0).float())
    for carry, expected in (("raw", h), ("normalised", 2 * h)):
        s, carried = functional.decide_normalised(norm, 1.0, spike, carry=carry)(h)  # type: ignore[arg-type]
        assert s.tolist() == [[0, 1, 1]]
        assert torch.equal(carried, expected)


@pytest.mark.parametrize("per", ["channel", "element"])
def test_what_fold_returns(per: str) -> None:
    norm = MembraneBatchNorm(FEATURES, per=per).eval()  # type: ignore[arg-type]
    folded = norm.fold(1.0, fires_at_equality=True)
    shape = (3, 1, 1) if per == "channel" else FEATURES
    assert folded.threshold.shape == folded.sign.shape == shape
    assert [*folded.state_dict()] == ["threshold", "sign"]
    assert list(folded.parameters()) == []
    before = folded.threshold.clone()
    norm.bn.running_mean.add_(1)
    assert torch.equal(folded.threshold, before), "a copy, not a view of the statistics"
    blank = norm.blank_fold()
    assert blank.state_dict().keys() == folded.state_dict().keys()
    assert blank.threshold.shape == shape
    blank.load_state_dict(folded.state_dict())
    assert torch.equal(blank.threshold, before)


def test_blank_folds_have_the_dtype_of_the_norm() -> None:
    for affine in (True, False):
        assert MembraneBatchNorm((3,), affine=affine).double().blank_fold().threshold.dtype is torch.float64


def test_a_threshold_per_channel_or_element() -> None:
    thetas = torch.rand(3, 1, 1) + 0.5
    channel = MembraneBatchNorm(FEATURES, eps=2**-10).eval()
    channel.bn.running_var.fill_(1 - 2**-10)
    assert torch.equal(channel.fold(thetas, fires_at_equality=True).threshold, thetas)
    element = MembraneBatchNorm(FEATURES, per="element", eps=2**-10).eval()
    element.bn.running_var.fill_(1 - 2**-10)
    fine = torch.rand(FEATURES)
    assert torch.equal(element.fold(fine, fires_at_equality=True).threshold, fine)
    assert torch.equal(element.fold(thetas, fires_at_equality=True).threshold, thetas.expand(FEATURES))
    learnable = nn.Parameter(torch.tensor(1.5))
    folded = channel.fold(learnable, fires_at_equality=True)
    assert torch.equal(folded.threshold, torch.full((3, 1, 1), 1.5))
    assert not folded.threshold.requires_grad


# --- what it refuses -----------------------------------------------------------------------------------


def test_what_cannot_be_folded() -> None:
    untracked = MembraneBatchNorm(FEATURES).eval()
    untracked.bn.running_mean = untracked.bn.running_var = None
    norms: dict[str, tuple[MembraneBatchNorm, Any]] = {
        "training mode": (MembraneBatchNorm(FEATURES), 1.0),
        "carry='normalised'": (MembraneBatchNorm(FEATURES, carry="normalised").eval(), 1.0),
        "without running statistics": (untracked, 1.0),
        "finer than the norm per channel": (MembraneBatchNorm(FEATURES).eval(), torch.rand(FEATURES)),
    }
    for words, (norm, threshold) in norms.items():
        with pytest.raises(FoldError, match=words) as caught:
            norm.fold(threshold, fires_at_equality=True)
        assert str(caught.value).splitlines()[-1].startswith("  do: "), words


class Plain(NormalisedMembrane):
    """A neuron that fires at 1 and above, as an adapter would write it."""

    def __init__(self, norm: MembraneBatchNorm | FoldedMembraneNorm) -> None:
        super().__init__()
        self.mpbn = norm

    def firing_rule(self) -> FiringRule:
        return FiringRule(1.0, lambda u: fire(u, ATan()), fires_at_equality=True)


def test_the_mixin_decides_and_folds() -> None:
    neuron = Plain(MembraneBatchNorm((3,))).eval()
    h = torch.randn(50, 3) * 2
    before = neuron.membrane_decision()(h)[0]
    assert 0 < before.mean() < 1
    neuron.mpbn = neuron.folded().eval()
    assert torch.equal(neuron.membrane_decision()(h)[0], before)
    with pytest.raises(FoldError, match=r"(?s)folded already.*do: "):
        neuron.folded()
    with pytest.raises(FoldError, match=r"(?s)cannot be trained.*do: call model\.eval"):
        neuron.train().membrane_decision()


def test_an_adapter_must_say_how_it_fires() -> None:
    with pytest.raises(NotImplementedError):
        NormalisedMembrane().firing_rule()


@pytest.mark.parametrize(
    "bad",
    [
        {"features": "neuron"},
        {"carry": "both"},
        {"eps": 0.0},
        {"eps": True},
        {"momentum": 1.5},
        {"momentum": -1},
    ],
    ids=str,
)
def test_impossible_options(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"(?s)MPBN\(.*do: use"):
        MPBN(**bad)
