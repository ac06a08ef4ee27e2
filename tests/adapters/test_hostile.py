"""tests/property/test_hostile.py with the neurons and norms of the real frameworks.

25 examples each here, SNN_EXT_EXAMPLES sets another number (`make fuzz`).
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import snntorch
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import snn_ext
from snn_ext import IMP, OptionError, ShapeUnknownError, UnsupportedSiteError
from tests.property.hostile import Framework, hostile_models, hostile_options, inputs
from tests.property.test_hostile import check_neutral, check_patch
from tests.property.trees import WIDTH

EXAMPLES = int(os.environ.get("SNN_EXT_EXAMPLES", "25"))


# A model is never an adapter's fault: no AdapterError.
ACCEPTED = (OptionError, UnsupportedSiteError, ShapeUnknownError)


def spikingjelly_neuron(draw: st.DrawFn) -> nn.Module:
    kinds = [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode]
    rare = [neuron.QIFNode, neuron.EIFNode, neuron.IzhikevichNode]
    kind = draw(st.sampled_from([*kinds * 3, *rare]))
    options: dict[str, Any] = {
        "step_mode": draw(st.sampled_from(["m", "m", "m", "s"])),
        "v_threshold": draw(st.sampled_from([1.0, 0.5])),
        "surrogate_function": draw(st.sampled_from([surrogate.ATan(), surrogate.Sigmoid()])),
        "detach_reset": draw(st.booleans()),
    }
    if kind in kinds:
        options["v_reset"] = draw(st.sampled_from([0.0, None, -0.25]))
        options["store_v_seq"] = draw(st.booleans())
    return kind(**options)


SPIKINGJELLY = Framework(
    spikingjelly_neuron,
    lambda: layer.BatchNorm1d(WIDTH, step_mode="s"),
    {
        "recurrent": lambda: layer.ElementWiseRecurrentContainer(
            neuron.IFNode(), element_wise_function=lambda x, y: x + y, step_mode="m"
        ),
        "stepping": lambda: layer.MultiStepContainer(nn.Linear(WIDTH, WIDTH), neuron.LIFNode()),
        "adaptive": lambda: neuron.KLIFNode(step_mode="m"),
        "gated": lambda: neuron.GatedLIFNode(T=3),
        "parallel": lambda: neuron.PSN(T=3),
    },
)


def snntorch_neuron(draw: st.DrawFn) -> nn.Module:
    kind = draw(st.sampled_from([*[snntorch.Leaky] * 4, *[snntorch.Lapicque] * 2, snntorch.Synaptic]))
    options: dict[str, Any] = {
        "beta": draw(st.sampled_from([0.5, 0.9])),
        "threshold": draw(st.sampled_from([1.0, 0.5])),
        "learn_beta": draw(st.booleans()),
        "learn_threshold": draw(st.booleans()),
        "reset_mechanism": draw(st.sampled_from(["subtract", "zero", "none"])),
        "init_hidden": draw(st.sampled_from([True] * 7 + [False])),
        "surrogate_disable": draw(st.booleans()),
    }
    if kind is snntorch.Synaptic:
        options["alpha"] = 0.75
    return kind(**options)


SNNTORCH = Framework(
    snntorch_neuron,
    lambda: nn.BatchNorm1d(WIDTH),
    {
        "alpha": lambda: snntorch.Alpha(alpha=0.9, beta=0.8, init_hidden=True),
        "recurrent": lambda: snntorch.RLeaky(beta=0.5, all_to_all=False, init_hidden=True),
        "output": lambda: snntorch.Leaky(beta=0.5, init_hidden=True, output=True),
        "delayed": lambda: snntorch.Leaky(beta=0.5, init_hidden=True, reset_delay=False),
        "quantised": lambda: snntorch.Leaky(beta=0.5, init_hidden=True, state_quant=lambda v: v.round()),
    },
)

hostile = settings(
    max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)
shapes = st.sampled_from(["neuron", "channel", "layer"])


@hostile
@given(model=hostile_models(SPIKINGJELLY), options=hostile_options())
def test_spikingjelly_is_patched_completely_or_not_at_all(model: nn.Module, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event(f"patched: {check_patch(model, options, ACCEPTED)}")


@hostile
@given(model=hostile_models(SNNTORCH), options=hostile_options())
def test_snntorch_is_patched_completely_or_not_at_all(model: nn.Module, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event(f"patched: {check_patch(model, options, ACCEPTED)}")


@hostile
@given(model=hostile_models(SPIKINGJELLY), x=inputs(), shape=shapes)
def test_a_neutral_start_changes_nothing_in_spikingjelly(model: nn.Module, x: Any, shape: Any) -> None:
    check_neutral(model, x, shape, functional.reset_net)


@hostile
@given(model=hostile_models(SNNTORCH), x=inputs(), shape=shapes)
def test_a_neutral_start_changes_nothing_in_snntorch(model: nn.Module, x: Any, shape: Any) -> None:
    check_neutral(model, x, shape)


def test_snntorch_models_without_values() -> None:
    """Found here: describing their constants failed on the meta device."""
    neurons = snntorch.Leaky(beta=0.5, init_hidden=True), snntorch.Lapicque(beta=0.5, init_hidden=True)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), *neurons).to("meta")
    x = torch.rand(2, WIDTH, device="meta")
    plan = snn_ext.plan(net, imp=IMP(init="half"), mpbn=True, example_input=x)
    assert [row["step"] for row in plan.to_dict()["sites"]] == ["framework"] * 2
    plan.apply()
    assert net[1].imp.is_meta


def test_no_sites_inside_of_neurons_after_a_patch() -> None:
    """Found here: torch's batch norms in a part of a neuron were taken for the network's own."""
    for net, x in (
        (nn.Sequential(nn.Linear(WIDTH, WIDTH), neuron.LIFNode(step_mode="m")), torch.rand(3, 2, WIDTH)),
        (
            nn.Sequential(nn.Linear(WIDTH, WIDTH), snntorch.Leaky(beta=0.5, init_hidden=True)),
            torch.rand(2, WIDTH),
        ),
    ):
        options: dict[str, Any] = {"imp": True, "bntt": True, "timesteps": 3, "example_input": x}
        snn_ext.patch(net, **options)
        keys = list(net.state_dict())
        snn_ext.patch(net, **options)
        assert list(net.state_dict()) == keys
        assert [row.site for row in snn_ext.report(net).rows] == ["1"]
