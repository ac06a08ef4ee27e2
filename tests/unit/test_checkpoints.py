"""Checkpoints: older ones load, torn ones do not, ours carry the recipe."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import snn_ext
from snn_ext import IMP, AlreadyPatchedError, CheckpointError
from tests.toy import LeadingNeuron, StepNeuron, leading_net
from tests.unit.test_plan import fingerprint, same

X = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))


class Keyed(LeadingNeuron):
    """A neuron with keys of its own, as PLIF or Leaky have."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.beta = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))


def keyed_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), Keyed(), nn.Linear(4, 4), LeadingNeuron())


def patched_keyed_net() -> nn.Module:
    return snn_ext.patch(keyed_net(), imp=IMP(init=0.3))


@pytest.mark.parametrize("wrap", [False, True])
def test_a_checkpoint_from_before_the_patch_loads_with_one_warning(wrap: bool) -> None:
    old = nn.Sequential(keyed_net()).state_dict() if wrap else keyed_net().state_dict()
    net = patched_keyed_net()
    values = {k: v.clone() for k, v in net.state_dict().items() if k.endswith("imp")}
    target = nn.Sequential(net) if wrap else net
    given = dict(old)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = target.load_state_dict(old, strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    (warning,) = caught
    assert "1.imp" in str(warning.message)
    assert "3.imp" in str(warning.message)
    assert old.keys() == given.keys(), "the caller's dict is not touched"
    for key, value in target.state_dict().items():
        name = key.removeprefix("0.") if wrap else key
        assert torch.equal(value, values[name] if name in values else old[key])


def test_parts_of_a_model_load_too() -> None:
    outer = nn.ModuleDict({"body": keyed_net(), "head": nn.Linear(4, 2)})
    old = outer["body"].state_dict()
    snn_ext.patch(outer, imp=True)
    with pytest.warns(UserWarning, match="from before the patch"):
        outer["body"].load_state_dict(old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outer["body"].load_state_dict(outer["body"].state_dict())


def test_assigning_loads_keep_the_parameter() -> None:
    net = patched_keyed_net()
    before = net[1].imp  # type: ignore[index]
    with pytest.warns(UserWarning, match="from before the patch"):
        net.load_state_dict(keyed_net().state_dict(), assign=True)
    assert net[1].imp is before  # type: ignore[index]


@pytest.mark.parametrize("lost", [["1.imp"], ["1.beta"], ["1.beta", "1.imp", "3.imp"]])
def test_torn_checkpoints_are_refused_before_anything_is_loaded(lost: list[str]) -> None:
    state = {k: v + 1 for k, v in patched_keyed_net().state_dict().items() if k not in lost}
    net = patched_keyed_net()
    before = fingerprint(net)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"(?s)lacks.*where: 1\..*do: patch the model as it was"):
            net.load_state_dict(state, strict=strict)
    assert same(before, fingerprint(net))


def test_weights_of_another_network_can_still_be_loaded_loosely() -> None:
    """ANN weights into an SNN with strict=False: the sites have no keys in them, old or new."""
    ann = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).state_dict()
    net = patched_keyed_net()
    with pytest.warns(UserWarning, match="from before the patch"):
        result = net.load_state_dict(ann, strict=False)
    assert sorted(result.missing_keys) == ["1.beta", "1.w"]
    assert torch.equal(net[0].weight, ann["0.weight"])  # type: ignore[index]


def test_tied_sites_have_all_their_keys() -> None:
    neuron = LeadingNeuron()
    make = lambda: nn.Sequential(nn.Linear(4, 4), neuron, nn.Linear(4, 4), neuron)  # noqa: E731
    old = make().state_dict()
    net = snn_ext.patch(make(), imp=True)
    assert {"1.imp", "3.imp"} <= set(net.state_dict())
    with pytest.warns(UserWarning, match="2 tensors"):
        net.load_state_dict(old)
    snn_ext.unpatch(net)


# --- snn_ext.save and load ---------------------------------------------------------------------------


def test_round_trip_into_a_fresh_model(tmp_path: Path) -> None:
    net = snn_ext.patch(
        leading_net(), imp={"1": IMP(init=(0.3, 0.9)), "3": IMP(shape="layer", squash="sigmoid")}
    )
    snn_ext.save(net, tmp_path / "net.safetensors")
    fresh = leading_net()
    assert not torch.equal(fresh(X), net(X))
    assert snn_ext.load(fresh, tmp_path / "net.safetensors") is fresh
    assert torch.equal(fresh(X), net(X))
    assert snn_ext.report(fresh).to_dict() == snn_ext.report(net).to_dict()
    snn_ext.load(fresh, tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == ["net.safetensors"], "no temporary file is left"
    if os.name == "posix":
        assert (tmp_path / "net.safetensors").stat().st_mode & 0o444


def test_tied_tensors_and_views_survive(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        net = nn.Sequential(nn.Linear(4, 4), LeadingNeuron(), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        base = torch.arange(6.0)
        net.register_buffer("front", base[:3])
        net.register_buffer("back", base[3:])
        net.register_buffer("empty", torch.zeros(0))
        return net

    net = snn_ext.patch(make(), imp=True)
    snn_ext.save(net, tmp_path / "net")
    fresh = make()
    fresh.front.zero_()
    snn_ext.load(fresh, tmp_path / "net")
    assert fresh[2].weight is fresh[0].weight
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), net.state_dict().values(), strict=True)
    )


