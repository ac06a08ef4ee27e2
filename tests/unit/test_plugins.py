"""Plugins: found lazily, broken ones contained, conflicts named."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import AdapterError, AdapterInfo, hookimpl
from snn_ext.patching import plugins
from tests.toy import LeadingNeuron, ToyAdapter, leading_net, registered


class Second(ToyAdapter):
    name = "second"


class Nameless:
    @hookimpl
    def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> None:
        return None


class Raising(ToyAdapter):
    name = "raising"

    @hookimpl
    def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> Any:
        raise ZeroDivisionError("oops")


class WrongArguments:
    @hookimpl
    def snn_ext_adapter(self) -> AdapterInfo:
        return AdapterInfo("wrong", "wrong", "wrong", ())

    @hookimpl
    def snn_ext_describe(self, modul: nn.Module) -> None:
        return None


def test_adapters_are_listed_with_their_state() -> None:
    toy = {a.name: a for a in snn_ext.adapters()}["toy"]
    assert toy.error is None
    assert toy.state == "ready"
    assert toy.info == AdapterInfo("toy", "tests", "toy", ("imp",))


def test_two_adapters_claiming_one_module() -> None:
    net = leading_net()
    with (
        registered(Second()),
        pytest.raises(AdapterError, match=r"(?s)toy, second.*where: 1 .*do: uninstall"),
    ):
        snn_ext.patch(net, imp=True)
    assert type(net[1]) is LeadingNeuron


def test_a_raising_hook_is_an_adapter_error() -> None:
    net = leading_net()
    with (
        registered(Raising()),
        pytest.raises(AdapterError, match=r"(?s)raising.*ZeroDivisionError: oops.*do: "),
    ):
        snn_ext.plan(net, imp=True)


@pytest.mark.parametrize(
    "plugin", [Nameless(), ToyAdapter(), WrongArguments()], ids=["nameless", "same name", "arguments"]
)
def test_bad_registrations_teach_and_leave_no_trace(plugin: object) -> None:
    before = snn_ext.adapters()
    with pytest.raises(AdapterError, match=r"\n  do: "):
        snn_ext.register(plugin)
    assert snn_ext.adapters() == before
    assert torch.any(snn_ext.patch(leading_net(), imp=True)[1].imp != 0)


class BrokenEntryPoint:
    """An installed adapter whose import fails; named for the framework its modules come from."""

    name = "tests"

    def load(self) -> Any:
        raise ImportError("no module named gpu_magic")


@pytest.fixture
def broken_entry_point(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [BrokenEntryPoint()])
    plugins._made.cache_clear()
    yield
    plugins._made.cache_clear()


@pytest.mark.usefixtures("broken_entry_point")
def test_a_broken_plugin_is_listed_and_raises_only_when_needed() -> None:
    (adapter,) = snn_ext.adapters()
    assert adapter.name == "tests"
    assert adapter.state == "broken: ImportError: no module named gpu_magic"
    with pytest.raises(snn_ext.NothingMatchedError, match="broken: ImportError"):
        snn_ext.patch(nn.Linear(2, 2), imp=True)
    with pytest.raises(AdapterError, match=r"(?s)could not be loaded.*where: 1 .*gpu_magic.*do: ") as caught:
        snn_ext.patch(leading_net(), imp=True)
    assert isinstance(caught.value.__cause__, ImportError)
    # the fixture around every unit test removes the toy adapter from this registry
    snn_ext.register(ToyAdapter())


def test_a_framework_that_is_not_installed_is_no_error() -> None:
    class Absent(ToyAdapter):
        name = "absent"

        @hookimpl
        def snn_ext_adapter(self) -> AdapterInfo:
            return AdapterInfo("absent", "no_such_framework", "no-such", ())

        @hookimpl
        def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> None:
            return None

    with registered(Absent()):
        assert {a.name: a.state for a in snn_ext.adapters()}["absent"] == "framework not installed"
        snn_ext.patch(leading_net(), imp=True)
