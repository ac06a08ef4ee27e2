"""What the fuzzing found, each with a name of its own: the smallest model that showed it."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import snn_ext
from snn_ext import (
    IMP,
    AlreadyPatchedError,
    CheckpointError,
    NormSpec,
    OptionError,
    ShapeMismatchError,
    Time,
    UnsupportedSiteError,
)
from snn_ext.patching import shapes
from snn_ext.testing.models import snapshot
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered
from tests.property.hostile import Grumpy, Properly, Taken

X = torch.rand(3, 2, 4)


@pytest.fixture(autouse=True)
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def test_patching_again_where_the_name_of_one_method_is_taken() -> None:
    """It was AlreadyPatchedError: a name was taken before the patch only."""
    net = nn.Sequential(nn.Linear(4, 4), Taken("imp"))
    snn_ext.patch(net, imp=True, mpbn=True, example_input=X)
    keys = list(net.state_dict())
    snn_ext.patch(net, imp=True, mpbn=True, example_input=X)
    assert list(net.state_dict()) == keys
    with pytest.raises(AlreadyPatchedError):
        snn_ext.patch(net, imp=True, mpbn=snn_ext.MPBN(features="element"), example_input=X)


@pytest.mark.parametrize("kind", [Properly, Grumpy])
def test_neurons_that_cannot_be_asked_for_an_attribute(kind: type[Neuron]) -> None:
    """It was whatever error their property or __getattr__ raised."""
    net = nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 4), Neuron())
    plan = snn_ext.plan(net, mpbn=True, example_input=X)
    refused, taken = plan.decisions
    assert taken.methods
    assert not refused.methods
    assert "raises" in refused.reason
    with pytest.raises(UnsupportedSiteError, match="asking it for an attribute 'mpbn' raises"):
        snn_ext.plan(net, mpbn={"1": True}, example_input=X)


@pytest.mark.parametrize("method", ["mpbn", "bntt", "tebn"])
def test_norms_where_there_is_no_channel(method: str) -> None:
    """It was an IndexError."""
    with pytest.raises(ShapeMismatchError, match="there are none"):
        snn_ext.patch(nn.Sequential(Neuron()), example_input=torch.rand(3, 2), **{method: True})


def test_fewer_time_steps_than_the_example_has() -> None:
    """It was a patch that could not run on its own example, and failed when it was repeated."""
    net = nn.Sequential(nn.Linear(4, 4), Norm(4), Neuron())
    with pytest.raises(OptionError, match="timesteps=2, but example_input has 3"):
        snn_ext.patch(net, tebn=True, timesteps=2, example_input=X)
    snn_ext.patch(net, imp=True, timesteps=2, example_input=X)  # no parameters per step
    snn_ext.unpatch(net)
    snn_ext.patch(net, tebn=True, timesteps=5, example_input=X)


def test_patching_again_does_not_run_the_model_for_nothing() -> None:
    """It was run for the sake of sites that had been refused, and a patched model may refuse to."""
    net = nn.Sequential(nn.Linear(4, 4), Neuron(), nn.Linear(4, 4), Taken("mpbn"), Taken("imp"))
    options = {"mpbn": True, "exclude": "4", "example_input": torch.rand(1, 2, 4)}
    snn_ext.patch(net, **options)
    calls: list[object] = []
    net.register_forward_pre_hook(lambda *args: calls.append(args))
    snn_ext.patch(net, **options)
    assert not calls


def test_a_neutral_start_in_a_model_that_shares_a_leak() -> None:
    """Not found, but looked for: neurons that share a parameter and are not one object."""
    net = nn.Sequential(nn.Linear(4, 4), Neuron(), Neuron())
    net[2].w = net[1].w
    before = net(X * 4)
    snn_ext.reset(net)
    snn_ext.patch(net, imp=IMP(init="rest"), example_input=X)
    assert net[2].w is net[1].w
    assert torch.equal(net(X * 4), before)


def _without(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["snn_ext"])
    change(config)
    save_file(load_file(path), path, metadata={"snn_ext": json.dumps(config)})


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["sites"]["1"].pop("features"),
        lambda c: c["sites"].update({"1": None}),
        lambda c: c["sites"]["1"].update(features=["x"]),
        lambda c: c["sites"]["1"].update(folded=["mpbn"]),
        lambda c: c["sites"]["1"]["methods"].update(imp=[]),
    ],
    ids=["no features", "no site", "features of text", "folded without a norm", "no options"],
)
def test_edited_configurations_in_checkpoints(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    """They were KeyError, TypeError, and in one case a model that stayed patched."""
    path = tmp_path / "net"
    net = nn.Sequential(nn.Linear(4, 4), Neuron())
    snn_ext.save(snn_ext.patch(net, imp=True), path)
    snn_ext.unpatch(net)
    before = snapshot(net)
    _without(path, change)
    with pytest.raises(CheckpointError, match=r"\n  do: "):
        snn_ext.load(net, path)
    assert snapshot(net) == before


def test_numbers_of_another_kind_in_checkpoints(tmp_path: Path) -> None:
    """torch took the real part, with a warning of its own."""
    path = tmp_path / "net"
    net = nn.Sequential(nn.Linear(4, 4), Neuron())
    snn_ext.save(snn_ext.patch(net, imp=True), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, "1.imp": tensors["1.imp"].to(torch.complex64)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"1\.imp is torch\.complex64, the model has torch\.float32"):
        snn_ext.load(net, path)
    save_file({**tensors, "1.imp": tensors["1.imp"].double()}, path, metadata=metadata)
    snn_ext.load(net, path)  # a precision is not a kind


def test_a_norm_inside_a_cycle() -> None:
    """It was a RecursionError of state_dict, which torch does not survive."""
    net = nn.Sequential(nn.Linear(4, 4), Norm(4), Neuron())
    net[1].add_module("up", net)
    plan = snn_ext.plan(net, bntt=True, timesteps=3)
    assert "BNTT" in str(plan)
    plan.apply()
    assert len(net[1].bntt) == 2


def test_a_squashed_start_in_a_model_on_meta() -> None:
    """It was a RuntimeError: there are no values that could be compared."""
    net = nn.Sequential(nn.Linear(4, 4), Neuron()).to("meta")
    snn_ext.patch(net, imp=IMP(init="half", squash="sigmoid"))
    assert net[1].imp.is_meta


def test_saving_a_model_with_a_reference_back_to_the_parent(tmp_path: Path) -> None:
    """It was a RecursionError out of torch's state_dict."""
    net = nn.Sequential(nn.Linear(4, 4), Neuron())
    snn_ext.save(snn_ext.patch(net, imp=True), tmp_path / "file")
    net[1].add_module("parent", net)
    for act in (snn_ext.save, snn_ext.load):
        before = snapshot(net)
        with pytest.raises(CheckpointError, match=r"where: 1\.parent\n(.*\n)*  do: ") as caught:
            act(net, tmp_path / "file")
        assert "state_dict" in caught.value.why
        assert snapshot(net) == before
    net[1].parent = None
    net[1].backwards = (net,)  # what the message advises
    snn_ext.save(net, tmp_path / "other")
    snn_ext.load(net, tmp_path / "other")


