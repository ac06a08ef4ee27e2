"""Every sensible set of methods on whole networks of both frameworks: train, save, load, take back."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, IMP, MPBN, TEBN, OptionError
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.spikingjelly_nets import conv_net, functional
from tests.adapters.whole_nets import CASES, Case, T, sequences
from tests.property.round_trip import without_state
from tests.unit.test_plan import fingerprint, same

SUBSETS = [
    (*imp, *mpbn, *time)
    for imp in ((), ("imp",))
    for mpbn in ((), ("mpbn",))
    for time in ((), ("bntt",), ("tebn",))
    if imp or mpbn or time
]
"""All but those with BNTT and TEBN on one site, which are refused."""


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def options(names: tuple[str, ...], case: Case) -> dict[str, Any]:
    known: dict[str, Any] = {
        "imp": IMP(),
        "mpbn": MPBN(),
        "bntt": BNTT(),
        "tebn": TEBN(stats="step" if case.per_call else "joint"),
    }
    return {name: known[name] for name in names}


def patched(case: Case, methods: dict[str, Any], net: nn.Module | None = None) -> nn.Module:
    net = case.build() if net is None else net
    return snn_ext.patch(net, **methods, timesteps=T, example_input=case.example())


def new_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """All that snn-ext added, and that trains."""
    parts = {"imp", "mpbn", "bntt", "tebn"}
    return {n: p for n, p in net.named_parameters() if parts & set(n.split("."))}


def train(case: Case, net: nn.Module, iterations: int = 5) -> None:
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=case.rate, weight_decay=1e-4), momentum=0.9)
    snn_ext.check_optimizer(net, optimizer)
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = case.loss_of(net)
        assert torch.isfinite(loss)
        loss.backward()
        for name, parameter in new_parameters(net).items():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
        optimizer.step()
    snn_ext.reset(net)


def used(case: Case) -> nn.Module:
    """A network whose norms have seen data: fresh ones keep deep neurons silent."""
    net = case.build().train()
    with torch.no_grad():
        for _ in range(2):
            case.run(net, case.data())
    snn_ext.reset(net)
    return net


def outputs(case: Case, net: nn.Module, x: Tensor) -> Tensor:
    """Spikes and membranes where there are both."""
    with torch.no_grad():
        result = case.run(net.eval(), x)
        stacked = torch.stack(result) if isinstance(result, tuple) else result.clone()
    snn_ext.reset(net)
    return stacked


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("name", CASES)
def test_methods_together(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    case = CASES[name]
    methods, x = options(names, case), case.data()
    net = used(case)
    first = outputs(case, net, x)
    assert first.any(), "an equality of silent networks proves nothing"
    before, keys = fingerprint(net), list(net.state_dict())

    patched(case, methods, net)
    assert [k for k in net.state_dict() if k in set(keys)] == keys
    assert {row for r in snn_ext.report(net).rows for row in r.methods} == set(names)
    snn_ext.unpatch(net)
    assert same(without_state(before), without_state(fingerprint(net))), "classes, hooks, tensors, flags"
    assert torch.equal(outputs(case, net, x), first)

    patched(case, methods, net).train()
    start = {n: p.detach().clone() for n, p in new_parameters(net).items()}
    train(case, net)
    moved = {n for n, p in new_parameters(net).items() if not torch.equal(p, start[n])}
    for method in names:
        learns = any(method in n.split(".") for n in moved)
        hidden = case.dense and method == "imp" and "mpbn" in names  # see test_mpbn_hides_v0_in_dense_layers
        assert learns or hidden, f"{method} learns nothing"

    trained = outputs(case, net, x)
    snn_ext.save(net, tmp_path / "net")
    assert torch.equal(outputs(case, snn_ext.load(case.build(), tmp_path / "net"), x), trained)
    twin = patched(case, methods)
    twin.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(outputs(case, twin, x), trained)
    with torch.no_grad():
        for n, p in new_parameters(twin).items():
            if names[-1] in n.split("."):
                p.mul_(-3)
    assert not torch.equal(outputs(case, twin, x), trained), "the comparison sees what was loaded"

    snn_ext.unpatch(net)
    after = fingerprint(net)
    for path, (identity, kind, *_, hooks) in before.items():
        assert after[path][:2] == (identity, kind)
        assert after[path][-1] == hooks
    assert list(net.state_dict()) == keys
    assert all(p.requires_grad for p in net.parameters())
    plain = case.build()
    plain.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(outputs(case, net, x), outputs(case, plain, x)), "the plain network, as it was trained"


@pytest.mark.parametrize("name", ["T6 with norms", "conv_net in a loop", "sew_resnet18"])
def test_a_norm_over_time_at_norms_and_another_at_neurons(name: str, tmp_path: Path) -> None:
    """All four methods: BNTT where there were norms, TEBN before the neurons."""
    case = CASES[name]
    methods = options(("imp", "mpbn", "bntt"), case)
    methods["tebn"] = TEBN(stats="step" if case.per_call else "joint", at="neuron")
    net, x = patched(case, methods), case.data()
    train(case, net, 2)
    snn_ext.save(net, tmp_path / "net")
    loaded = snn_ext.load(case.build(), tmp_path / "net")
    assert torch.equal(outputs(case, loaded, x), outputs(case, net, x))
    snn_ext.unpatch(net)
    assert net.state_dict().keys() == case.build().state_dict().keys()


@pytest.mark.parametrize("name", CASES)
def test_bntt_and_tebn_on_one_site_are_refused(name: str) -> None:
    case = CASES[name]
    net = case.build()
    before = fingerprint(net)
    for more in ({}, {"imp": IMP()}, {"mpbn": MPBN()}, {"imp": IMP(), "mpbn": MPBN()}):
        with pytest.raises(OptionError, match="BNTT and TEBN cannot both normalise"):
            patched(case, {**options(("bntt", "tebn"), case), **more}, net)
        assert same(without_state(before), without_state(fingerprint(net)))


def test_mpbn_hides_v0_in_dense_layers() -> None:
    """V0 shifts a neuron alike in all samples, and where every neuron is a channel of its own, MPBN
    subtracts that shift with the mean of the batch; inference uses running statistics, and sees it."""
    for features, reaches in (((5,), False), ((2, 3, 3), True)):
        net = snn.Leaky(beta=0.8, init_hidden=True)
        x = torch.randn(T, 6, *features) * 3
        snn_ext.patch(net, imp=IMP(), mpbn=MPBN(), example_input=x[0])
        spikes = torch.stack([net(x_t) for x_t in x])
        (spikes * torch.linspace(-1, 1, spikes.numel()).view_as(spikes)).sum().backward()
        # 1e-4: what rounding leaves of the differences
        assert (net.imp.grad.abs().max() > 1e-4) == reaches
        first = outer(net.eval(), x)
        with torch.no_grad():
            net.imp.add_(1)
        assert not torch.equal(outer(net, x), first)


def outer(net: nn.Module, x: Tensor) -> Tensor:
    snn_ext.reset(net)
    with torch.no_grad():
        return torch.stack([net(x_t) for x_t in x])


def test_what_a_loss_on_membranes_does_not_reach() -> None:
    """Why training here uses spikes: with raw carry, snnTorch's membrane H of the last neuron depends on
    its own MPBN only through the reset, which the framework detaches."""
    case = CASES["T5"]
    net = patched(case, {"imp": IMP(), "mpbn": MPBN()})
    snn_ext.loss(net, "tet", on="membrane")(case.run(net, case.data()), torch.arange(4)).backward()
    unreached = {n for n, p in net.named_parameters() if p.grad is None}
    assert unreached == {"lif2.mpbn.bn.weight", "lif2.mpbn.bn.bias"}


def test_what_a_loss_on_the_last_step_does_not_reach() -> None:
    """With nothing carried over, the scales of earlier steps have no part in the result."""
    net = nn.Sequential(nn.Linear(12, 5), snn.Leaky(beta=0.0, init_hidden=True, output=True))
    snn_ext.patch(net, tebn=TEBN(stats="step"), timesteps=T)
    x = torch.randn(6, 12) * 4
    last = [net(x)[1] for _ in range(T)][-1]
    snn_ext.LTS()(last[None], torch.arange(6) % 5).backward()
    grad = net[1].tebn.scale.grad
    assert torch.equal(grad[:-1], torch.zeros(T - 1))
    assert grad[-1] != 0


@pytest.mark.parametrize("names", [("imp", "bntt"), ("imp", "mpbn", "tebn")], ids="+".join)
def test_methods_together_compile(names: tuple[str, ...]) -> None:
    """Whole sequences, without a graph break."""
    torch._dynamo.reset()
    case = Case(conv_net, sequences, (T, 3, 2, 6, 6), per_call=False, batch=1)
    net, x = patched(case, options(names, case)), case.data()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="eager")
    for _ in range(2):
        assert torch.equal(case.run(net, x), compiled(x))
        functional.reset_net(compiled)
