"""Patched neurons against a loop that repeats the framework's equations step by step, bit by bit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import snn_ext
from tests.adapters.spikingjelly_nets import SHAPES, Equations, patched_neuron, steps

FEATURES = (3, 2, 5)
KINDS = {
    "IF": Equations(kind="IF"),
    "LIF": Equations(kind="LIF", tau=2.7),
    "LIF, input not decayed": Equations(kind="LIF", tau=2.7, decay_input=False),
    "PLIF": Equations(kind="PLIF", tau=1.6),
    "PLIF, input not decayed": Equations(kind="PLIF", tau=1.6, decay_input=False),
}
Run = Callable[[Equations, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def _cases(kind: str, reset: float | None, seed: int) -> list[tuple[Equations, str | tuple[int, ...], int]]:
    """Every shape of V0, detached and not, with 1 to 6 steps and random thresholds."""
    rng = random.Random(seed)
    cases = []
    for shape, detach in itertools.product(SHAPES, (False, True)):
        equations = replace(KINDS[kind], reset=reset, detach=detach, threshold=rng.uniform(0.5, 1.5))
        cases.append((equations, shape, rng.randint(1, 6)))
    return cases


def _mismatches(kind: str, reset: float | None, mode: str, run: Run, *, squash: bool = False) -> int:
    """How many cases differ from `run` in any spike or membrane."""
    wrong = 0
    for equations, shape, timesteps in _cases(kind, reset, seed=7):
        option = snn_ext.IMP(shape=shape, squash="sigmoid" if squash else None)
        p = torch.rand(SHAPES[shape]) * 3 - 1
        node = patched_neuron(equations.node(mode, store_v_seq=True), p, FEATURES, option=option)
        x = torch.randn(timesteps, 4, *FEATURES) * 1.5
        _, spikes, membranes = run(equations, x, p.sigmoid() if squash else p)
        found = steps(node, x, mode)
        assert node.v_seq.shape == membranes.shape
        exact = torch.equal(found, spikes) and torch.equal(node.v_seq, membranes)
        exact = exact and torch.equal(node.v, membranes[-1])
        wrong += not exact
    return wrong


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("reset", [0.0, 0.3, -0.2, None])
@pytest.mark.parametrize("kind", KINDS)
def test_spikes_and_membranes_follow_the_equations(kind: str, reset: float | None, mode: str) -> None:
    assert _mismatches(kind, reset, mode, Equations.run) == 0


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("kind", KINDS)
def test_squashed_v0_follows_the_equations(kind: str, mode: str) -> None:
    assert _mismatches(kind, 0.0, mode, Equations.run, squash=True) == 0


def _after_decay(e: Equations, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V0 added to the first charge without the decay."""
    rest = torch.tensor(e.reset or 0.0)
    first = torch.cat([x[:1] + (v0 - rest) / e.gain, x[1:]])
    return e.run(first, rest)


def _as_reset_value(e: Equations, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V0 returns after every spike."""
    v = v0.expand(x.shape[1:])
    rows = []
    for x_t in x:
        h = e.charge(x_t, v)
        s = (h >= e.threshold).to(x.dtype)
        v = s * v0 + (1 - s) * h
        rows.append((h, s, v))
    return tuple(map(torch.stack, zip(*rows, strict=True)))


def _at_every_step(e: Equations, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The published single-step bug: every step is the first of a sequence."""
    rows = [[part[0] for part in e.run(x_t.unsqueeze(0), v0)] for x_t in x]
    return tuple(map(torch.stack, zip(*rows, strict=True)))


def _offset_from_reset(e: Equations, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V0 = v_reset + p instead of V0 = p."""
    return e.run(x, v0 + (e.reset or 0.0))


def _ignored(e: Equations, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return e.run(x, torch.tensor(e.reset or 0.0))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(
    ("wrong", "kind", "reset"),
    [
        (_after_decay, "LIF", 0.0),
        (_after_decay, "PLIF", None),
        (_as_reset_value, "IF", 0.0),
        (_at_every_step, "LIF", None),
        (_offset_from_reset, "IF", 0.3),
        (_ignored, "PLIF", 0.0),
    ],
)
def test_wrong_equations_are_noticed(wrong: Run, kind: str, reset: float | None, mode: str) -> None:
    cases = len(_cases(kind, reset, seed=7))
    assert _mismatches(kind, reset, mode, wrong) >= cases // 2


def test_both_step_modes_agree_and_may_be_mixed() -> None:
    x = torch.randn(6, 4, *FEATURES) * 1.5
    p = torch.rand(FEATURES) * 2 - 1
    nodes = [patched_neuron(KINDS["LIF"].node(mode), p, FEATURES) for mode in "sm"]
    whole = [steps(node, x, mode) for node, mode in zip(nodes, "sm", strict=True)]
    assert torch.equal(*whole)
    mixed = patched_neuron(KINDS["LIF"].node("m"), p, FEATURES)
    parts = [steps(mixed, x[:2], "m"), steps(mixed, x[2:3], "s"), steps(mixed, x[3:], "m")]
    assert torch.equal(torch.cat(parts), whole[0])
    assert torch.equal(mixed.v, nodes[0].v)


def test_a_soft_integrator_counts_its_start() -> None:
    """IF, soft reset, constant input in [0, theta], V0 in [0, theta): floor((V0 + T x) / theta) spikes."""
    timesteps, values = 8, torch.arange(16) / 16
    x = values.view(1, 16, 1).expand(timesteps, 16, 16)
    node = patched_neuron(Equations(kind="IF", reset=None).node("m"), values, (16,))
    counts = node(x).sum(0)
    expected = ((values.view(1, 16) + timesteps * values.view(16, 1)) / 1.0).floor()
    assert torch.equal(counts, expected)
    assert not torch.equal(counts, expected - values.view(1, 16).round())  # V0 is visible in the counts
