"""Every build of the kernels against the reference: no spike differs, gradients agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snn_ext.kernels import reference_backend
from tests.kernels import cases, harness
from tests.kernels.cases import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_all_builds_are_equal(family: str) -> None:
    calls = cases.calls(FAMILIES[family])
    harness.prepare(calls)
    for seed, call in enumerate(calls):
        harness.check(call, harness.runs(call), seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inputs_can_tell(family: str) -> None:
    """Neurons fire, and the dyadic inputs hit thresholds exactly: the other comparison fires differently."""
    rate, ties = [], 0
    for call in cases.calls(FAMILIES[family]):
        d = call.dynamics
        other = replace(call, dynamics=replace(d, fires_at_equality=not d.fires_at_equality))
        with torch.no_grad():
            spikes, others = (reference_backend.run(c).spikes for c in (call, other))
        rate.append(float(spikes.float().mean()))
        ties += int((spikes != others).sum())
    assert 0.1 < sum(rate) / len(rate) < 0.9
    assert ties > 0
