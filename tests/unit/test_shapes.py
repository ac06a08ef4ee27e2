"""Tracing where a framework calls its neurons past their forward, and who runs a site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, Dynamics, NeuronSpec, Time, hookimpl
from snn_ext.patching.decision import Decision
from snn_ext.patching.sites import Site
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered

X = torch.rand(3, 2, 4)


class Optimised(nn.Sequential):
    """Calls `sequence` of its neurons: no forward, no hooks."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module.sequence(x) if isinstance(module, Neuron) else module(x)
        return x


class Watching(ToyAdapter):
    """Knows that frameworks do this."""

    @hookimpl
    def snn_ext_watch(self, module: Any, note: Callable[[tuple[Any, ...]], None]) -> None:
        if isinstance(module, Neuron):
            sequence = module.sequence

            def noted(x: Tensor) -> Tensor:
                note((x,))
                return sequence(x)

            module.__dict__["sequence"] = noted


@pytest.mark.parametrize(("adapter", "origin"), [(Watching, "traced"), (ToyAdapter, "")])
def test_adapters_tell_of_calls_that_nobody_sees(adapter: type[ToyAdapter], origin: str) -> None:
    net = Optimised(nn.Linear(4, 5), Neuron())
    with registered(adapter()):
        if not origin:
            with pytest.raises(snn_ext.NothingMatchedError, match="never called with example_input"):
                snn_ext.plan(net, imp=True, example_input=X)
            return
        (decision,) = snn_ext.plan(net, imp=True, example_input=X).decisions
    assert (decision.features, decision.origin) == ((5,), origin)
    assert "sequence" not in net[1].__dict__


@pytest.fixture
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


@pytest.mark.parametrize("backend", ["reference", "framework"])
def test_a_report_says_who_takes_the_steps_as_the_plan_did(backend: str, toy_framework: None) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Neuron())
    plan = snn_ext.plan(net, imp=True, example_input=X, backend=backend)
    assert plan.to_dict()["sites"][0]["step"] == backend
    assert snn_ext.report(plan.apply()).rows[0].step == backend


def test_rows_of_neurons_that_keep_time(toy_framework: None) -> None:
    spec = NeuronSpec(Time.PER_CALL, dynamics=Dynamics())
    site = Site(Neuron(), ("body.1", "tied"), spec, "toy")
    row = Decision(site, keeps_time=True, omitted="more").row({})
    assert row.note == "keeps time for a norm"
    assert (row.site, row.aliases, row.time, row.methods) == ("body.1", 1, "per call", ())
    both = Decision(site, {"imp": snn_ext.IMP()}, (4,), "traced", keeps_time=True, omitted="more").row()
    assert both.note == "more"
    assert both.parameters == {"imp": 4}
    assert Decision(site, keeps_time=True).done == ("clock",)
    assert Decision(site, {"imp": snn_ext.IMP()}, keeps_time=True).done == ("imp", "clock")
    assert Decision(site, {"imp": snn_ext.IMP()}, reason="no").done == ()


