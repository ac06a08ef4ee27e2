"""The fold of MPBN into a threshold and a sign is exact: no spike differs.

One exception is inherent: where the charged membrane H is within rounding of the threshold theta', the two
sides of the inequality round differently. `rounding_bound` says how near that is; only spikes behind such
an event are left out, and they are counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_ext import Dynamics, functional
from snn_ext.functional import Decide, decide_folded, decide_normalised, multistep
from snn_ext.norms import FoldedMembraneNorm, MembraneBatchNorm
from snn_ext.surrogates import ATan, fire

__all__ = ["Tally", "randomise", "rounding_bound"]


def rounding_bound(h: Tensor, threshold: float | Tensor, norm: MembraneBatchNorm) -> Tensor:
    """How near H must be to theta' for rounding alone to decide, in membrane units; shape of `h`.

    Batch norm in eval mode computes y = H * a + (beta - mu * a) with a = gamma / sqrt(var + eps). In units
    u of the last place (half an eps), a is off by 4 |a| (a sum, a root, a division, a product), H * a
    by 5 |H * a|, the constant by 5 |mu * a| and 1 of its own size, the sum by 1 of its size (near
    the threshold: theta), theta by 1 if it had to be rounded to the dtype; and theta' by 1 |theta'|.
    Divided by |a| that is at most u (5 |H| + 7 |mu| + (3 |theta| + 2 |beta|) / |a|); 8 covers all, and
    the second order. With gamma = 0 nothing depends on H, so nothing may differ: the bound is 0.
    """
    bn, shape = norm.bn, norm._stat_shape
    u = torch.finfo(h.dtype).eps / 2
    mean, var = (t.double().view(shape) for t in (bn.running_mean, bn.running_var))
    ones = torch.ones_like(mean)
    gamma = ones if bn.weight is None else bn.weight.detach().double().view(shape)
    beta = 0 * ones if bn.bias is None else bn.bias.detach().double().view(shape)
    theta = torch.as_tensor(threshold).detach().double().abs()
    slope = gamma.abs() / (var + bn.eps).sqrt()
    reach = 8 * u * (h.double().abs() + mean.abs() + (theta + beta.abs()) / slope)
    return torch.where(slope == 0, 0.0, reach)


@dataclass
class Tally:
    """Counts over many examples, and the one comparison."""

    inputs: set[tuple[Any, ...]] = field(default_factory=set)
    decisions: int = 0
    spikes: int = 0
    left_out: int = 0
    mismatches: int = 0

    def tried(self, x: Tensor) -> None:
        """Note the input of an example: hypothesis may try one many times."""
        self.inputs.add((x.dtype, *x.shape, *x.flatten().tolist()))

    def compare(self, spikes: Tensor, folded: Tensor, near: Tensor) -> int:
        """Spikes [T, B, *] that differ; left out is what a neuron does from its first `near` event on,
        since its reset may differ from there."""
        after = near.cumsum(0) > 0
        wrong = int(((spikes != folded) & ~after).sum())
        self.decisions += spikes.numel()
        self.spikes += int(spikes.sum())
        self.left_out += int(after.sum())
        self.mismatches += wrong
        return wrong

    def check_worth(self, examples: int, *, left_out: float = 0.01) -> None:
        """Enough different examples, neither silent nor always firing, and hardly anything left out."""
        assert len(self.inputs) >= 0.98 * examples
        assert 0.1 < self.spikes / self.decisions < 0.9
        assert self.left_out < left_out * self.decisions, f"{self.left_out} of {self.decisions} left out"


def _gamma(r: random.Random) -> float:
    kind = r.choice(["zero", "negative zero", "tiny", "any", "any", "any", "any"])
    sign = r.choice([-1.0, 1.0])
    sizes = {"zero": 0.0, "negative zero": -0.0, "tiny": sign * r.choice([1e-3, 1e-6, 1e-30])}
    return sizes.get(kind, sign * r.uniform(0.05, 2.0))


def _beta(r: random.Random, gamma: float, threshold: float) -> float:
    """With a tiny gamma and beta at the threshold nothing but rounding would decide: not that."""
    at = 0.0 if 0 < abs(gamma) < 1e-4 else threshold
    return r.choice([0.0, at, r.uniform(-1, 2), r.uniform(-1, 2)])


def randomise(norm: MembraneBatchNorm, r: random.Random, threshold: float = 1.0) -> None:
    """Statistics and affine: gamma of any sign, zeros and -0.0, variances from 1e-12 to 1, beta often
    exactly at the threshold (which decides where gamma is 0)."""
    bn = norm.bn
    n = bn.num_features
    values: dict[str, list[float]] = {
        "running_mean": [r.uniform(-1, 1) for _ in range(n)],
        "running_var": [10 ** r.uniform(-12, 0) for _ in range(n)],
    }
    if bn.affine:
        gammas = [_gamma(r) for _ in range(n)]
        values["weight"], values["bias"] = gammas, [_beta(r, gamma, threshold) for gamma in gammas]
    with torch.no_grad():
        for name, numbers in values.items():
            getattr(bn, name).copy_(torch.tensor(numbers, dtype=torch.float64))


@dataclass(frozen=True)
class Case:
    """A random neuron with a norm, and an input that brings its membrane to the threshold."""

    dynamics: Dynamics
    norm: MembraneBatchNorm
    x: Tensor

    def spike(self, u: Tensor) -> Tensor:
        return fire(u, ATan(), fires_at_equality=self.dynamics.fires_at_equality)

    def fold(self) -> FoldedMembraneNorm:
        d = self.dynamics
        return self.norm.fold(d.threshold, fires_at_equality=d.fires_at_equality)

    def run(self, decide: Decide, dynamics: Dynamics | None = None) -> tuple[Tensor, Tensor]:
        """Spikes, and the charged membranes they were decided on."""
        charged = []

        def note(h: Tensor) -> tuple[Tensor, Tensor]:
            charged.append(h)
            return decide(h)

        with torch.no_grad():
            spikes = multistep(self.x, 0.0, dynamics or self.dynamics, decide=note).spikes
        return spikes, torch.stack(charged)

    def unfolded(self, carry: Any = "raw") -> tuple[Tensor, Tensor]:
        return self.run(decide_normalised(self.norm, self.dynamics.threshold, self.spike, carry=carry))

    def folded(self) -> tuple[Tensor, Tensor]:
        f = self.fold()
        return self.run(decide_folded(f.threshold, f.sign, fires_at_equality=self.dynamics.fires_at_equality))

    def near(self, h: Tensor) -> Tensor:
        """Where rounding alone may decide."""
        distance = (h.double() - self.fold().threshold.double()).abs()
        return distance <= rounding_bound(h, self.dynamics.threshold, self.norm)


def random_case(r: random.Random) -> Case:
    dtype = r.choice([torch.float32, torch.float64])
    features = r.choice([(1,), (3,), (2, 3), (3, 2, 2)])
    norm = MembraneBatchNorm(
        features,
        per=r.choice(["channel", "element"]),
        eps=r.choice([1e-5, 1e-5, 1e-3, 1e-12]),
        affine=r.random() < 0.9,
    )
    norm = norm.to(dtype).eval()
    theta = r.choice([1.0, 0.5, 0.7])
    randomise(norm, r, theta)
    d = Dynamics(
        decay=r.choice([1.0, 0.5, 0.25, 0.9]),
        gain=r.choice([1.0, 0.5]),
        threshold=theta,
        rest=r.choice([0.0, 0.0, 0.25]),
        reset=r.choice(["hard", "soft", "none"]),
        timing=r.choice(["immediate", "delayed"]),
        fires_at_equality=r.choice([True, False]),
    )
    return Case(d, norm, _driving_input(r, norm, d, dtype, (r.randint(1, 6), r.randint(1, 3), *features)))


def _driving_input(
    r: random.Random, norm: MembraneBatchNorm, d: Dynamics, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    """Around what holds the membrane near theta' (or near mu, where theta' is out of reach)."""
    bn, stats = norm.bn, norm._stat_shape
    g = torch.Generator().manual_seed(r.randrange(2**31))
    mean, var = bn.running_mean.double().view(stats), bn.running_var.double().view(stats)
    gamma = torch.ones(()) if bn.weight is None else bn.weight.detach().double().view(stats)
    beta = torch.zeros(()) if bn.bias is None else bn.bias.detach().double().view(stats)
    centre = ((d.threshold - beta) * (var + bn.eps).sqrt() / gamma).nan_to_num(0).clamp(-2, 2) + mean
    spread = r.choice([0.01, 0.1, 1.0])
    noise = torch.randn(shape, generator=g, dtype=torch.float64) * spread
    return ((centre * r.choice([1.0, 1 - d.decay * 0.9]) + noise) / d.gain).to(dtype)


EXAMPLES = 1400


def test_no_spike_differs() -> None:
    tally = Tally()

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(r=st.randoms(use_true_random=True))  # else half of the examples are others again
    def check(r: random.Random) -> None:
        case = random_case(r)
        tally.tried(case.x)
        spikes, h = case.unfolded()
        assert tally.compare(spikes, case.folded()[0], case.near(h)) == 0

    check()
    tally.check_worth(EXAMPLES)


# --- deliberately wrong folds --------------------------------------------------------------------------


def no_sign_flip(case: Case) -> tuple[Tensor, Tensor]:
    f = case.fold()
    at_equality = case.dynamics.fires_at_equality
    return case.run(decide_folded(f.threshold, torch.ones_like(f.sign), fires_at_equality=at_equality))


def resets_by_the_folded_threshold(case: Case) -> tuple[Tensor, Tensor]:
    f, d = case.fold(), case.dynamics
    decide = decide_folded(f.threshold, f.sign, fires_at_equality=d.fires_at_equality)
    return case.run(decide, replace(d, threshold=f.threshold))


def without_eps(case: Case) -> tuple[Tensor, Tensor]:
    d, bn, shape = case.dynamics, case.norm.bn, case.norm._stat_shape
    theta, sign = functional.fold_threshold(
        d.threshold,
        bn.running_mean,
        bn.running_var,
        bn.weight,
        bn.bias,
        eps=0.0,
        fires_at_equality=d.fires_at_equality,
    )
    return case.run(decide_folded(theta.view(shape), sign.view(shape), fires_at_equality=d.fires_at_equality))


def the_other_strictness(case: Case) -> tuple[Tensor, Tensor]:
    f = case.fold()
    return case.run(decide_folded(f.threshold, f.sign, fires_at_equality=not case.dynamics.fires_at_equality))


def cases(count: int = 300) -> list[Case]:
    return [random_case(random.Random(seed)) for seed in range(count)]


def failing(wrong: Callable[[Case], tuple[Tensor, Tensor]], among: list[Case], carry: str = "raw") -> int:
    """How many of the cases show a mismatch that rounding does not excuse."""
    found = 0
    for case in among:
        spikes, h = case.unfolded(carry)
        found += Tally().compare(spikes, wrong(case)[0], case.near(h)) > 0
    return found


def test_the_right_fold_passes_where_wrong_ones_are_tried() -> None:
    assert failing(Case.folded, cases()) == 0


def test_a_fold_without_the_sign_is_caught() -> None:
    negative = [c for c in cases() if bool((c.fold().sign < 0).any())]
    assert failing(no_sign_flip, negative) > 0.8 * len(negative) > 0


def test_a_soft_reset_by_the_folded_threshold_is_caught() -> None:
    soft = [c for c in cases() if c.dynamics.reset == "soft" and len(c.x) > 2]
    assert failing(resets_by_the_folded_threshold, soft) > 0.3 * len(soft) > 0


def test_a_fold_without_eps_is_caught_by_tiny_variances() -> None:
    def tiny(case: Case) -> bool:
        return case.norm.bn.eps >= 1e-5 and bool((case.norm.bn.running_var < 1e-6).any())

    among = [c for c in cases() if tiny(c)]
    assert failing(without_eps, among) > 0.1 * len(among) > 0


def test_a_folded_normalised_carry_is_caught() -> None:
    """It cannot be folded, which `MembraneBatchNorm.fold` says; here is why."""
    long = [c for c in cases() if len(c.x) > 2]
    assert failing(Case.folded, long, carry="normalised") > 0.3 * len(long) > 0


# --- exactly at the threshold, and within rounding of it -----------------------------------------------


def lattice(at_equality: bool, dtype: torch.dtype, *, gamma: list[float], reset: str) -> Case:
    """All values are short binary fractions and var + eps = 1, so that nothing is ever rounded."""
    n = len(gamma)
    norm = MembraneBatchNorm((n,), eps=2**-10).to(dtype).eval()
    with torch.no_grad():
        norm.bn.weight.copy_(torch.tensor(gamma))
        norm.bn.bias.copy_(torch.arange(n) % 5 / 4)
        norm.bn.running_mean.copy_(torch.arange(n) % 3 / 8 - 0.25)
        norm.bn.running_var.fill_(1 - 2**-10)
    d = Dynamics(decay=0.5, reset=reset, fires_at_equality=at_equality)  # type: ignore[arg-type]
    x = torch.randint(-8, 9, (4, 128, n), generator=torch.Generator().manual_seed(1)) / 4
    return Case(d, norm, x.to(dtype))


GAMMAS = [1.0, -1.0, 2.0, -0.5, 0.0, -0.0, 0.25, -2.0, 1.0, -1.0, 0.0, -0.0, 0.5, -4.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_equality", [True, False])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_equality_is_decided_as_before(dtype: torch.dtype, at_equality: bool, reset: str) -> None:
    """Without rounding nothing is left out, not even H = theta'."""
    case = lattice(at_equality, dtype, gamma=GAMMAS, reset=reset)
    (spikes, h), (folded, _) = case.unfolded(), case.folded()
    assert int((h == case.fold().threshold).sum()) > 50, "H = theta' happens"
    assert torch.equal(spikes, folded)
    assert not torch.equal(spikes, the_other_strictness(case)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rounding_bound_is_tight(dtype: torch.dtype) -> None:
    """Membranes 0 to 150 units in the last place from theta': some decisions differ, all of them inside
    the bound, and the bound is a few units of the largest term."""
    g = torch.Generator().manual_seed(2)
    n = 3000
    norm = MembraneBatchNorm((n,)).to(dtype).eval()
    randomise(norm, random.Random(4))
    with torch.no_grad():
        gamma = torch.rand(n, generator=g, dtype=torch.float64) + 0.05
        norm.bn.weight.copy_(gamma * torch.where(torch.rand(n, generator=g) < 0.5, -1, 1))
        folded = norm.fold(1.0, fires_at_equality=True)
        size = rounding_bound(folded.threshold[None], 1.0, norm) / 8
        steps = torch.arange(-150, 151, dtype=torch.float64).view(-1, 1) / 10
        h = (folded.threshold.double() + steps * size).to(dtype)
        before = norm(h) >= 1.0
        after = decide_folded(folded.threshold, folded.sign, fires_at_equality=True)(h)[0].bool()
    differs = before != after
    distance = (h.double() - folded.threshold.double()).abs()
    near = distance <= rounding_bound(h, 1.0, norm)
    assert int(differs.sum()) > 0, "rounding does flip decisions, so that leaving some out is needed"
    assert not bool((differs & ~near).any())
    assert bool((~near).any())
    # Not needlessly wide: somewhere rounding reaches a tenth of it.
    assert float((distance / rounding_bound(h, 1.0, norm))[differs].max()) > 0.1


def test_out_of_reach_thresholds_are_constant_decisions() -> None:
    """gamma so small that theta' overflows float32 to infinity: still what batch norm decides."""
    norm = MembraneBatchNorm((4,)).eval()
    with torch.no_grad():
        norm.bn.weight.copy_(torch.tensor([1e-38, -1e-38, 1e-38, -1e-38]))
        norm.bn.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 2.0]))
        norm.bn.running_var.fill_(400.0)
    folded = norm.fold(1.0, fires_at_equality=True)
    assert folded.threshold.isinf().all()
    h = torch.linspace(-5, 5, 11)[:, None].expand(11, 4)
    decide = decide_folded(folded.threshold, folded.sign, fires_at_equality=True)
    assert torch.equal(decide(h)[0], (norm(h) >= 1.0).to(h))
    assert decide(h)[0][0].tolist() == [0, 0, 1, 1]
    assert math.isinf(folded.threshold[0])
