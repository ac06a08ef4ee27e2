"""Figures 1, 3 and 6 as numbers: against enumerations in exact fractions, and loops in plain numpy."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from snn_ext import OptionError, figures, kernels
from snn_ext.figures import firing_patterns, overhead, pattern_mapping

Cells = list[list[bool]]
SEVENTEEN = [Fraction(i, 16) for i in range(17)]
NINE, STARTS = [Fraction(i, 8) for i in range(9)], [Fraction(i, 4) for i in range(-4, 5)]


def enumerated(
    v0s: list[Fraction],
    weights: list[Fraction],
    *,
    reset: str = "soft",
    equality: bool = True,
    steps: int = 4,
    first_is: str = "most significant",
    decay: Fraction = Fraction(1),
) -> np.ndarray[Any, Any]:
    """Every pattern, weight and V0, in fractions: nothing rounds."""
    cells = [[False] * 2**steps for _ in range(2**steps)]
    places = [2 ** (steps - 1 - t) if first_is == "most significant" else 2**t for t in range(steps)]
    for bits, weight, v in itertools.product(itertools.product([0, 1], repeat=steps), weights, v0s):
        column = sum(place for place, bit in zip(places, bits, strict=True) if bit)
        row = 0
        for place, bit in zip(places, bits, strict=True):
            v = decay * v + weight * bit
            if v > 1 or (equality and v == 1):
                row += place
                v = v - 1 if reset == "soft" else Fraction(0)
        cells[row][column] = True
    return np.array(cells)


@pytest.mark.parametrize("equality", [True, False], ids=[">=", ">"])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("v0", ["0", "1/4", "-3/8", "1/2", "1", "3/2", "learnable"])
def test_figure_3_is_the_enumeration(v0: str, reset: str, equality: bool) -> None:
    learnable = v0 == "learnable"
    given: Any = v0 if learnable else float(Fraction(v0))
    found = pattern_mapping(given, reset=reset, fires_at_equality=equality)  # type: ignore[arg-type]
    starts, weights = (STARTS, NINE) if learnable else ([Fraction(v0)], SEVENTEEN)
    assert found.dtype == np.bool_
    assert np.array_equal(found, enumerated(starts, weights, reset=reset, equality=equality))
    assert np.array_equal(found, pattern_mapping(given, reset, equality, dtype="float64"))  # type: ignore[arg-type]


def test_figure_3_of_the_paper() -> None:
    cells = pattern_mapping()
    assert cells.shape == (16, 16)
    assert cells.sum() == 54
    assert pattern_mapping(0.25).sum() == 71
    assert pattern_mapping("learnable").sum() == 108
    assert np.array_equal(pattern_mapping(weights=[1.0]), np.eye(16, dtype=bool)), "the identity for weight 1"
    assert cells[0b0010, 0b0110], "column 0110 (input) to row 0010 (output): half of the weight, twice"
    assert not cells[0b0110, 0b0010]


@pytest.mark.parametrize(
    "wrong",
    [
        {"equality": False},
        {"reset": "hard"},
        {"first_is": "least significant"},
        {"decay": Fraction(1, 2)},
        {"weights": NINE},
        {"v0s": [Fraction(1, 4)]},
    ],
    ids=lambda w: next(iter(w)),
)
def test_figure_3_twins_differ(wrong: dict[str, Any]) -> None:
    """Every convention matters: each of these gives other cells."""
    arguments: dict[str, Any] = {"v0s": [Fraction(0)], "weights": SEVENTEEN} | wrong
    other = enumerated(arguments.pop("v0s"), arguments.pop("weights"), **arguments)
    assert not np.array_equal(pattern_mapping(), other)
    assert not np.array_equal(pattern_mapping(), pattern_mapping().T), "rows and columns are not the same"


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_figure_3_with_other_steps_and_sweeps(steps: int) -> None:
    weights = [Fraction(3, 8), Fraction(3, 2), Fraction(-1, 4), Fraction(5, 8)]
    starts = [Fraction(-1, 2), Fraction(7, 8), Fraction(2)]
    found = pattern_mapping(
        "learnable",
        steps=steps,
        weights=[float(w) for w in weights],
        v0_grid=torch.tensor([float(v) for v in starts]),
    )
    assert np.array_equal(found, enumerated(starts, weights, steps=steps))


@pytest.mark.parametrize(
    "wrong",
    [
        {"v0": "learned"},
        {"v0": True},
        {"v0": float("nan")},
        {"v0": [0.0]},
        {"v0": 0.0, "v0_grid": [0.0]},
        {"reset": "none"},
        {"steps": 0},
        {"steps": 13},
        {"steps": 2.0},
        {"weights": []},
        {"weights": "many"},
        {"weights": [[0.0]]},
        {"weights": [float("inf")]},
        {"dtype": "float16"},
        {"dtype": torch.int32},
    ],
    ids=str,
)
def test_figure_3_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="do:"):
        pattern_mapping(**wrong)


# --- Figure 1 -------------------------------------------------------------------------------------------


def by_hand(mode: str, kind: type[np.floating[Any]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One neuron after the other, number by number; V0 comes in as one more input before the first step."""
    membrane, fired = np.zeros((7, 32), kind), np.zeros((7, 32), bool)
    one, twelve = kind(1), kind(12)
    for k in range(7):
        x = one / twelve if mode == "imp" else one / kind(12 - k) - kind(1e-7)
        v = kind(0) + (kind(k) / twelve if mode == "imp" else kind(0))
        for t in range(32):
            v = v + x
            if v >= one:
                fired[k, t], v = True, v - one
            membrane[k, t] = v
    return membrane, fired


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", ["imp", "intensity"])
def test_figure_1_is_what_single_numbers_give(mode: Any, dtype: str) -> None:
    membrane, spikes = firing_patterns(mode, dtype)
    by_numbers, fired = by_hand(mode, getattr(np, dtype))
    assert (membrane.dtype, spikes.dtype) == (np.dtype(dtype), np.dtype(bool))
    assert np.array_equal(membrane, by_numbers)
    assert np.array_equal(spikes, fired)
    for same in (getattr(torch, dtype), getattr(np, dtype)):
        assert np.array_equal(firing_patterns(mode, same)[0], membrane)


