"""Every sensible set of methods on whole networks of both frameworks: train, save, load, take back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from snn_ext import BNTT, IMP, MPBN, TEBN, OptionError
from tests.adapters.snntorch_nets import T5, private_instances
from tests.adapters.spikingjelly_nets import (
    StepLoop,
    conv_net,
    functional,
    layer,
    neuron,
    neurons_of,
    sew_resnet,
    spiking_vgg,
)
from tests.adapters.test_spikingjelly_neutral import ZOO
from tests.property.round_trip import without_state
from tests.unit.test_plan import fingerprint, same

T = 3
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


class T6WithNorms(nn.Module):
    """The convolutional tutorial network with batch norms before its pools; the loop in forward."""

    def __init__(self) -> None:
        super().__init__()
        bump = surrogate.fast_sigmoid(slope=25)
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.lif1 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.lif2 = snn.Leaky(beta=0.5, spike_grad=bump)
        self.fc1 = nn.Linear(6, 5)
        self.lif3 = snn.Leaky(beta=0.5, spike_grad=bump)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes, membranes = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(F.max_pool2d(self.bn1(self.conv1(x)), 2), mem1)
            spk2, mem2 = self.lif2(F.max_pool2d(self.bn2(self.conv2(spk1)), 2), mem2)
            spk3, mem3 = self.lif3(self.fc1(spk2.flatten(1)), mem3)
            spikes.append(spk3)
            membranes.append(mem3)
        return torch.stack(spikes), torch.stack(membranes)


def one_step(*, norms: bool) -> nn.Sequential:
    """A Sequential of one step, with ``init_hidden``."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4) if norms else nn.Identity(),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.8, init_hidden=True),
        nn.Flatten(),
        nn.Linear(36, 5),
        snn.Leaky(beta=0.8, init_hidden=True, output=True),
    )


def small_t5() -> nn.Module:
    return T5(inputs=12, hidden=16, classes=5, steps=T)


def call(net: nn.Module, x: Tensor) -> Any:
    return net(x)


def outer_loop(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """``utils.reset`` does not reach copies and loaded networks, `snn_ext.reset` does."""
    utils.reset(net)
    snn_ext.reset(net)
    spikes, membranes = zip(*(net(x) for _ in range(T)), strict=True)
    return torch.stack(spikes), torch.stack(membranes)


def sequences(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return net(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A network: how it is built and run, what it takes, and whether it is called once per step."""

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Any]
    shape: tuple[int, ...]
    per_call: bool = True
    scale: float = 4.0

    def data(self) -> Tensor:
        return torch.randn(self.shape) * self.scale

    def example(self) -> Tensor:
        return torch.rand(self.shape)


def narrowed(net: nn.Module, by: int = 8) -> nn.Module:
    """The same network with fewer channels, all of its layers made new (`net` may be on the meta device)."""

    def width(n: int) -> int:
        return n if n in (3, 5) else n // by  # colours and classes stay

    def anew(old: nn.Module) -> nn.Module | None:
        if isinstance(old, layer.Conv2d):
            sizes: Any = (old.kernel_size, old.stride, old.padding)
            return layer.Conv2d(
                width(old.in_channels), width(old.out_channels), *sizes, bias=old.bias is not None
            )
        if isinstance(old, layer.BatchNorm2d):
            return layer.BatchNorm2d(width(old.num_features), momentum=0.5)
        if isinstance(old, layer.Linear):
            return layer.Linear(width(old.in_features), width(old.out_features))
        return None

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            new = anew(child)
            if new is not None:
                setattr(parent, name, new)
    return net


def lively(net: nn.Module) -> nn.Module:
    """Deep neurons fire too, so that outputs depend on what is in front of them."""
    for node in neurons_of(net):
        node.v_threshold = 0.25
    functional.set_step_mode(net, "m")
    return net


def small_sew_resnet18() -> nn.Module:
    with torch.device("meta"):
        net = sew_resnet.sew_resnet18(num_classes=5, cnf="ADD", spiking_neuron=neuron.IFNode)
    return lively(narrowed(net))


def small_vgg11() -> nn.Module:
    with torch.device("meta"):
        net = spiking_vgg.spiking_vgg11_bn(num_classes=5, init_weights=False, spiking_neuron=neuron.LIFNode)
    net.avgpool = layer.AdaptiveAvgPool2d((1, 1))
    net.classifier[0] = layer.Linear(512, 512)
    net.classifier[3] = layer.Linear(512, 256)
    net.classifier[6] = layer.Linear(256, 5)
    return lively(narrowed(net))


def small_spikformer() -> nn.Module:
    net = lively(ZOO["spikformer"].make())
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
    return net


def _sequences(build: Callable[[], nn.Module], *shape: int) -> Case:
    return Case(build, sequences, (T, 3, *shape), per_call=False)


CASES = {
    "T5": Case(small_t5, call, (4, 12)),
    "T6 with norms": Case(T6WithNorms, call, (4, 1, 10, 10)),
    "Sequential": Case(lambda: one_step(norms=False), outer_loop, (4, 1, 8, 8)),
    "Sequential with norms": Case(lambda: one_step(norms=True), outer_loop, (4, 1, 8, 8)),
    "conv_net in a loop": Case(lambda: StepLoop(conv_net(mode="s")), sequences, (T, 4, 2, 6, 6)),
    "sew_resnet18": _sequences(small_sew_resnet18, 3, 16, 16),
    "spiking_vgg11_bn": _sequences(small_vgg11, 3, 32, 32),
    "spikformer": _sequences(small_spikformer, 3, 16, 16),
}


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
    """With a loss on the spikes of every step, so that every new parameter has a part in it."""
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.05, weight_decay=1e-4), momentum=0.9)
    snn_ext.check_optimizer(net, optimizer)
    criterion = snn_ext.loss(net, "tet", on="spikes")
    labels = torch.arange(case.shape[0] if case.per_call and len(case.shape) < 5 else case.shape[1]) % 5
    for _ in range(iterations):
        optimizer.zero_grad()
        outputs = case.run(net, case.data())
        loss = criterion(outputs, labels)
        assert torch.isfinite(loss)
        loss.backward()
        for name, parameter in new_parameters(net).items():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all(), f"{name} has a gradient that is not finite"
        optimizer.step()
    snn_ext.reset(net)


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
    net = case.build()
    first = outputs(case, net, x)
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
        assert learns or (name == "T5" and method == "imp" and "mpbn" in names), f"{method} learns nothing"

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
    for more in ({}, {"imp": IMP(), "mpbn": MPBN()}):
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
    case = Case(conv_net, sequences, (T, 3, 2, 6, 6), per_call=False)
    net, x = patched(case, options(names, case)), case.data()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="eager")
    for _ in range(2):
        assert torch.equal(case.run(net, x), compiled(x))
        functional.reset_net(compiled)
