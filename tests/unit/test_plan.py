"""Selection, shapes, the printed plan, and every refusal; nothing changes while planning."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import snn_ext
from snn_ext import (
    IMP,
    AlreadyPatchedError,
    NothingMatchedError,
    OptionError,
    ShapeMismatchError,
    ShapeUnknownError,
    UnsupportedSiteError,
)
from snn_ext.methods.parts import part_shapes
from tests.toy import LeadingNeuron, Odd, StepNeuron, leading_net

X = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: t for k, t in {**module._parameters, **module._buffers}.items() if t is not None}


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything a failed patch could have touched."""
    return {
        name: (
            id(m),
            type(m),
            m.training,
            list(m.__dict__),
            {k: (id(t), t if is_lazy(t) else t.clone()) for k, t in tensors(m).items()},
            {k: [id(h) for h in v.values()] for k, v in m.__dict__.items() if k.endswith("hooks")},
        )
        for name, m in model.named_modules(remove_duplicate=False)
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def equal(p: Any, q: Any) -> bool:
        if isinstance(p, torch.Tensor):
            return is_lazy(p) or torch.equal(p, q)
        if isinstance(p, dict):
            return p.keys() == q.keys() and all(equal(p[k], q[k]) for k in p)
        if isinstance(p, tuple | list):
            return len(p) == len(q) and all(map(equal, p, q))
        return bool(p == q)

    return equal(a, b)


class Wide(nn.Module):
    """Calls one neuron with two different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.sn = LeadingNeuron()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sn(x).sum() + self.sn(x[..., :2]).sum()


class Holder(nn.Module):
    """A neuron that already has an attribute called imp."""

    def __init__(self) -> None:
        super().__init__()
        self.sn = LeadingNeuron()
        self.sn.imp = "mine"  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sn(x)


def odd_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), Odd(), nn.Linear(4, 4), LeadingNeuron())


def conv_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), StepNeuron())


def already() -> nn.Module:
    return snn_ext.patch(leading_net(), imp=True)


def compiled_in_place() -> nn.Module:
    net = leading_net()
    net.compile(backend="eager")
    return net


REFUSALS: dict[str, tuple[Callable[[], Any], dict[str, Any], type[Exception], str]] = {
    "no method": (leading_net, {}, NothingMatchedError, "pass one, for example imp=True"),
    "unknown keyword": (leading_net, {"impp": True}, OptionError, "did you mean 'imp'"),
    "unknown keyword, nothing close": (leading_net, {"zzz": 1}, OptionError, "drop it"),
    "misspelt include": (leading_net, {"imp": True, "includes": "*"}, OptionError, "mean 'include'"),
    "not an option": (leading_net, {"imp": 3}, OptionError, r"pass imp=True, imp=snn_ext\.IMP"),
    "not an option in a mapping": (leading_net, {"imp": {"*": "yes"}}, OptionError, "pass imp=True"),
    "not a pattern": (leading_net, {"imp": {1: True}}, OptionError, "use globs"),
    "include not a pattern": (leading_net, {"imp": True, "include": 3}, OptionError, "pass a glob"),
    "where not callable": (leading_net, {"imp": True, "where": 3}, OptionError, "pass a function"),
    "not a module": (lambda: "net", {"imp": True}, OptionError, "pass the network itself"),
    "no site": (lambda: nn.Linear(2, 2), {"imp": True}, NothingMatchedError, "install the adapter"),
    "all excluded": (leading_net, {"imp": True, "exclude": "*"}, NothingMatchedError, "widen include"),
    "where says no": (
        leading_net,
        {"imp": True, "where": lambda site: False},
        NothingMatchedError,
        "widen include",
    ),
    "unused include": (leading_net, {"imp": True, "include": ["1", "9"]}, NothingMatchedError, "correct"),
    "unused exclude": (leading_net, {"imp": True, "exclude": "head.*"}, NothingMatchedError, "correct"),
    "unused glob": (leading_net, {"imp": {"head": None, "*": True}}, NothingMatchedError, "correct"),
    "unused regex": (
        leading_net,
        {"imp": {re.compile("x+"): True, "*": True}},
        NothingMatchedError,
        "correct",
    ),
    "only a refused site": (lambda: nn.Sequential(Odd()), {"imp": True}, NothingMatchedError, "widen"),
    "refused by name": (odd_net, {"imp": True, "include": "[13]"}, UnsupportedSiteError, "leave this site"),
    "refused by glob": (odd_net, {"imp": {"1": IMP(), "*": True}}, UnsupportedSiteError, "leave this site"),
    "name taken": (Holder, {"imp": {"sn": True}}, UnsupportedSiteError, "leave this site"),
    "shape unknown": (conv_net, {"imp": True}, ShapeUnknownError, "pass example_input"),
    "shape unknown, nothing before": (LeadingNeuron, {"imp": True}, ShapeUnknownError, "pass example_input"),
    "two widths": (Wide, {"imp": True, "example_input": X}, ShapeUnknownError, "one neuron object per place"),
    "shape mismatch": (
        leading_net,
        {"imp": IMP(shape=(7,)), "example_input": X},
        ShapeMismatchError,
        "give the trailing dimensions",
    ),
    "example does not run": (
        leading_net,
        {"imp": True, "example_input": torch.rand(2, 9)},
        ShapeUnknownError,
        "pass what you would pass",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(4), LeadingNeuron()),
        {"imp": True, "example_input": X},
        ShapeUnknownError,
        "run one forward pass",
    ),
    "patched otherwise": (already, {"imp": IMP(init=0.0)}, AlreadyPatchedError, r"snn_ext\.unpatch"),
    "compiled": (
        lambda: torch.compile(leading_net(), backend="eager"),
        {"imp": True},
        UnsupportedSiteError,
        "use the original model",
    ),
    "compiled in place": (compiled_in_place, {"imp": True}, UnsupportedSiteError, "use the original model"),
    "data parallel": (
        lambda: nn.DataParallel(leading_net()),
        {"imp": True},
        UnsupportedSiteError,
        "use the original model",
    ),
    "wrapped inside": (
        lambda: nn.Sequential(nn.DataParallel(leading_net())),
        {"imp": True},
        UnsupportedSiteError,
        "use the original model",
    ),
    "scripted": (
        lambda: torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)),
        {"imp": True},
        UnsupportedSiteError,
        "use the original model",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_teach_and_leave_the_model_alone(case: str) -> None:
    make, arguments, error, remedy = REFUSALS[case]
    model = make()
    before = fingerprint(model) if isinstance(model, nn.Module) else {}
    random_state = torch.get_rng_state()
    for call in (snn_ext.plan, snn_ext.patch):
        with pytest.raises(error) as caught:
            call(model, **arguments)
        assert type(caught.value) is error
        last = str(caught.value).splitlines()[-1]
        assert re.match(rf"  do: .*{remedy}", last), last
    if before:
        assert same(before, fingerprint(model))
    assert torch.equal(random_state, torch.get_rng_state())


def test_the_fingerprint_sees_a_change() -> None:
    """The twin: what the refusals compare would notice a patched neuron."""
    net = leading_net()
    before = fingerprint(net)
    snn_ext.patch(net, imp=True)
    assert not same(before, fingerprint(net))


def test_planning_changes_nothing() -> None:
    net = leading_net()
    net.train()
    before, random_state = fingerprint(net), torch.get_rng_state()
    plan = snn_ext.plan(net, imp=True, example_input=X)
    assert same(before, fingerprint(net))
    assert torch.equal(random_state, torch.get_rng_state())
    assert plan.apply() is net
    assert not same(before, fingerprint(net))


def chosen(plan: snn_ext.Plan) -> dict[str, Any]:
    return {d.site.path: d.methods["imp"] for d in plan.decisions if d.methods}


def test_selection() -> None:
    net = leading_net()
    plan = lambda **kw: chosen(snn_ext.plan(net, **kw))  # noqa: E731
    assert list(plan(imp=True)) == ["1", "3"]
    assert list(plan(imp=True, include="1")) == ["1"]
    assert list(plan(imp=True, include=["1", re.compile("3")])) == ["1", "3"]
    assert list(plan(imp=True, exclude="1")) == ["3"]
    assert list(plan(imp=True, where=lambda site: site.path == "3")) == ["3"]
    assert plan(imp={"1": IMP(init=0.5), "*": True}) == {"1": IMP(init=0.5), "3": IMP()}
    assert plan(imp={"*": True, "1": IMP(init=0.5)}) == {"1": IMP(), "3": IMP()}, "the first match wins"
    assert list(plan(imp={"1": None, "*": True})) == ["3"]
    assert list(plan(imp={"1": False, "3": True})) == ["3"]


def test_a_refused_site_caught_by_the_star_is_skipped_with_its_reason() -> None:
    plan = snn_ext.plan(odd_net(), imp=True)
    assert list(chosen(plan)) == ["3"]
    assert "none at 1: it has no membrane" in str(plan)
    report = snn_ext.report(plan.apply())
    assert "it has no membrane" in str(report)


def test_shapes_are_inferred_where_they_are_certain() -> None:
    def shape(net: nn.Module, **option: Any) -> tuple[int, ...]:
        decisions = snn_ext.plan(net, imp=IMP(**option)).decisions
        return next(part_shapes(d.methods["imp"], d.place)[0] for d in decisions if d.methods)

    linear = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), StepNeuron()]
    assert shape(nn.Sequential(*linear)) == (6,)
    assert shape(nn.Sequential(nn.Sequential(*linear[:2]), linear[3])) == (6,)
    assert shape(conv_net(), shape="channel") == (3, 1, 1)
    assert shape(nn.Sequential(nn.Conv1d(1, 3, 3), StepNeuron()), shape="channel") == (3, 1)
    assert shape(conv_net(), shape="layer") == ()
    assert shape(conv_net(), shape=(3, 5, 5)) == (3, 5, 5)
    for between in (nn.Flatten(), nn.ReLU(), LeadingNeuron()):
        with pytest.raises(ShapeUnknownError):
            shape(nn.Sequential(nn.Conv2d(1, 3, 3), between, StepNeuron()), shape="channel")


def test_a_wrong_inference_is_caught_by_the_first_forward() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
            self.sn = LeadingNeuron()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.sn(self.a(x)))

    net = snn_ext.patch(Crossed(), imp=True)
    with pytest.raises(ShapeMismatchError, match=r"(?s)where: sn .*do: unpatch"):
        net(X)
    net = snn_ext.patch(snn_ext.unpatch(net), imp=True, example_input=X)
    assert net(X).shape == (3, 2, 3)


def test_example_input_forms() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sn = LeadingNeuron()

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.sn(x * scale)

    for example in ((X, torch.ones(())), [X, torch.ones(())], {"x": X, "scale": torch.ones(())}):
        plan = snn_ext.plan(Two(), imp=True, example_input=example)
        assert plan.decisions[0].features == (4,)
        assert plan.decisions[0].origin == "traced"


def test_one_neuron_at_two_resolutions_can_have_a_v0_per_channel() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sn = LeadingNeuron()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sn(x).sum() + self.sn(x[..., ::2]).sum()

    x = torch.rand(3, 2, 5, 8)
    with pytest.raises(ShapeUnknownError):
        snn_ext.plan(Pyramid(), imp=True, example_input=x)
    net = snn_ext.patch(Pyramid(), imp=IMP(shape="channel"), example_input=x)
    assert net.sn.imp.shape == (5, 1)
    assert net(x).isfinite()


def test_a_neuron_that_the_example_never_reaches_is_skipped() -> None:
    net = leading_net()
    net.register_module("spare", LeadingNeuron())
    net.forward = lambda x: nn.Sequential.forward(net[:5], x)  # type: ignore[assignment,method-assign]
    plan = snn_ext.plan(net, imp=True, example_input=X)
    assert list(chosen(plan)) == ["1", "3"]
    assert "never called with example_input" in str(plan)


def test_the_trace_restores_everything() -> None:
    class Busy(nn.Module):
        """Changes all that a forward pass can change."""

        def __init__(self) -> None:
            super().__init__()
            self.bn, self.drop, self.sn = nn.BatchNorm1d(4), nn.Dropout(), StepNeuron()
            self.register_buffer("count", torch.zeros(()))
            self.log: list[int] = [1]
            self.memories = {"v": 0.0}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            self.log.append(2)
            self.memories["v"] = x  # type: ignore[assignment]
            self.later = 3
            self.eval()
            return self.sn(self.drop(self.bn(x)))

    net = Busy()
    net.sn.v = torch.full((2, 4), 0.25)
    state = copy.deepcopy(net.state_dict())
    log, memories, v = net.log, net.memories, net.sn.v
    x, random_state = torch.rand(2, 4), torch.get_rng_state()
    snn_ext.plan(net, imp=True, example_input=x)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert net.training
    assert net.bn.training
    assert net.log is log
    assert log == [1]
    assert net.memories is memories
    assert memories == {"v": 0.0}
    assert net.sn.v is v
    assert not hasattr(net, "later")
    assert not net.sn._forward_pre_hooks


def test_print_fits_100_columns_and_shows_every_site() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_module_with_quite_a_long_name = nn.ModuleDict(
                {"another_rather_long_name": nn.Sequential(nn.Linear(4, 4), LeadingNeuron(), Odd())}
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a_module_with_quite_a_long_name["another_rather_long_name"](x)  # type: ignore[no-any-return]

    plan = snn_ext.plan(Deep(), imp=True, example_input=X)
    text = str(plan)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.split())
    for part in ("LeadingNeuron toy leading", "Odd toy leading", "4 (traced) IMP 4"):
        assert part in words, part
    assert "another_rather_long_name.2: it has no membrane" in words
    assert text.splitlines()[-1] == "1 of 2 sites, 4 new parameters"


def test_to_dict_is_plain_data() -> None:
    import json

    data = snn_ext.plan(odd_net(), imp=True).to_dict()
    assert json.loads(json.dumps(data)) == data
    row = data["sites"][1]
    assert row["site"] == "3"
    assert row["parameters"] == {"imp": 4}
    assert data["sites"][0]["note"] == "it has no membrane"


def test_a_stale_plan_is_refused() -> None:
    net = leading_net()
    plan = snn_ext.plan(net, imp=True)
    net[1] = LeadingNeuron()
    with pytest.raises(OptionError, match="do: make a new plan"):
        plan.apply()
    net = leading_net()
    plan = snn_ext.plan(net, imp=True)
    plan.apply()
    with pytest.raises(OptionError, match="do: make a new plan"):
        plan.apply()