def times(mode: Any, dtype: str) -> list[list[int]]:
    return [(np.flatnonzero(row) + 1).tolist() for row in firing_patterns(mode, dtype)[1]]


def test_figure_1_spike_times() -> None:
    for dtype in ("float32", "float64"):
        assert times("intensity", dtype)[0] == [13, 25]
        assert times("intensity", dtype)[6] == [7, 13, 19, 25, 31]
    assert times("imp", "float32")[0] == [13, 25]
    assert times("imp", "float64")[0] == [12, 24], "rounding decides where the threshold is met exactly"


def test_figure_1_initial_potentials_change_the_phase_only() -> None:
    for row in times("imp", "float32"):
        assert set(np.diff(row)) == {12}
    gaps = [set(np.diff(row)) for row in times("intensity", "float32")]
    assert gaps == [{12 - k} for k in range(7)]


def test_figure_1_in_exact_arithmetic_is_neither() -> None:
    """In fractions neuron k meets the threshold exactly, at t = 12 - k."""
    exact = []
    for k in range(7):
        v, fired = Fraction(k, 12), []
        for t in range(1, 33):
            v += Fraction(1, 12)
            if v >= 1:
                fired, v = [*fired, t], v - 1
        exact.append(fired)
    assert exact[0] == [12, 24]
    assert times("imp", "float32") != exact


@pytest.mark.parametrize(
    "wrong", [{"mode": "both"}, {"dtype": "bfloat16"}, {"dtype": torch.float16}], ids=str
)
def test_figure_1_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="do:"):
        firing_patterns(**wrong)


# --- Figure 6 -------------------------------------------------------------------------------------------


def test_overhead_measures_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.random.get_rng_state()
    found = overhead((16, 64), (1, 2, 3), rounds=2, batch=3, device="cpu")
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random numbers are not used up"
    assert (found.neurons, found.timesteps, found.rounds, found.batch) == ((16, 64), (1, 2, 3), 2, 3)
    for values in (found.plain, found.imp, found.ratio, found.low, found.high):
        assert values.shape == (3, 2)
        assert (values > 0).all()
    assert found.backend in kernels.NAMES
    assert capsys.readouterr() == ("", ""), "silent unless asked for progress"


def test_overhead_puts_every_case_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: a call takes T + N / 1000 seconds, twice as long with V0."""

    def told(ways: Any, rounds: int, device: str) -> dict[str, list[float]]:
        x = next(
            c.cell_contents for c in ways["plain"].__closure__ if getattr(c.cell_contents, "ndim", 0) == 3
        )
        steps, _, count = x.shape
        return {"plain": [steps + count / 1000] * rounds, "imp": [2 * (steps + count / 1000)] * rounds}

    monkeypatch.setattr("snn_ext.figures.cost.interleaved", told)
    found = overhead((10, 20), (3, 5, 7), rounds=2, device="cpu")
    assert np.allclose(found.plain, [[3.01, 3.02], [5.01, 5.02], [7.01, 7.02]])
    assert np.allclose(found.ratio, 2), "with V0 / without"


def test_overhead_trains_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = kernels.run

    def run(call: Any) -> Any:
        seen.append(call)
        return real(call)

    monkeypatch.setattr(kernels, "run", run)
    with torch.no_grad():
        overhead((8,), (2,), rounds=1, batch=4, device="cpu")
    assert {call.x.shape for call in seen} == {(2, 4, 8)}
    with_v0 = [call for call in seen if call.v0 is not None]
    assert 0 < len(with_v0) < len(seen)
    assert with_v0[-1].v0.shape == (8,)
    assert with_v0[-1].v0.grad is not None, "forward and backward"
    assert seen[0].x.grad is not None


@pytest.mark.parametrize(
    "wrong", [{"neurons": ()}, {"timesteps": (0,)}, {"rounds": 0}, {"batch": 1.5}, {"device": "tpu"}], ids=str
)
def test_overhead_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="do:"):
        overhead(**({"neurons": (4,), "timesteps": (1,)} | wrong))


def test_everything_public_is_documented() -> None:
    for name in figures.__all__:
        assert getattr(figures, name).__doc__
