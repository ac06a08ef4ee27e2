"""Checkpoints from before the patch load into networks with norms, strictly, and into every slot."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, TEBN, CheckpointError
from tests.adapters.edge_nets import (
    IDIOMS,
    METHODS,
    NEUTRAL,
    T,
    images,
    make,
    normalised,
    run,
    the_norm,
    train_step,
)
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.whole_nets import CASES, Case
from tests.adapters.whole_nets import T as STEPS

everywhere = pytest.mark.parametrize("idiom", IDIOMS)


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def older(idiom: str) -> nn.Module:
    """A plain network, trained elsewhere."""
    return make(idiom, None, seed=2).eval()


def newer(idiom: str, method: str) -> nn.Module:
    """A patched one, whose slots and scales were trained apart."""
    net = make(idiom, method)
    for _ in range(2):
        train_step(idiom, net.train(), images())
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if set(name.split(".")) & {"mpbn", "bntt", "tebn"}:
                parameter.uniform_(0.5, 1.5)
    return net.eval()


def load(net: nn.Module, state: dict[str, Tensor], **options: Any) -> str:
    """Strictly; returns the one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = net.load_state_dict(state, strict=True, **options)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    (warning,) = caught
    return str(warning.message)


def slots_of(net: nn.Module) -> list[nn.Module]:
    norm: Any = the_norm(net)
    return [norm, *norm.bntt]


@everywhere
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "inside another"])
def test_what_a_checkpoint_from_before_fills(idiom: str, method: str, wrapped: bool) -> None:
    """BNTT's slots with the batch norm they were made from; everything else new keeps its value."""
    net = newer(idiom, method)
    old = {key: value.clone() for key, value in older(idiom).state_dict().items()}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    outer = nn.ModuleDict({"body": net}) if wrapped else net
    message = load(outer, {f"body.{key}" if wrapped else key: value for key, value in old.items()})
    site = next(name for name, module in net.named_modules() if module is the_norm(net))
    copies = 0
    for key, value in net.state_dict().items():
        place, _, rest = key.partition(".bntt.")
        if key in old:
            assert torch.equal(value, old[key]), key
            assert not torch.equal(value, before[key]) or site not in key, f"the twin: {key} was another"
        elif place == site and rest:
            copies += 1
            assert torch.equal(value, old[f"{site}.{rest.partition('.')[2]}"]), key
        else:
            assert torch.equal(value, before[key]), key
    assert copies == {"bntt": (T - 1) * 4, "bntt with bias": (T - 1) * 5}.get(method, 0)
    kept = len(before) - len(old) - copies
    assert f"{kept} tensors keep their initial values" in message
    assert f"{copies} start as copies" in message


@everywhere
@pytest.mark.parametrize("method", NEUTRAL)
def test_inference_is_that_of_the_older_network(idiom: str, method: str) -> None:
    old, net, x = older(idiom), make(idiom, method).eval(), images()
    assert not torch.equal(normalised(idiom, net, x), normalised(idiom, old, x))
    load(net, old.state_dict())
    assert torch.equal(normalised(idiom, net, x), normalised(idiom, old, x))
    outputs = run(idiom, net, x)
    assert torch.equal(outputs, run(idiom, old, x))
    assert outputs.std() > 0.1, "an equality of silent networks proves nothing"


@everywhere
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
def test_slots_share_no_memory(idiom: str, assign: bool) -> None:
    """Neither with each other nor with the checkpoint: they are trained apart."""
    net, old = make(idiom, "bntt with bias"), older(idiom).state_dict()
    given = copy.deepcopy(old)
    load(net, old, assign=assign)
    places = [t.data_ptr() for slot in slots_of(net) for t in slot.state_dict().values()]
    assert len({*places}) >= T * 5
    train_step(idiom, net.train(), images())
    means = [slot.running_mean for slot in slots_of(net)]
    assert not any(torch.equal(a, b) for i, a in enumerate(means) for b in means[:i])  # type: ignore[arg-type]
    if not assign:
        assert all(torch.equal(value, given[key]) for key, value in old.items() if key in given)


