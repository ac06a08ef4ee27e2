"""Files that were cut, flipped or edited: a typed error and an untouched model, or a model that loaded."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file
from safetensors.torch import save as serialize
from torch import nn

import snn_ext
from snn_ext import BNTT, IMP, SnnExtError
from snn_ext.patching.record import patched_modules
from snn_ext.testing.models import differences, snapshot
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered

EXAMPLES = int(os.environ.get("SNN_EXT_EXAMPLES", "500"))
X = torch.rand(3, 2, 4)


@pytest.fixture(autouse=True)
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def fresh() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), Norm(4), Neuron(), nn.Linear(4, 4), Neuron())
    net.add_module("tied", net[2])
    return net


def patched() -> nn.Module:
    return snn_ext.patch(fresh(), imp=IMP(init=0.5), mpbn=True, bntt=BNTT(), example_input=X)


@cache
def saved() -> tuple[bytes, str, bytes]:
    """The file, its configuration, and its tensors alone."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / "net"
        snn_ext.save(patched(), path)
        with safe_open(path, framework="pt") as file:
            config = file.metadata()["snn_ext"]
        return path.read_bytes(), config, serialize(load_file(path))


def explained(error: SnnExtError) -> None:
    event(type(error).__name__)
    assert "\n  do: " in str(error), error


def check_load(data: bytes, model: nn.Module) -> None:
    before = snapshot(model)
    values = {key: value.clone() for key, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "net"
        path.write_bytes(data)
        try:
            snn_ext.load(model, path)
        except SnnExtError as error:
            explained(error)
            after = snapshot(model)
            assert before == after, differences(before, after)
            assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
            return
    event("loaded")
    assert patched_modules(model)
    model.eval()(X)


models = st.sampled_from([fresh, patched])
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


@fuzzed
@given(model=models, share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_is_never_loaded(model: Any, share: float) -> None:
    data = saved()[0]
    target = model()
    before = snapshot(target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net"
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(snn_ext.CheckpointError, match=r"\n  do: "):
            snn_ext.load(target, path)
    assert snapshot(target) == before


@fuzzed
@given(model=models, at=st.integers(0, 2500), byte=st.integers(0, 255))
def test_flipped_bytes_in_the_header(model: Any, at: int, byte: int) -> None:
    data = bytearray(saved()[0])
    data[at % len(data)] = byte
    check_load(bytes(data), model())


NONSENSE = [None, True, 0, -1, 99, 1.5, "", "x", [], {}, ["x"], [-3], {"a": 1}, {"imp": {}}, "2", [4, 4, 4]]


def _edit(draw: st.DrawFn, value: Any) -> Any:
    """Some part of a configuration is something else, is gone, or has a neighbour."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        how = draw(st.sampled_from(["inside", "inside", "inside", "gone", "more", "renamed"]))
        rest = {k: v for k, v in value.items() if k != key}
        if how == "inside":
            return {**value, key: _edit(draw, value[key])}
        if how == "more":
            return {**value, "more": value[key]}
        return rest if how == "gone" else {**rest, "other": value[key]}
    return draw(st.sampled_from(NONSENSE))


@st.composite
def edited_configs(draw: st.DrawFn) -> Any:
    return _edit(draw, json.loads(saved()[1]))


@fuzzed
@given(model=models, config=edited_configs())
def test_edited_configurations(model: Any, config: Any) -> None:
    tensors = load(saved()[2])
    check_load(serialize(tensors, metadata={"snn_ext": json.dumps(config)}), model())


TENSORS = [
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(4, dtype=torch.int64),
    torch.zeros(4, dtype=torch.complex64),
    torch.full((4,), torch.nan),
    torch.zeros(4, dtype=torch.float64),
    torch.zeros(4, 4, dtype=torch.bool),
    torch.zeros(4, 4, dtype=torch.float16),
    torch.full((4, 4), torch.inf),
]


@fuzzed
@given(model=models, key=st.data(), value=st.sampled_from([None, *TENSORS]))
def test_other_tensors(model: Any, key: Any, value: Any) -> None:
    tensors = load(saved()[2])
    name = key.draw(st.sampled_from([*sorted(tensors), "more", "2.imp.x", ""]))
    if value is None:
        tensors.pop(name, None)
    else:
        tensors[name] = value
    check_load(serialize(tensors, metadata={"snn_ext": saved()[1]}), model())
