"""Marks on membranes: what is carried over, from which step, and which reset is still owed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import TimestepError
from snn_ext.patching.sequence import fired_by, is_carried, mark_like, mark_output, steps_behind

NEURON = nn.Identity()


def membrane() -> torch.Tensor:
    return torch.tensor([0.5, 0.0, 2.0])


def test_a_new_tensor_carries_nothing() -> None:
    mem = membrane()
    assert not is_carried(mem)
    assert steps_behind(mem, NEURON) == 0
    assert fired_by(mem) is None


def test_an_output_knows_its_step_and_its_spikes() -> None:
    mem, spikes = membrane(), torch.tensor([0.0, 0.0, 1.0])
    mark_output(mem, 3, spikes)
    assert is_carried(mem)
    assert steps_behind(mem, NEURON) == 3
    assert fired_by(mem) is spikes
    assert fired_by(mem.detach()) is spikes, "another tensor on the same memory"


def test_an_output_without_spikes_owes_no_reset() -> None:
    mem = membrane()
    mark_output(mem, 1)
    assert fired_by(mem) is None
    assert steps_behind(mem, NEURON) == 1


def test_an_uncounted_output_is_carried_but_has_no_step() -> None:
    mem = membrane()
    mark_output(mem)
    assert is_carried(mem)
    with pytest.raises(TimestepError, match=r"not from which step.\n  where: Identity\n  do: "):
        steps_behind(mem, NEURON)


def test_what_was_set_to_zero_owes_no_reset() -> None:
    mem, spikes = membrane() + 1, torch.ones(3)
    mark_output(mem, 1, spikes)
    mem[0] = 0
    after = fired_by(mem)
    assert after is not None
    assert after.tolist() == [0, 1, 1]


def test_carried_takes_over_the_step_and_the_spikes() -> None:
    mem, spikes = torch.tensor([0.5, 0.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    mark_output(mem, 5, spikes)
    new = mem * torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert not is_carried(new)
    assert snn_ext.carried(new, of=mem) is new
    assert steps_behind(new, NEURON) == 5
    owed = fired_by(new)
    assert owed is not None
    # ended; was zero before and goes on; goes on; did not fire
    assert owed.tolist() == [0, 1, 1, 0]
    assert fired_by(mem) is spikes


def test_carried_in_another_shape_keeps_the_spikes_as_they_are() -> None:
    mem, spikes = membrane(), torch.ones(3)
    mark_output(mem, 2, spikes)
    new = snn_ext.carried(torch.zeros(1, 3), of=mem)
    assert fired_by(new) is spikes
    assert steps_behind(new, NEURON) == 2


def test_carried_alone_marks_and_no_more() -> None:
    new = snn_ext.carried(membrane())
    assert is_carried(new)
    assert fired_by(new) is None
    with pytest.raises(TimestepError):
        steps_behind(new, NEURON)


def test_a_mark_like_that_of_an_uncounted_membrane() -> None:
    old, new, spikes = membrane(), membrane(), torch.ones(3)
    mark_like(new, old, spikes)  # old was never marked
    assert is_carried(new)
    assert fired_by(new) is spikes
    with pytest.raises(TimestepError):
        steps_behind(new, NEURON)


def test_a_part_of_a_memory_does_not_mark_all_of_it() -> None:
    whole = torch.zeros(4)
    mark_output(whole[:2], 1)
    assert not is_carried(whole)
    assert not is_carried(whole[:2])