@everywhere
@pytest.mark.parametrize("method", ["bntt", "tebn"])
def test_torn_checkpoints_are_refused(idiom: str, method: str) -> None:
    """Some of a slot's keys, or a norm without its statistics: nothing is loaded."""
    net = newer(idiom, method)
    whole, old = net.state_dict(), older(idiom).state_dict()
    before = {key: value.clone() for key, value in whole.items()}
    mean = next(key for key in old if key.endswith("running_mean"))
    torn = [{key: value + 1 for key, value in state.items() if key != mean} for state in (whole, old)]
    if method == "bntt":  # TEBN has one key, without which a checkpoint is one from before
        new = next(key for key in whole if ".bntt." in key)
        torn.append({key: value + 1 for key, value in whole.items() if key != new})
        torn.append({**old, new: whole[new]})
    for state in torn:
        with pytest.raises(CheckpointError, match=r"(?s)lacks.*do: patch the model as it was"):
            net.load_state_dict(state)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As converters and older releases of torch write it: a plain dict, which has no versions."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@everywhere
@pytest.mark.parametrize("method", METHODS)
def test_counts_of_batches_may_be_missing_as_in_torch(idiom: str, method: str) -> None:
    """Every other tensor comes from the checkpoint, in all slots; the counts stay those of the model."""
    old = without_counts(older(idiom).state_dict())
    plain, net = make(idiom, None), make(idiom, method)
    plain.load_state_dict(old, strict=True)  # torch's own batch norms do
    load(net, old)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in plain.state_dict().items())
    if method.startswith("bntt") and "neurons" not in method:
        first, *later = (slot.state_dict() for slot in slots_of(net))
        assert len(later) == T - 1
        assert all(torch.equal(value, first[key]) for slot in later for key, value in slot.items())
    source = newer(idiom, method)  # and those of a patched network, without a warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(without_counts(source.state_dict()), strict=True)
    x = images()
    assert torch.equal(run(idiom, net.eval(), x), run(idiom, source, x))


@everywhere
@pytest.mark.parametrize("method", ["bntt", "tebn"])
def test_torch_says_where_a_count_may_not_be_missing(idiom: str, method: str) -> None:
    """In a checkpoint that has a version; and anything else that is missing is torn, as before."""
    net, old = make(idiom, method), older(idiom).state_dict()
    count = next(key for key in old if key.endswith("num_batches_tracked"))
    plain = without_counts(old)
    del old[count]
    assert hasattr(old, "_metadata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match=f'Missing key.*"{count}"'):
            net.load_state_dict(old, strict=True)
    del plain[next(key for key in plain if key.endswith("running_var"))]
    with pytest.raises(CheckpointError, match=r"(?s)lacks 1 keys.*where: .*running_var"):
        net.load_state_dict(plain)


# --- whole networks --------------------------------------------------------------------------------------

WITH_NORMS = [
    name
    for name, case in CASES.items()
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in case.build().modules())
]


def options(name: str, case: Case) -> dict[str, Any]:
    stats: Any = "step" if case.per_call else "joint"
    return {"bntt": BNTT(bias=True)} if name == "bntt" else {"tebn": TEBN(stats=stats)}


def inferred(case: Case, net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        outputs = case.run(net.eval(), x)
        stacked = torch.stack(outputs) if isinstance(outputs, tuple) else outputs.clone()
    snn_ext.reset(net)
    return stacked


@pytest.mark.parametrize("method", ["bntt", "tebn"])
@pytest.mark.parametrize("name", WITH_NORMS)
def test_older_checkpoints_of_whole_networks(name: str, method: str) -> None:
    case = CASES[name]
    old, x = case.build().train(), case.data()
    with torch.no_grad():
        for _ in range(3):
            case.run(old, case.data())
    snn_ext.reset(old)
    net = case.build()
    snn_ext.patch(net, **options(method, case), timesteps=STEPS, example_input=case.example())
    expected = inferred(case, old, x)
    assert not torch.equal(inferred(case, net, x), expected)
    load(net, old.state_dict())
    assert torch.equal(inferred(case, net, x), expected)
    assert expected.any()