class Stepping(ToyAdapter):
    """A framework that calls everything step by step; its neurons know the time."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> Any:
        if isinstance(module, Norm):
            return snn_ext.NormSpec(Time.PER_CALL, module.num_features)
        return NeuronSpec(Time.PER_CALL) if isinstance(module, Neuron) else None


def test_plans_name_the_clock_of_a_norm() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Norm(4), nn.Identity(), Neuron(), Neuron())
    with registered(Stepping()):
        norm, clock, other = snn_ext.plan(net, bntt=BNTT(at="norm"), timesteps=3).decisions
        assert norm.clock is clock.site
        assert (norm.keeps_time, clock.keeps_time, other.keeps_time) == (False, True, False)
        with pytest.raises(snn_ext.NothingMatchedError, match="no neuron follows it"):
            snn_ext.plan(net[:2], bntt=True, timesteps=3)
        with pytest.raises(snn_ext.UnsupportedSiteError, match="no neuron follows it"):
            snn_ext.plan(net[:2], bntt={"1": True}, timesteps=3)


def test_norms_remember_whom_to_ask_unless_nobody_knows_the_time() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Norm(4), nn.Identity(), Neuron())
    with registered(Stepping()):
        plan = snn_ext.plan(net, imp=True, bntt=BNTT(at="norm"), timesteps=3, example_input=X)
        norm, neuron = plan.decisions
        assert norm.clock is neuron.site
        assert not plan.to_dict()["sites"][0]["note"]

        class Timeless(Stepping):
            def describe(self, module: nn.Module, path: str, root: nn.Module) -> Any:
                spec = super().describe(module, path, root)
                refuses = isinstance(spec, NeuronSpec)
                return NeuronSpec(Time.PER_CALL, unsupported={"clock": "it is timeless"}) if refuses else spec

    with registered(Timeless()), pytest.raises(snn_ext.NothingMatchedError, match="no neuron follows it"):
        snn_ext.plan(net, bntt=BNTT(at="norm"), timesteps=3)


def test_what_plans_say_of_every_site(toy_framework: None) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Neuron(), Norm(4), Neuron(floor=-1.0))

    def rows(**options: Any) -> dict[str, tuple[Any, ...]]:
        plan = snn_ext.plan(net, **options)
        return {d.site.path: (d.features, d.origin, d.reason, d.omitted) for d in plan.decisions}

    left_out = (None, "", "not selected", "")
    floor = "its membrane has a floor"
    assert rows(imp=snn_ext.IMP(shape="layer"), exclude="3") == {
        "1": (None, "not needed", "", ""),
        "3": left_out,
    }
    assert rows(mpbn=True, example_input=X) == {"1": ((4,), "traced", "", ""), "3": (None, "", floor, "")}
    options: dict[str, Any] = {"imp": True, "mpbn": True, "example_input": X}
    assert rows(**options)["3"] == ((4,), "traced", "", floor)
    assert rows(imp=True, exclude="3")["1"] == ((4,), "inferred", "", "")
    assert rows(bntt=True, timesteps=3) == {"1": left_out, "2": ((4,), "the norm's", "", ""), "3": left_out}
    snn_ext.patch(net, **options)
    assert rows(**options) == {
        "1": ((4,), "traced", "already patched", ""),
        "3": ((4,), "traced", "already patched", ""),
    }
    with pytest.raises(snn_ext.NothingMatchedError, match="'x' in exclude= matched none"):
        snn_ext.plan(net, imp=True, exclude="x")


def test_why_a_framework_steps_by_itself(toy_framework: None) -> None:
    net = nn.Sequential(nn.Linear(4, 4), Neuron(floor=-1.0), Neuron())
    kernel, plain = reversed(snn_ext.plan(net, imp=True, example_input=X).decisions)
    assert plain.step == ("framework", "its equations are not among those that the kernels compute")
    assert kernel.step.name != "framework"
    asked = snn_ext.plan(net, imp=True, example_input=X, backend="framework").decisions
    assert [d.step for d in asked] == [("framework", "asked for")] * 2
    assert [d.backend for d in asked] == ["framework"] * 2


@pytest.mark.parametrize("steps", [0, -1, True, 2.5, "3"])
def test_what_is_no_number_of_steps(steps: Any, toy_framework: None) -> None:
    with pytest.raises(snn_ext.OptionError, match="is not a number of time steps"):
        snn_ext.plan(nn.Sequential(nn.Linear(4, 4), Neuron()), tebn=True, timesteps=steps)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("OptimizedModule", "compiled"),
        ("FullyShardedDataParallel", r"sharded \(FSDP\)"),
        ("FSDPModule", r"sharded \(FSDP\)"),
    ],
)
def test_wrappers_are_known_by_name(name: str, what: str, toy_framework: None) -> None:
    wrapped = type(name, (nn.Sequential,), {})(nn.Linear(4, 4), Neuron())
    with pytest.raises(snn_ext.UnsupportedSiteError, match=f"is {what}."):
        snn_ext.patch(nn.Sequential(wrapped), imp=True)
