"""Applying and taking back: identity, ties, aliases, rollback, copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import IMP, AdapterError, AdapterInfo, hookimpl
from snn_ext.methods.swap import original_class, swap_class
from snn_ext.neurons import InitialPotential
from snn_ext.patching import plugins
from tests.toy import LeadingNeuron, Start, StepNeuron, ToyAdapter, leading_net, registered
from tests.unit.test_plan import fingerprint, same

X = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))


def test_neutral_start_changes_no_bit() -> None:
    net = leading_net()
    before = net(X)
    assert before.any()
    patched = snn_ext.patch(copy.deepcopy(net), imp=IMP(init="rest"))
    assert torch.equal(patched(X), before)
    for a, b in zip(
        net.parameters(), [p for n, p in patched.named_parameters() if "imp" not in n], strict=True
    ):
        (ga,) = torch.autograd.grad(net(X).square().sum(), a)
        (gb,) = torch.autograd.grad(patched(X).square().sum(), b)
        assert torch.equal(ga, gb)
    assert not torch.equal(snn_ext.patch(net, imp=IMP(init=3.0))(X), before), "the twin: V0 has an effect"


def test_identity_hooks_and_aliases_survive() -> None:
    net = leading_net()
    neuron, calls = net[1], []
    neuron.register_forward_hook(lambda m, i, o: calls.append("forward"))
    neuron.register_full_backward_hook(lambda m, i, o: calls.append("backward"))
    assert snn_ext.patch(net, imp=True) is net
    assert net[1] is neuron
    assert isinstance(neuron, LeadingNeuron)
    net(X).sum().backward()
    assert calls == ["forward", "backward"]


def test_keys_only_grow() -> None:
    net = leading_net()
    before = list(net.state_dict())
    snn_ext.patch(net, imp=True)
    assert [k for k in net.state_dict() if k in before] == before
    assert set(net.state_dict()) - set(before) == {"1.imp", "3.imp"}
    assert {n for n, _ in net.named_parameters()} >= {"1.imp", "3.imp"}


def test_new_objects_are_installed_under_every_name_and_taken_back() -> None:
    neuron = StepNeuron()
    inner = nn.Sequential(nn.Linear(4, 4), neuron)
    net = nn.ModuleDict({"a": inner, "b": nn.ModuleList([inner, neuron])})
    snn_ext.patch(net, imp={"a.1": IMP(init=0.5)})
    new = net["a"][1]  # type: ignore[index]
    assert new is not neuron
    assert net["b"][1] is new  # type: ignore[index]
    assert net["b"][0][1] is new  # type: ignore[index]
    row = next(r for r in snn_ext.report(net).rows)
    assert (row.site, row.aliases) == ("a.1", 2)
    snn_ext.unpatch(net)
    assert net["a"][1] is neuron  # type: ignore[index]
    assert net["b"][1] is neuron  # type: ignore[index]


def test_a_replaced_root_is_returned() -> None:
    neuron = StepNeuron()
    new = snn_ext.patch(neuron, imp=IMP(shape="layer"))
    assert new is not neuron
    assert list(new.state_dict()) == ["imp"]
    assert snn_ext.unpatch(new) is neuron
    leading = LeadingNeuron()
    assert snn_ext.patch(leading, imp=IMP(shape="layer")) is leading


def test_patching_twice_is_a_no_op() -> None:
    net = snn_ext.patch(leading_net(), imp=IMP(init=0.3))
    before = fingerprint(net)
    for again in (IMP(init=0.3), {"*": IMP(init=0.3)}):
        assert snn_ext.patch(net, imp=again, example_input=X) is net
        assert same(before, fingerprint(net))


def test_patching_twice_is_a_no_op_where_a_method_was_left_out() -> None:
    """Steps of the toy framework take no norms: caught by "*", they get IMP alone, every time."""
    net = snn_ext.patch(nn.Sequential(nn.Linear(4, 4), StepNeuron()), imp=True, mpbn=True)
    assert snn_ext.report(net).rows[0].methods == ("imp",)
    before = fingerprint(net)
    snn_ext.patch(net, imp=True, mpbn=True)
    assert same(before, fingerprint(net))


def test_the_rest_can_be_patched_later() -> None:
    net = snn_ext.patch(leading_net(), imp=True, include="1")
    first = net[1].imp
    snn_ext.patch(net, imp=True)
    assert net[1].imp is first
    assert isinstance(net[3].imp, nn.Parameter)


def test_unpatch_is_exact_and_harmless_on_a_plain_model() -> None:
    net = leading_net()
    before, output = fingerprint(net), net(X)
    assert snn_ext.unpatch(net) is net
    snn_ext.patch(net, imp=IMP(init=3.0))
    assert not torch.equal(net(X), output)
    snn_ext.unpatch(net)
    assert same(before, fingerprint(net))
    assert torch.equal(net(X), output)


def test_copies_are_patched_models_of_their_own() -> None:
    net = snn_ext.patch(leading_net(), imp=IMP(init=0.7))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(X), net(X))
        assert other[1].imp is not net[1].imp
        assert original_class(other[1]) is LeadingNeuron
        snn_ext.unpatch(other)
        assert type(other[1]) is LeadingNeuron
        assert not hasattr(other[1], "imp")
    assert hasattr(net[1], "imp")


def test_copies_load_older_checkpoints_too() -> None:
    net = snn_ext.patch(leading_net(), imp=True)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.warns(UserWarning, match="from before the patch"):
            other.load_state_dict(leading_net().state_dict())
        assert other[1].imp.data_ptr() != net[1].imp.data_ptr()


class Picky(LeadingNeuron):
    """Pickles itself its own way."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def __reduce__(self) -> Any:
        return Picky, (self.label,), self.__dict__


