"""Whatever the model and the options: patched completely, or a typed error and nothing changed.

500 examples here; `make fuzz` runs 10,000 (SNN_EXT_EXAMPLES). What was found is a test of its own below.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import nn

import snn_ext
from snn_ext import IMP, SnnExtError
from snn_ext.patching.record import patched_modules
from snn_ext.patching.sequence import tensors_in
from snn_ext.patching.shapes import run
from snn_ext.testing.models import differences, same_values, snapshot
from snn_ext.testing.toy import ToyAdapter, registered
from tests.property.hostile import Cyclic, hostile_models, hostile_options, inputs

EXAMPLES = int(os.environ.get("SNN_EXT_EXAMPLES", "500"))


@pytest.fixture(autouse=True)
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def same(model: nn.Module, before: dict[str, Any], what: str) -> None:
    after = snapshot(model)
    assert before == after, f"{what}: {differences(before, after)}"


def keys(model: nn.Module) -> list[str]:
    return [] if isinstance(model, Cyclic) else list(model.state_dict())  # torch itself never ends there


def explained(error: SnnExtError) -> None:
    assert "\n  do: " in str(error), error


def check_patch(
    model: nn.Module, options: dict[str, Any], accepted: type[SnnExtError] | tuple[Any, ...] = SnnExtError
) -> bool:
    """True if it was patched. `accepted`: the errors that may be raised."""
    before, random = snapshot(model), torch.get_rng_state()
    try:
        plan = snn_ext.plan(model, **options)
    except accepted as error:
        explained(error)
        event(f"{type(error).__name__}: {str(error).splitlines()[0][:60]}")
        same(model, before, "a plan that failed")
        assert torch.equal(random, torch.get_rng_state())
        return False
    same(model, before, "a plan")
    assert torch.equal(random, torch.get_rng_state())
    assert str(plan)
    before_keys = keys(model)
    try:
        patched = plan.apply()
    except accepted as error:
        explained(error)
        same(model, before, "a patch that failed")
        return False
    assert patched is model
    wanted = {d.site.paths[0]: set(d.methods) for d in plan.decisions if d.methods and not d.reason}
    done = {
        path: set(record.methods) for path, (_, record) in patched_modules(model).items() if record.methods
    }
    assert wanted == done != {}, "never a silent no-op, never half a patch"
    assert [key for key in keys(model) if key in before_keys] == before_keys
    assert str(snn_ext.report(model))
    again = snapshot(model)
    snn_ext.patch(model, **options)
    same(model, again, "patching again")
    snn_ext.unpatch(model)
    same(model, before, "patch and unpatch")
    return True


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(model=hostile_models(), options=hostile_options())
def test_patched_completely_or_not_at_all(model: nn.Module, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event(f"patched: {check_patch(model, options)}")


def attempt(model: nn.Module, x: Any, reset: Callable[[nn.Module], None] = snn_ext.reset) -> Any:
    """What running the model gives: tensors, or the kind of error."""
    reset(model)
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return list(tensors_in(run(model, x)))
    except Exception as error:  # noqa: BLE001
        return type(error)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_values, a, b))
    return bool(a == b)


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(model=hostile_models(), x=inputs(), shape=st.sampled_from(["neuron", "channel", "layer"]))
def test_a_neutral_start_changes_nothing_not_even_the_failures(model: nn.Module, x: Any, shape: Any) -> None:
    check_neutral(model, x, shape)


def check_neutral(
    model: nn.Module, x: Any, shape: Any, reset: Callable[[nn.Module], None] = snn_ext.reset
) -> None:
    """The same output, or the same kind of error: also for empty and non-finite inputs, and forwards that
    raise midway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assume(not isinstance(model, Cyclic))  # torch itself cannot call eval() on it
        model.eval()
        stock = attempt(model, x, reset)
        assume(equal(stock, attempt(model, x, reset)))  # else it depends on more than its input
        example = x if isinstance(stock, list) else None
        try:
            snn_ext.patch(model, imp=IMP(init="rest", shape=shape), example_input=example)
        except SnnExtError as error:
            event(type(error).__name__)
            return
        patched = attempt(model, x, reset)
        event(f"patched, {'an error' if isinstance(stock, type) else 'outputs'}")
        if isinstance(patched, type) and issubclass(patched, SnnExtError):
            assert isinstance(stock, type), (stock, patched)  # it failed before too, in other words
        else:
            assert equal(stock, patched), (stock, patched)
