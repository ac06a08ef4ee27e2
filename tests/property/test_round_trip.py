"""unpatch(patch(m)) is m, on random trees of the toy framework."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import snn_ext
from snn_ext import IMP
from tests.property.round_trip import check_copies, check_round_trip
from tests.property.trees import WIDTH, imp_options, trees
from tests.toy import LeadingNeuron, Odd, StepNeuron

EXAMPLE = torch.linspace(-1, 3, 3 * 2 * WIDTH).view(3, 2, WIDTH)


def toy_neuron(draw: st.DrawFn) -> nn.Module:
    return draw(st.sampled_from([LeadingNeuron, LeadingNeuron, Odd]))()


def run(model: nn.Module) -> torch.Tensor:
    snn_ext.reset(model)
    return model(EXAMPLE)  # type: ignore[no-any-return]


@settings(max_examples=200, deadline=None)
@given(model=trees(toy_neuron), option=imp_options())
def test_round_trip_in_place(model: nn.Module, option: IMP) -> None:
    if not any(isinstance(m, LeadingNeuron) for m in model.modules()):
        model = nn.Sequential(model, LeadingNeuron())
    check_round_trip(model, option, EXAMPLE, run)


@settings(max_examples=100, deadline=None)
@given(model=trees(lambda draw: StepNeuron()), option=imp_options())
def test_round_trip_with_new_objects(model: nn.Module, option: IMP) -> None:
    example = EXAMPLE[0]

    def step(net: nn.Module) -> torch.Tensor:
        snn_ext.reset(net)
        return net(example)  # type: ignore[no-any-return]

    output, keys = step(model), list(model.state_dict())
    modules = dict(model.named_modules(remove_duplicate=False))
    snn_ext.patch(model, imp=option, example_input=example)
    step(model)
    snn_ext.unpatch(model)
    assert list(model.state_dict()) == keys
    assert all(m is modules[n] for n, m in model.named_modules(remove_duplicate=False))
    assert torch.equal(step(model), output)


@settings(max_examples=50, deadline=None)
@given(model=trees(toy_neuron), option=imp_options())
def test_copies(model: nn.Module, option: IMP) -> None:
    model = nn.Sequential(model, LeadingNeuron())
    with tempfile.TemporaryDirectory() as folder:
        check_copies(model, copy.deepcopy(model), option, EXAMPLE, run, Path(folder))
