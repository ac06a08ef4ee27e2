"""Adapters that raise or answer nonsense in any hook, interrupts, threads: typed errors, untouched models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import IMP, AdapterError, hookimpl
from snn_ext.patching import plugins
from snn_ext.testing import cases_of
from snn_ext.testing.models import snapshot
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered

X = torch.rand(3, 2, 4)
HOOKS = ("describe", "replace", "watch", "changed", "reset", "readout", "loss", "cases")


class Faulty(ToyAdapter):
    """Does `what` in one hook; the others are the toy adapter's."""

    def __init__(self, hook: str, what: Callable[[], Any]) -> None:
        self.hook, self.what = hook, what


def _fault(hook: str) -> Callable[..., Any]:
    own = getattr(ToyAdapter, f"snn_ext_{hook}", None)
    names = {
        "describe": "module, path, root",
        "replace": "site, methods, features",
        "watch": "module, note",
        "changed": "root, replaced",
        "reset": "root",
        "readout": "root, output, want",
        "loss": "root, objective, readout, want",
        "cases": "",
    }[hook]
    space: dict[str, Any] = {"own": own, "hook": hook}
    arguments = f"self, {names}".rstrip(", ")
    exec(
        f"def call({arguments}):\n"
        f"    if self.hook == hook: return self.what()\n"
        f"    return own({arguments}) if own is not None else None",
        space,
    )
    return hookimpl(space["call"])


for _hook in HOOKS:
    setattr(Faulty, f"snn_ext_{_hook}", _fault(_hook))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), Norm(4), Neuron(), nn.Linear(4, 3), Neuron())


def call(hook: str, model: nn.Module) -> None:
    if hook in ("describe", "replace", "watch", "changed"):
        snn_ext.patch(model, imp=True, bntt=True, example_input=X)
    elif hook == "reset":
        snn_ext.reset(model)
    elif hook == "cases":
        cases_of("toy framework")
    else:
        scores = torch.rand(3, 2, 4)
        crit = snn_ext.loss(model, "sdt")
        crit((scores.transpose(0, 1), scores.transpose(0, 1)), torch.tensor([0, 1]))


def _raise(error: type[BaseException]) -> Callable[[], Any]:
    def now() -> Any:
        raise error("boom")

    return now


def test_the_faulty_adapter_works_without_a_fault() -> None:
    with registered(Faulty("none", lambda: None)):
        for hook in HOOKS:
            call(hook, net())


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, StopIteration, MemoryError])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_adapter_that_raises(hook: str, error: type[Exception]) -> None:
    model = net()
    before = snapshot(model)
    with (
        registered(Faulty(hook, _raise(error))),
        pytest.raises(AdapterError, match=rf"failed in snn_ext_{hook}(?s:.*)\n  do: "),
    ):
        call(hook, model)
    assert snapshot(model) == before


@pytest.mark.parametrize("hook", [h for h in HOOKS if h not in ("reset", "cases")])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_hook(hook: str, error: type[BaseException]) -> None:
    model = net()
    before = snapshot(model)
    with registered(Faulty(hook, _raise(error))), pytest.raises(error):
        call(hook, model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        ("describe", 5),
        ("describe", "a neuron"),
        ("describe", {}),
        ("replace", None),
        ("replace", "a module"),
        ("loss", "a loss"),
        ("cases", "a case"),
        ("cases", [5]),
        ("readout", 5),
    ],
)
def test_an_adapter_that_answers_nonsense(hook: str, answer: Any) -> None:
    model = net()
    before = snapshot(model)
    with registered(Faulty(hook, lambda: answer)), pytest.raises(AdapterError, match=r"\n  do: "):
        call(hook, model)
    assert snapshot(model) == before


@pytest.mark.parametrize("answer", [None, "me", _raise(RuntimeError)])
def test_an_adapter_that_does_not_say_who_it_is(answer: Any) -> None:
    class Nobody:
        @hookimpl
        def snn_ext_adapter(self) -> Any:
            return answer() if callable(answer) else answer

    before = {a.name for a in snn_ext.adapters()}
    with pytest.raises(AdapterError, match=r"\n  do: "):
        snn_ext.register(Nobody())
    assert {a.name for a in snn_ext.adapters()} == before
    assert not any(isinstance(p, Nobody) for p in plugins.registry().manager.get_plugins())


@pytest.fixture
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def test_a_plan_is_only_a_plan(toy_framework: None) -> None:
    """An interrupt between plan and apply leaves nothing behind, and the plan stays good."""
    model = net()
    before = snapshot(model)
    plan = snn_ext.plan(model, imp=True, example_input=X)
    assert snapshot(model) == before
    plan.apply()
    with pytest.raises(snn_ext.OptionError, match="changed since"):
        plan.apply()
    snn_ext.unpatch(model)
    assert snapshot(model) == before
    plan.apply()


def test_threads_patch_models_of_their_own(toy_framework: None) -> None:
    def work(number: int) -> tuple[list[str], bool]:
        model = net()
        for _ in range(10):
            before = snapshot(model)
            snn_ext.patch(model, imp=IMP(init=0.25), bntt=True, example_input=X)
            keys = list(model.state_dict())
            snn_ext.unpatch(model)
            if snapshot(model) != before:
                return keys, False
        return keys, True

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(16)))
    assert all(exact for _, exact in results)
    assert len({tuple(keys) for keys, _ in results}) == 1


FIRST_USE = """
import threading, snn_ext
from snn_ext.patching import plugins
found, start = [], threading.Barrier(8)
def first():
    start.wait()
    found.append(plugins.registry())
threads = [threading.Thread(target=first) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
assert len({id(r) for r in found}) == 1, len({id(r) for r in found})
"""


def test_threads_that_are_the_first_to_use_the_registry() -> None:
    """Two registries would be two sets of adapters: what was registered in one is missing in the other."""
    result = subprocess.run(
        [sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, result.stderr
