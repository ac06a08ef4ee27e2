"""IMP's options: defaults, every accepted form, every refused one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from snn_ext import IMP, NeuronSpec, OptionError, ShapeMismatchError, Time
from snn_ext.neurons import initial_potential, potential_shape

SPEC = NeuronSpec(Time.LEADING, rest=-0.5, threshold=2.0)


def test_defaults_are_the_authors() -> None:
    assert IMP().init == (-0.2, 0.2)
    assert IMP(squash="sigmoid").init == (0.4, 0.6)
    assert (IMP().shape, IMP().squash) == ("neuron", None)


def test_options_are_frozen_and_comparable() -> None:
    assert IMP() == IMP(init=(-0.2, 0.2))
    assert IMP(init=[0, 1]) == IMP(init=(0.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        IMP().init = 0.0  # type: ignore[misc]


def test_options_survive_json() -> None:
    option = IMP(init=(0.1, 0.2), shape=(3, 1, 1))
    assert IMP(**option.to_dict()) == option


@pytest.mark.parametrize(
    "bad",
    [
        {"init": "zero"},
        {"init": (0.2, -0.2)},
        {"init": float("nan")},
        {"init": (0.0, float("inf"))},
        {"init": True},
        {"init": (1, 2, 3)},
        {"init": b"half"},
        {"init": "rest", "squash": "sigmoid"},
        {"init": (-0.2, 0.2), "squash": "sigmoid"},
        {"init": 1.0, "squash": "sigmoid"},
        {"squash": "tanh"},
        {"shape": "pixel"},
        {"shape": (3, 0)},
        {"shape": (3, -1)},
        {"shape": 3},
        {"shape": ("a",)},
    ],
    ids=str,
)
def test_impossible_options_teach(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"\n  do: use "):
        IMP(**bad)


@pytest.mark.parametrize(
    ("shape", "features", "expected"),
    [
        ("neuron", (3, 4, 5), (3, 4, 5)),
        ("channel", (3, 4, 5), (3, 1, 1)),
        ("channel", (3,), (3,)),
        ("layer", (3, 4, 5), ()),
        ("layer", None, ()),
        ((1, 4, 5), (3, 4, 5), (1, 4, 5)),
        ((5,), (3, 4, 5), (5,)),
        ((7,), None, (7,)),
    ],
)
def test_potential_shape(shape: Any, features: Any, expected: tuple[int, ...]) -> None:
    assert potential_shape(shape, features) == expected


@pytest.mark.parametrize(
    ("shape", "features"), [((4,), (3,)), ((1, 3), (3,)), ("neuron", ()), ("channel", None)]
)
def test_shapes_that_do_not_fit(shape: Any, features: Any) -> None:
    with pytest.raises(ShapeMismatchError, match=r"\n  do: "):
        potential_shape(shape, features)


def test_start_values() -> None:
    assert torch.equal(initial_potential(IMP(init=0.3), (2,), SPEC), torch.tensor([0.3, 0.3]))
    assert torch.equal(initial_potential(IMP(init="rest"), (2,), SPEC), torch.tensor([-0.5, -0.5]))
    half = initial_potential(IMP(init="half"), (1000,), SPEC)
    assert 0.9 <= half.min() < 0.92
    assert 1.08 < half.max() <= 1.1
    wide = initial_potential(IMP(), (1000,), SPEC)
    assert -0.2 <= wide.min() < -0.19
    assert 0.19 < wide.max() <= 0.2


def test_squashed_start_values_are_membrane_units() -> None:
    p = initial_potential(IMP(init=0.3, squash="sigmoid"), (4,), SPEC, dtype=torch.float64)
    torch.testing.assert_close(p.sigmoid().detach(), torch.full((4,), 0.3, dtype=torch.float64))


def test_half_follows_a_threshold_per_neuron() -> None:
    thresholds = torch.tensor([1.0, 3.0])
    spec = NeuronSpec(Time.PER_CALL, threshold=thresholds)
    v0 = initial_potential(IMP(init="half"), (2,), spec)
    assert bool(((v0 - thresholds / 2).abs() <= 0.1 + 1e-6).all())
    with pytest.raises(ShapeMismatchError, match="one threshold per value"):
        initial_potential(IMP(init="half", shape="layer"), (2,), spec)


def test_half_needs_a_threshold_and_squash_its_range() -> None:
    with pytest.raises(OptionError, match="needs a threshold"):
        initial_potential(IMP(init="half"), (2,), NeuronSpec(Time.LEADING, threshold=None))
    with pytest.raises(OptionError, match="outside"):
        initial_potential(IMP(init="half", squash="sigmoid"), (2,), NeuronSpec(Time.LEADING, threshold=9.0))