def test_a_plain_model_round_trips_too(tmp_path: Path) -> None:
    net, fresh = leading_net(), leading_net()
    snn_ext.save(net, tmp_path / "net")
    assert torch.equal(snn_ext.load(fresh, tmp_path / "net")(X), net(X))


def rewrite(path: Path, change: Any) -> None:
    """Change the configuration inside a checkpoint."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["snn_ext"])
    tensors = load_file(path)
    change(config, tensors)
    save_file(tensors, path, metadata={"snn_ext": json.dumps(config)})


DAMAGES: dict[str, Any] = {
    "newer format": lambda c, t: c.update(format=99),
    "no sites": lambda c, t: c.pop("sites"),
    "unknown method": lambda c, t: c["sites"]["1"]["methods"].update(xyz={}),
    "unknown option": lambda c, t: c["sites"]["1"]["methods"]["imp"].update(xyz=1),
    "impossible option": lambda c, t: c["sites"]["1"]["methods"]["imp"].update(init="zero"),
    "another class": lambda c, t: c["sites"]["1"].update(module="LIFNode"),
    "another adapter": lambda c, t: c["sites"]["1"].update(adapter="norse"),
    "another path": lambda c, t: c["sites"].update(head=c["sites"].pop("1")),
    "missing key": lambda c, t: t.pop("0.weight"),
    "missing new key": lambda c, t: t.pop("1.imp"),
    "extra key": lambda c, t: t.update(extra=torch.zeros(1)),
    "wrong shape": lambda c, t: t.update({"1.imp": torch.zeros(99)}),
    "another kind of number": lambda c, t: t.update({"0.bias": t["0.bias"].to(torch.complex64)}),
    "dangling alias": lambda c, t: c["aliases"].update(a="b"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_leave_the_model_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net"
    snn_ext.save(snn_ext.patch(leading_net(), imp=True), path)
    rewrite(path, DAMAGES[damage])
    for make in (leading_net, lambda: snn_ext.patch(leading_net(), imp=True)):
        net = make()
        before = fingerprint(net)
        with pytest.raises((CheckpointError, AlreadyPatchedError), match=r"\n  do: "):
            snn_ext.load(net, path)
        assert same(before, fingerprint(net))


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    snn_ext.save(leading_net(), tmp_path / "whole")
    (tmp_path / "torn").write_bytes((tmp_path / "whole").read_bytes()[:-10])
    (tmp_path / "noise").write_bytes(b"\x80\x04noise")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    for name in ("absent", "torn", "noise", "foreign"):
        with pytest.raises(CheckpointError, match=rf"(?s){name}.*\n  do: "):
            snn_ext.load(leading_net(), tmp_path / name)


def test_pickles_are_never_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    torch.save(Evil(), tmp_path / "evil")
    with pytest.raises(CheckpointError):
        snn_ext.load(leading_net(), tmp_path / "evil")
    assert not marker.exists()
    torch.load(tmp_path / "evil", weights_only=False)
    assert marker.exists(), "the twin: that file does execute"


def test_loading_into_a_model_patched_otherwise(tmp_path: Path) -> None:
    snn_ext.save(snn_ext.patch(leading_net(), imp=True), tmp_path / "net")
    with pytest.raises(AlreadyPatchedError, match="do: load into a fresh model"):
        snn_ext.load(snn_ext.patch(leading_net(), imp=IMP(init=0.0)), tmp_path / "net")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = leading_net(), tmp_path / "net"
    snn_ext.save(net, path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"(?s)No space left.*do: check the folder"):
        snn_ext.save(leading_net(), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net"]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="do: check the folder"):
        snn_ext.save(net, tmp_path / "no folder" / "net")


def test_states_that_are_not_tensors_are_refused(tmp_path: Path) -> None:
    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"a": 1}

    with pytest.raises(CheckpointError, match=r"(?s)_extra_state.*do: save it with torch\.save"):
        snn_ext.save(Extra(), tmp_path / "net")


def test_new_object_sites_load(tmp_path: Path) -> None:
    make = lambda: nn.Sequential(nn.Linear(4, 4), StepNeuron())  # noqa: E731
    net = snn_ext.patch(make(), imp=IMP(init=(0.5, 0.9)))
    snn_ext.save(net, tmp_path / "net")
    other = snn_ext.load(make(), tmp_path / "net")
    x = torch.rand(2, 4)
    assert torch.equal(other(x), net(x))


class Counted(Keyed):
    """Keeps an extra state in checkpoints, made anew whenever it is asked for."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.zeros(3)

    def set_extra_state(self, state: torch.Tensor) -> None:
        pass


def test_extra_states_are_not_taken_for_other_tensors() -> None:
    """They are gone when the next tensor is made, which may get their id."""
    plain = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(4, 4), Counted())))
    before = {key: value for key, value in plain.state_dict().items() if "extra" not in key}
    snn_ext.patch(plain, imp=True)
    with pytest.warns(UserWarning, match="before the patch"):
        plain.load_state_dict(before, strict=False)


def test_errors_of_files_say_which_file(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    for name in ("no.safetensors", "missing"):
        with pytest.raises(CheckpointError, match=f"^{name} is not a checkpoint") as caught:
            snn_ext.load(leading_net(), tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
