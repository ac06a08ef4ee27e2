"""MPBN re-implements the framework's step: with a norm that changes nothing, no bit may differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron

import snn_ext
from snn_ext import MPBN

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "IF": (neuron.IFNode, {}),
    "LIF": (neuron.LIFNode, {"tau": 3.7}),
    "LIF without decay_input": (neuron.LIFNode, {"tau": 2.3, "decay_input": False}),
    "PLIF": (neuron.ParametricLIFNode, {"init_tau": 2.7}),
    "PLIF without decay_input": (neuron.ParametricLIFNode, {"init_tau": 2.7, "decay_input": False}),
}


@pytest.mark.parametrize("v_reset", [0.0, 0.3, None])
@pytest.mark.parametrize("kind", KINDS)
def test_an_identity_norm_changes_no_bit(kind: str, v_reset: float | None) -> None:
    make, options = KINDS[kind]
    plain, patched = (make(v_reset=v_reset, step_mode="m", **options).eval() for _ in range(2))
    x = torch.randn(6, 4, 5) * 2
    snn_ext.patch(patched, mpbn=True, example_input=x).eval()
    patched.mpbn.bn.eps = 0.0
    spikes = plain(x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(patched(x), spikes)
    assert torch.equal(patched.v, plain.v)
    patched.reset()
    patched.mpbn.bn.running_mean.fill_(0.3)
    assert not torch.equal(patched(x), spikes), "the twin: a norm that does something is seen"


@pytest.mark.parametrize(("tau", "decay_input"), [(2.0, False), (3.3, True), (1.7, False)])
def test_normalised_carry_is_spikingjellys_own_variant(tau: float, decay_input: bool) -> None:
    theirs = neuron.MPBNLIFNode(tau=tau, decay_input=decay_input, step_mode="m", out_channels=5)
    ours = neuron.LIFNode(tau=tau, decay_input=decay_input, step_mode="m")
    x = torch.rand(4, 3, 5, 6, 6) * 3
    snn_ext.patch(ours, mpbn=MPBN(carry="normalised"), example_input=x)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.v, theirs.v)
    assert torch.equal(ours.mpbn.bn.running_var, theirs.vbn.running_var)