class Meets(nn.Module):
    """Draws from all generators, says that it runs, and waits for somebody else."""

    def __init__(self, own: threading.Event, others: threading.Event) -> None:
        super().__init__()
        self.own, self.others = own, others

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 - frameworks use it
        self.own.set()
        self.others.wait(0.4)
        return x


def _numpy_state() -> list[int]:
    return list(np.random.get_state()[1])  # type: ignore[arg-type]  # noqa: NPY002


def _traced_at_once() -> bool:
    """Two threads trace, the second begins within the first; whether that left the generators alone."""
    began, ended = threading.Event(), threading.Event()
    second_began = threading.Event()
    first = nn.Sequential(Meets(began, second_began), Neuron())
    second = nn.Sequential(Meets(second_began, ended), Neuron())

    def work(net: nn.Module, after: threading.Event | None, last: threading.Event | None) -> None:
        if after is not None:
            after.wait(5)
        snn_ext.plan(net, imp=True, example_input=X)
        if last is not None:
            last.set()

    before = torch.get_rng_state(), random.getstate(), _numpy_state()
    threads = [
        threading.Thread(target=work, args=(first, None, ended)),
        threading.Thread(target=work, args=(second, began, None)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (
        torch.equal(before[0], torch.get_rng_state())
        and before[1] == random.getstate()
        and before[2] == _numpy_state()
    )


def test_two_threads_that_trace_at_once_leave_the_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second put back what the first had drawn already."""
    assert _traced_at_once()
    monkeypatch.setattr(shapes, "_RANDOM", contextlib.nullcontext())
    assert not _traced_at_once(), "without the lock it is seen"


def _shadow(net: nn.Module) -> None:
    net[1].imp = torch.zeros(2)


def _register(net: nn.Module) -> None:
    net[1].register_buffer("imp", torch.zeros(2))


def _exchange(net: nn.Module) -> None:
    net[1], net[2] = net[2], net[1]


def _forget(net: nn.Module) -> None:
    del net[1]


def _share(net: nn.Module) -> None:
    net.append(net[1])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_shadow, "it has an attribute 'imp' of its own"),
        (_register, "it has an attribute 'imp' of its own"),
        (_exchange, "the module is now at 2"),
        (_forget, "the module is now at no place in it"),
        (_share, "the module is now at 1, 3"),
    ],
)
def test_a_model_that_changed_between_plan_and_apply(change: Callable[[Any], None], why: str) -> None:
    """A name taken since was a KeyError; a neuron in another place was replaced where it had been."""
    net = nn.Sequential(nn.Linear(4, 4), Neuron(), nn.Linear(4, 4))
    plan = snn_ext.plan(net, imp=True, example_input=X)
    change(net)
    before = snapshot(net)
    with pytest.raises(OptionError, match=r"changed since the plan was made\.\n(.*\n)*  do: ") as caught:
        plan.apply()
    assert caught.value.why == why
    assert snapshot(net) == before


@pytest.mark.parametrize("method", ["bntt", "tebn"])
def test_the_parts_of_methods_are_no_sites(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch norms in what a neuron was given were sites of the next plan: patching again failed in
    frameworks that have no batch norm of their own, so that every one of torch's is theirs."""

    def describe(self: ToyAdapter, module: nn.Module, path: str, root: nn.Module) -> Any:
        if isinstance(module, _BatchNorm):
            return NormSpec(Time.LEADING, module.num_features)
        return self.describe_neuron(module) if isinstance(module, Neuron) else None

    monkeypatch.setattr(ToyAdapter, "describe", describe)
    net = nn.Sequential(nn.Linear(4, 4), Neuron())
    options: dict[str, Any] = {method: True, "example_input": X}
    snn_ext.patch(net, **options)
    before = snapshot(net)
    assert [d.site.path for d in snn_ext.plan(net, **options).decisions] == ["1"]
    snn_ext.patch(net, **options)
    assert snapshot(net) == before
