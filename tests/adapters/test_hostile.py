"""tests/property/test_hostile.py with the neurons and norms of the real frameworks.

25 examples each here, SNN_EXT_EXAMPLES sets another number (`make fuzz`).
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import snntorch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from tests.property.hostile import Framework, hostile_models, hostile_options, inputs
from tests.property.test_hostile import check_neutral, check_patch
from tests.property.trees import WIDTH

EXAMPLES = int(os.environ.get("SNN_EXT_EXAMPLES", "25"))


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
        event(f"patched: {check_patch(model, options)}")


@hostile
@given(model=hostile_models(SNNTORCH), options=hostile_options())
def test_snntorch_is_patched_completely_or_not_at_all(model: nn.Module, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event(f"patched: {check_patch(model, options)}")


@hostile
@given(model=hostile_models(SPIKINGJELLY), x=inputs(), shape=shapes)
def test_a_neutral_start_changes_nothing_in_spikingjelly(model: nn.Module, x: Any, shape: Any) -> None:
    check_neutral(model, x, shape, functional.reset_net)


@hostile
@given(model=hostile_models(SNNTORCH), x=inputs(), shape=shapes)
def test_a_neutral_start_changes_nothing_in_snntorch(model: nn.Module, x: Any, shape: Any) -> None:
    check_neutral(model, x, shape)