class PickyByType(Picky):
    """The same, in the other usual spelling."""

    def __reduce__(self) -> Any:
        return type(self), (self.label,), self.__dict__


@pytest.mark.parametrize("kind", [Picky, PickyByType])
def test_classes_with_their_own_pickling_survive(kind: type[Picky]) -> None:
    net = snn_ext.patch(nn.Sequential(nn.Linear(4, 4), kind("mine")), imp=IMP(init=0.7))
    other = pickle.loads(pickle.dumps(net))
    assert other[1].label == "mine"
    assert original_class(other[1]) is kind
    assert torch.equal(other(X), net(X))


def test_v0_follows_device_and_dtype_of_the_model() -> None:
    assert snn_ext.patch(leading_net().double(), imp=True)[1].imp.dtype is torch.float64
    assert snn_ext.patch(leading_net().bfloat16(), imp=True)[1].imp.dtype is torch.float32
    with torch.device("meta"):
        net = leading_net()
    assert snn_ext.patch(net, imp=True)[1].imp.is_meta


class Failing(ToyAdapter):
    """Replaces the first site and fails at the second, in the way it is told."""

    name = "failing"

    def __init__(self, how: str) -> None:
        self.how, self.count = how, 0

    @hookimpl
    def snn_ext_replace(self, site: Any, methods: Mapping[str, object], features: Any) -> Any:
        self.count += 1
        if self.count == 1:
            return super().snn_ext_replace(site, methods, features)
        if self.how == "raises after swapping":
            swap_class(site.module, type("Half", (nn.Module,), {}))
            raise RuntimeError("boom")
        if self.how == "interrupted":
            raise KeyboardInterrupt
        return {"returns nothing": None, "returns another module": nn.Linear(1, 1)}[self.how]

    @hookimpl
    def snn_ext_changed(self, root: nn.Module, replaced: Any) -> None:
        if self.how == "fails when told":
            raise RuntimeError("late boom")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("raises after swapping", AdapterError),
        ("interrupted", KeyboardInterrupt),
        ("returns nothing", AdapterError),
        ("returns another module", AdapterError),
    ],
)
def test_a_failure_halfway_takes_everything_back(how: str, error: type[BaseException]) -> None:
    plugins.registry().remove("toy")
    net = nn.Sequential(leading_net(), StepNeuron())
    before = fingerprint(net)
    with registered(Failing(how)), pytest.raises(error) as caught:
        snn_ext.patch(net, imp=IMP(shape="layer"))
    assert same(before, fingerprint(net))
    if error is AdapterError:
        assert str(caught.value).splitlines()[-1].startswith("  do: report this to the authors")
    snn_ext.register(ToyAdapter())


def test_a_failing_changed_hook_takes_everything_back() -> None:
    plugins.registry().remove("toy")
    net = leading_net()
    before = fingerprint(net)
    adapter = Failing("fails when told")
    adapter.count = -9
    adapter.snn_ext_replace = ToyAdapter().snn_ext_replace  # type: ignore[method-assign]
    with registered(adapter), pytest.raises(AdapterError, match="late boom"):
        snn_ext.patch(net, imp=True)
    assert same(before, fingerprint(net))
    snn_ext.register(ToyAdapter())


def test_trees_with_cycles_end() -> None:
    net = leading_net()
    net[1].__dict__["_modules"]["parent"] = net
    plan = snn_ext.plan(net, imp=IMP(shape="layer"))
    assert [d.site.path for d in plan.decisions] == ["1", "3"]


class Hooked(ToyAdapter):
    """Keeps a hook on patched roots."""

    name = "hooked"

    @hookimpl
    def snn_ext_changed(self, root: nn.Module, replaced: Any) -> None:
        root._forward_hooks.clear()
        if any(isinstance(m, InitialPotential) for m in root.modules()):
            root.register_forward_hook(lambda *_: None)


class Late:
    """Is told last, and raises."""

    @hookimpl
    def snn_ext_adapter(self) -> AdapterInfo:
        return AdapterInfo("late", "tests", "tests", ("imp",))

    @hookimpl
    def snn_ext_changed(self, root: nn.Module, replaced: Any) -> None:
        raise RuntimeError("late boom")


def test_adapters_that_were_told_of_a_patch_are_told_that_it_failed() -> None:
    plugins.registry().remove("toy")
    net = leading_net()
    before = fingerprint(net)
    with registered(Hooked()):
        with registered(Late()), pytest.raises(AdapterError, match="late boom"):
            snn_ext.patch(net, imp=True)
        assert same(before, fingerprint(net))
        snn_ext.patch(net, imp=True)
        assert net._forward_hooks
        snn_ext.unpatch(net)
    assert same(before, fingerprint(net))
    snn_ext.register(ToyAdapter())


class Copying(ToyAdapter):
    """Replaces by new objects that share the dictionaries of the old ones, the second without the mixin."""

    name = "copying"

    @hookimpl
    def snn_ext_replace(self, site: Any, methods: Mapping[str, object], features: Any) -> nn.Module:
        new = copy.copy(site.module)
        if site.path != "3":
            swap_class(new, Start)
        return new


def test_new_objects_that_share_with_the_old_ones_are_taken_back() -> None:
    plugins.registry().remove("toy")
    net = leading_net()
    with registered(Copying()):
        plan = snn_ext.plan(net, imp=True)
        before = fingerprint(net)
        with pytest.raises(AdapterError, match="cannot carry imp"):
            plan.apply()
        assert same(before, fingerprint(net))
    snn_ext.register(ToyAdapter())
