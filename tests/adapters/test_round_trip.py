"""unpatch(patch(m)) is m, on random trees of both frameworks' neurons."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

import snn_ext
from snn_ext import IMP
from tests.property.round_trip import check_copies, check_round_trip
from tests.property.trees import WIDTH, imp_options, trees

EXAMPLE = torch.linspace(-1, 3, 3 * 2 * WIDTH).view(3, 2, WIDTH)


def spikingjelly_neuron(draw: st.DrawFn) -> nn.Module:
    v_reset = draw(st.sampled_from([0.0, None, 0.25]))
    store = draw(st.booleans())
    common = {
        "v_reset": v_reset,
        "step_mode": "m",
        "store_v_seq": store,
        "surrogate_function": surrogate.ATan(),
    }
    kind = draw(st.sampled_from([neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode]))
    return kind(**common)  # type: ignore[no-any-return]


def spikingjelly_run(model: nn.Module) -> torch.Tensor:
    functional.reset_net(model)
    return model(EXAMPLE).detach()  # type: ignore[no-any-return]


@settings(max_examples=200, deadline=None)
@given(model=trees(spikingjelly_neuron), option=imp_options())
def test_spikingjelly(model: nn.Module, option: IMP) -> None:
    check_round_trip(model, option, EXAMPLE, spikingjelly_run)


@settings(max_examples=40, deadline=None)
@given(model=trees(spikingjelly_neuron), option=imp_options())
def test_spikingjelly_copies(model: nn.Module, option: IMP) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_copies(model, copy.deepcopy(model), option, EXAMPLE, spikingjelly_run, Path(folder))


def snntorch_neuron(draw: st.DrawFn) -> nn.Module:
    kind = draw(st.sampled_from([snntorch.Leaky, snntorch.Lapicque]))
    # a surrogate that pickles: snnTorch's own are closures
    return kind(  # type: ignore[no-any-return]
        beta=0.75,
        init_hidden=True,
        surrogate_disable=True,
        reset_mechanism=draw(st.sampled_from(["subtract", "zero", "none"])),
    )


def snntorch_run(model: nn.Module) -> torch.Tensor:
    snn_ext.reset(model)
    return torch.stack([model(x) for x in EXAMPLE]).detach()


@settings(max_examples=200, deadline=None)
@given(model=trees(snntorch_neuron), option=imp_options())
def test_snntorch(model: nn.Module, option: IMP) -> None:
    check_round_trip(model, option, EXAMPLE[0], snntorch_run)


@settings(max_examples=40, deadline=None)
@given(model=trees(snntorch_neuron), option=imp_options())
def test_snntorch_copies(model: nn.Module, option: IMP) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_copies(model, copy.deepcopy(model), option, EXAMPLE[0], snntorch_run, Path(folder))


def test_closure_surrogates_still_copy() -> None:
    """A net that cannot be pickled before the patch can still be deep-copied after it."""
    net = nn.Sequential(
        nn.Linear(WIDTH, WIDTH), snntorch.Leaky(beta=0.9, spike_grad=snn_surrogate.atan(), init_hidden=True)
    )
    snn_ext.patch(net, imp=True)
    expected = snntorch_run(net)
    snn_ext.reset(net)
    assert torch.equal(snntorch_run(copy.deepcopy(net)), expected)
