"""Recording whole networks with all methods, norms in loops included; and adapters that tell lies."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, IMP, MPBN, Dynamics, UnsupportedSiteError
from snn_ext.figures import record
from snn_ext.kernels import Call
from tests.traces import fingerprint

pytest.importorskip("spikingjelly", reason="the list of networks has those of both frameworks")
pytest.importorskip("snntorch", reason="the list of networks has those of both frameworks")

import snntorch as snn
from spikingjelly.activation_based import neuron

from tests.adapters.snntorch_nets import private_instances
from tests.adapters.whole_nets import CASES, T, each_step, outer_loop


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_whole_networks(name: str, training: bool) -> None:
    case = CASES[name]
    net = case.build()
    methods: dict[str, Any] = {"imp": IMP(), "mpbn": MPBN(), "bntt": BNTT()}
    snn_ext.patch(net, **methods, timesteps=T, example_input=case.example()).train(training)
    x = case.data()
    per_step = case.run in (each_step, outer_loop)
    snn_ext.reset(net)
    before = fingerprint(net)
    found = record(net, x.expand(T, *x.shape) if case.run is outer_loop else x, per_step=per_step)
    assert fingerprint(net) == before
    assert not found.skipped
    with torch.no_grad():
        again = case.run(net, x)
    output = found.output
    if per_step:
        output = tuple(torch.stack(part) for part in zip(*output, strict=True))
    if isinstance(again, Tensor):
        output, again = (output,), (again,)
    for recorded, ran in zip(output, again, strict=True):
        assert torch.equal(recorded, ran)


LIES: dict[str, Callable[[Call], Call]] = {
    "no V0": lambda call: replace(call, v0=None),
    "no state": lambda call: replace(call, v=None if call.v is None else torch.zeros_like(call.v)),
    "threshold": lambda call: replace(call, dynamics=replace(call.dynamics, threshold=0.9)),
    "reset": lambda call: replace(call, dynamics=_other_reset(call.dynamics)),
    "input": lambda call: replace(call, x=call.x * 1.1),
}


def _other_reset(d: Dynamics) -> Dynamics:
    return replace(d, reset="soft" if d.reset == "hard" else "hard")


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_an_adapter_that_tells_something_else_is_found_out(
    framework: str, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twins: wrong starts, states, thresholds, resets and inputs do not pass for membranes."""
    first: nn.Module = (
        neuron.IFNode() if framework == "spikingjelly" else snn.Leaky(beta=0.9, init_hidden=True)
    )
    net, x = nn.Sequential(nn.Linear(4, 32), first), torch.rand(6, 8, 4) * 3
    snn_ext.patch(net, imp=IMP(init=0.7))
    assert record(net, x, per_step=True)["1"].spikes.any()
    state = importlib.import_module(f"snn_ext_{framework}.state")
    honest = state.call_of
    monkeypatch.setattr(state, "call_of", lambda *args, **kwargs: LIES[lie](honest(*args, **kwargs)))
    before = fingerprint(net)
    with pytest.raises(UnsupportedSiteError, match="something else than its equations"):
        record(net, x, per_step=True)
    assert fingerprint(net) == before
