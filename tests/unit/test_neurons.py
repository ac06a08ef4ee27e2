"""The stand-alone neuron: no framework, no adapter."""

from __future__ import annotations

import pytest
import torch

from snn_ext import IMP, Dynamics, OptionError, ShapeMismatchError, Time, functional, reset
from snn_ext.neurons import SpikingNeuron

SOFT = Dynamics(decay=0.5, reset="soft")


def test_a_sequence_starts_from_v0() -> None:
    neuron = SpikingNeuron(SOFT, imp=IMP(init=(0.5, 0.9)), features=(5,))
    x = torch.rand(4, 3, 5) * 2
    expected = functional.multistep(x, neuron.imp, SOFT)
    assert torch.equal(neuron(x), expected.spikes)
    assert torch.equal(neuron(x), expected.spikes), "every call is a sequence of its own"
    assert neuron.v is not None
    assert torch.equal(neuron.v, expected.membrane)


def test_v0_learns() -> None:
    neuron = SpikingNeuron(SOFT, imp=IMP(init=0.0, shape="channel"), features=(5, 2, 2))
    assert dict(neuron.named_parameters())["imp"].shape == (5, 1, 1)
    neuron(torch.rand(4, 3, 5, 2, 2)).sum().backward()
    assert neuron.imp.grad is not None
    assert bool((neuron.imp.grad != 0).all())


@pytest.mark.parametrize("timing", ["immediate", "delayed"])
def test_steps_equal_the_sequence(timing: str) -> None:
    d = Dynamics(decay=0.9, reset="soft", timing=timing)  # type: ignore[arg-type]
    whole = SpikingNeuron(d, imp=IMP(init=1.5), features=(5,))
    steps = SpikingNeuron(d, imp=IMP(init=1.5), features=(5,), time=Time.PER_CALL)
    x = torch.rand(6, 3, 5)
    assert torch.equal(torch.stack([steps(x_t) for x_t in x]), whole(x))
    assert not torch.equal(steps(x[0]), whole(x)[0]), "without a reset the sequence goes on"
    reset(torch.nn.Sequential(steps))
    assert torch.equal(steps(x[0]), whole(x)[0])


def test_another_batch_size_starts_anew() -> None:
    steps = SpikingNeuron(SOFT, imp=IMP(init=0.9), features=(5,), time=Time.PER_CALL)
    first = steps(torch.full((3, 5), 0.6))
    assert torch.equal(steps(torch.full((2, 5), 0.6)), first[:2])


def test_without_imp_it_starts_from_rest() -> None:
    d = Dynamics(decay=0.5, rest=0.25, reset="hard")
    x = torch.rand(4, 3, 5)
    neuron = SpikingNeuron(d)
    assert list(neuron.parameters()) == []
    assert torch.equal(neuron(x), functional.multistep(x, 0.25, d).spikes)
    same = SpikingNeuron(d, imp=IMP(init="rest"), features=(5,))
    assert torch.equal(same(x), neuron(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    neuron = SpikingNeuron(SOFT, imp=IMP(), features=(5,))
    spikes = neuron(torch.rand(4, 3, 5).to(dtype))
    assert spikes.dtype is dtype
    assert neuron.v is not None
    assert neuron.v.dtype is torch.promote_types(dtype, torch.float32)
    assert neuron.imp.dtype is torch.float32


def test_errors_teach() -> None:
    with pytest.raises(OptionError, match=r"do: use Time\.LEADING"):
        SpikingNeuron(time=Time.MERGED)
    with pytest.raises(ShapeMismatchError, match=r"do: "):
        SpikingNeuron(imp=IMP())
    neuron = SpikingNeuron(imp=IMP(), features=(5,))
    with pytest.raises(ShapeMismatchError, match=r"(?s)V0 of shape \[5\].*do: unpatch"):
        neuron(torch.rand(4, 3, 6))
