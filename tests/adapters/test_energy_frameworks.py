"""Energy of whole networks of both frameworks against counts of our own: hooks and numpy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import op_counter
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import snn_ext
from snn_ext import Energy, energy
from tests.adapters import whole_nets
from tests.adapters.snntorch_nets import t6s
from tests.adapters.spikingjelly_nets import StepLoop, conv_net, functional, layer, memopt, neuron, sew_resnet

T, B = 3, 2


@dataclass
class Count:
    """What one layer was given: products in all calls, and values that are not zero, or not 0 or 1."""

    macs: int = 0
    values: int = 0
    nonzero: int = 0
    total: float = 0.0
    odd: int = 0
    order: list[int] = field(default_factory=list)


def counted(net: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, Count]:
    """Hooks on layers while the model runs as it always does, and numpy."""
    counts: dict[str, Count] = {}

    def note(name: str, module: Any, x: Tensor, y: Tensor) -> None:
        count, values = counts.setdefault(name, Count()), x.detach().double().numpy()
        per_value = module.in_features if isinstance(module, nn.Linear) else math.prod(module.kernel_size)
        per_value *= 1 if isinstance(module, nn.Linear) else module.in_channels // module.groups
        count.macs += y.numel() * per_value
        count.values += values.size
        count.nonzero += np.count_nonzero(values)
        count.total += float(np.abs(values).sum())
        count.odd += int(((values != 0) & (values != 1)).sum())

    handles = [
        module.register_forward_hook(lambda m, x, y, name=name: note(name, m, x[0], y))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    snn_ext.reset(net)
    with torch.no_grad():
        run(net.eval())
    snn_ext.reset(net)
    for handle in handles:
        handle.remove()
    return counts


def expected(counts: dict[str, Count], convention: str, extra_macs: float = 0.0) -> tuple[float, float]:
    """MACs and SOPs of one sample, straight from the formulas."""
    macs, sops = extra_macs, 0.0
    for i, count in enumerate(counts.values()):
        if convention == "spikformer" and i == 0:
            macs += count.macs / (T * B)
        elif convention == "strict" and count.odd:
            macs += count.macs / B
        else:
            sops += count.macs / B * count.nonzero / count.values
    return macs, sops


def check(
    report: Energy, counts: dict[str, Count], *, extra_macs: float = 0.0, products: tuple[str, ...] = ()
) -> None:
    """Every layer and the totals."""
    layers = {found.name: found for found in report.layers if found.kind in ("conv", "linear")}
    assert list(layers) == list(counts)
    for name, count in counts.items():
        assert layers[name].flops * T * B == count.macs, name
        assert layers[name].rate == pytest.approx(count.nonzero / count.values), name
        assert (layers[name].values == "binary") == (count.odd == 0), name
    macs, sops = expected(counts, report.convention, extra_macs)
    assert report.macs == pytest.approx(macs, rel=1e-12)
    assert report.sops == pytest.approx(sops, rel=1e-12)
    assert report.total_mj == pytest.approx((4.6 * macs + 0.9 * sops) * 1e-9, rel=1e-12)
    assert report.total_mj == pytest.approx(sum(found.mj for found in report.layers), rel=1e-12)


def trained(net: nn.Module, x: Tensor, passes: int = 3) -> nn.Module:
    """Norms that have seen data."""
    for _ in range(passes):
        snn_ext.reset(net)
        net.train()(x)
    snn_ext.reset(net)
    return net


def neurons_inputs(net: nn.Module, x: Tensor) -> int:
    """Elements that go through all neurons of SpikingJelly."""
    sizes: list[int] = []
    nodes = [m for m in net.modules() if isinstance(m, neuron.BaseNode)]
    handles = [m.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel())) for m in nodes]
    with torch.no_grad():
        net(x)
    snn_ext.reset(net)
    for handle in handles:
        handle.remove()
    return sum(sizes)


# --- SpikingJelly ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sew() -> tuple[nn.Module, Tensor]:
    """A SEW-ResNet with ADD shortcuts, with IMP and MPBN in it."""
    torch.manual_seed(0)
    net, x = whole_nets.small_sew_resnet18(), torch.rand(T, B, 3, 32, 32) * 4
    trained(net, x)
    snn_ext.patch(net, imp=True, mpbn=True, example_input=x)
    return trained(net, x).eval(), x


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("convention", ["spikformer", "strict"])
def test_a_patched_and_folded_sew_resnet(
    sew: tuple[nn.Module, Tensor], convention: Any, folded: bool
) -> None:
    net, x = copy.deepcopy(sew[0]), sew[1]
    if folded:
        snn_ext.fold(net, x)
    counts = counted(net, lambda model: model(x))
    report = energy(net, x, convention)
    assert (report.timesteps, report.batch) == (T, B)
    norms = {found.name: found for found in report.layers if found.kind == "norm"}
    assert len(norms) == 20 + 20
    assert sum(found.macs > 0 for found in norms.values()) == (0 if folded else 20), "unfolded MPBN costs"
    extra = 0 if folded else neurons_inputs(net, x) / B
    check(report, counts, extra_macs=extra)
    # what makes the conventions differ: integers from the shortcuts
    integers = {found.name for found in report.layers if found.values == "integer"}
    assert {"layer1.1.conv1", "layer2.0.downsample.0"} <= integers
    assert "layer1.0.conv1" not in integers
    assert any(note.startswith("V0 of 20 neurons") for note in report.notes)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    snn_ext.reset(net)
    dense = sum(found.flops for found in report.layers if found.kind != "norm")
    assert dense * T * B == counter.get_total_flops() // 2


def test_the_checks_above_can_fail(sew: tuple[nn.Module, Tensor]) -> None:
    """Wrong twins: conv1 at every step, the rate as the mean of values, the rate of zeros."""
    net, x = sew
    counts = counted(net, lambda model: model(x))
    extra = neurons_inputs(net, x) / B
    report = energy(net, x)
    check(report, counts, extra_macs=extra)
    every_step = copy.deepcopy(counts)
    every_step["conv1"].macs *= T
    by_value = copy.deepcopy(counts)
    by_zeros = copy.deepcopy(counts)
    for name in counts:
        by_value[name].nonzero = by_value[name].total  # type: ignore[assignment]
        by_zeros[name].nonzero = by_zeros[name].values - by_zeros[name].nonzero
    for wrong in (every_step, by_value, by_zeros):
        with pytest.raises(AssertionError):
            check(report, wrong, extra_macs=extra)
    with pytest.raises(AssertionError):
        check(report, counts)  # the unfolded norms forgotten


def test_resnet18_on_imagenet() -> None:
    """1,814,073,344 MACs is what every counter says of its convolutions and its classifier."""
    net = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode)
    functional.set_step_mode(net, "m")
    report = energy(net, torch.rand(1, 1, 3, 224, 224), "strict")
    assert sum(found.flops for found in report.layers if found.kind != "norm") == 1_814_073_344
    assert report.layers[0].flops == 118_013_952


def grouped() -> nn.Module:
    """Average pooling, groups, and a bias."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.IFNode(),
        layer.AvgPool2d(2),
        layer.Conv2d(4, 6, 3, padding=1, groups=2),
        neuron.LIFNode(v_threshold=0.1),
        layer.Flatten(),
        layer.Linear(54, 5),
    )
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("convention", ["spikformer", "strict"])
@pytest.mark.parametrize("method", ["none", "bntt", "tebn", "tebn at neurons"])
def test_norms_over_time(method: str, convention: Any) -> None:
    net, x = grouped(), torch.rand(T, B, 2, 6, 6) * 4
    options: dict[str, Any] = {
        "none": {},
        "bntt": {"bntt": True},
        "tebn": {"tebn": {"1": snn_ext.TEBN()}},
        "tebn at neurons": {"tebn": {"*5": snn_ext.TEBN(at="neuron")}},
    }[method]
    if options:
        snn_ext.patch(net, example_input=x, timesteps=T, **options)
    trained(net, x).eval()
    elements = {"none": 0, "bntt": 4 * 36, "tebn": 4 * 36, "tebn at neurons": 6 * 9}[method]
    counts = counted(net, lambda model: model(x))
    report = energy(net, x, convention)
    check(report, counts, extra_macs=T * elements)
    assert next(found for found in report.layers if found.name == "4").values == "analog", "pooled spikes"
    if options:
        snn_ext.fold(net)
        check(energy(net, x, convention), counted(net, lambda model: model(x)))


def test_a_folded_norm_that_no_layer_can_take_still_costs() -> None:
    """A neuron behind a pool: its input is not what a convolution put out."""
    net = nn.Sequential(layer.Conv2d(2, 4, 3), layer.MaxPool2d(2), neuron.IFNode(), layer.Linear(2, 3))
    functional.set_step_mode(net, "m")
    x = torch.rand(T, B, 2, 6, 6)
    snn_ext.patch(net, tebn=True, example_input=x, timesteps=T)
    trained(net, x).eval()
    costs = []
    for fold in (False, True):
        if fold:
            snn_ext.fold(net)
        (norm,) = [found for found in energy(net, x).layers if found.kind == "norm"]
        costs.append((norm.macs, norm.note))
    assert costs == [
        (T * 4 * 4, "not folded"),
        (T * 4 * 4, "not directly behind a layer that could take it"),
    ]


def test_step_by_step_equals_the_whole_sequence() -> None:
    net, x = conv_net(), torch.rand(T, B, 2, 6, 6) * 4
    snn_ext.patch(net, imp=True, mpbn=True, example_input=x)
    whole = energy(net, x)
    functional.set_step_mode(net, "s")
    for stepwise in (net, StepLoop(net)):
        found = energy(stepwise, x)
        assert (found.timesteps, found.batch, found.total_mj) == (T, B, whole.total_mj)
        assert [f.sops for f in found.layers] == [f.sops for f in whole.layers]


def test_containers_checkpoints_and_the_memory_optimiser() -> None:
    x = torch.rand(T, B, 2, 6, 6) * 4
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
        neuron.LIFNode(tau=2.0),
        layer.MultiStepContainer(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)),
        neuron.IFNode(),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(48, 3)),
    )
    functional.set_step_mode(net, "m")
    report = energy(net, x)
    check(report, counted(net, lambda model: model(x)))
    assert [found.macs for found in report.layers if found.kind == "norm"] == [0, 0]
    patched = snn_ext.patch(copy.deepcopy(net), mpbn=True, example_input=x)
    before = energy(patched, x)
    optimised = nn.Sequential(memopt.checkpoint_module(nn.Sequential(*patched[:2])), *patched[2:])
    after = energy(optimised, x)
    assert (after.macs, after.sops, after.timesteps) == (before.macs, before.sops, T)
    assert sum(found.macs > 0 for found in after.layers if found.kind == "norm") == 2


def test_spikformer_with_its_attention() -> None:
    net, x = whole_nets.small_spikformer(), torch.rand(T, B, 3, 16, 16) * 4
    trained(net, x, passes=6).eval()
    counts = counted(net, lambda model: model(x))
    report = energy(net, x, "strict")
    products = [found for found in report.layers if found.kind == "product"]
    assert len(products) == 2, "queries with keys, scores with values"
    assert all(found.values == "binary" and found.macs == 0 for found in products)
    weighted = [found for found in report.layers if found.kind in ("conv", "linear")]
    assert [found.flops * T * B for found in weighted] == [count.macs for count in counts.values()]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    dense = sum(found.flops for found in report.layers if found.kind != "norm")
    assert dense * T * B == counter.get_total_flops() // 2
    assert not any("NOT counted" in note for note in report.notes)


def test_where_spikingjellys_counters_agree_and_where_not() -> None:
    def theirs(net: nn.Module, x: Tensor) -> tuple[int, int]:
        counters = [op_counter.MACCounter(), op_counter.SynOpCounter()]
        with op_counter.DispatchCounterMode(counters), torch.no_grad():
            net(x)
        macs, sops = (counter.get_total() for counter in counters)
        return macs, sops

    def ours(net: nn.Module, x: Tensor) -> tuple[float, float]:
        report = energy(net, x, "strict")
        return report.macs * report.batch, report.sops * report.batch

    spikes = (torch.rand(5, 6) < 0.4).float()
    linear = nn.Linear(6, 3)
    for x in (spikes, spikes / 2, spikes * 2):
        assert ours(linear, x) == pytest.approx(theirs(linear, x))
    images = (torch.rand(4, 2, 5, 5) < 0.3).float()
    conv = nn.Conv2d(2, 3, 3, padding=1)
    (macs, sops), (their_macs, their_sops) = ours(conv, images), theirs(conv, images)
    assert macs == their_macs == 0
    assert their_sops < 0.9 * sops, "they count what a spike really reaches: fewer positions at borders"
    steps = torch.stack([spikes, spikes / 2])
    assert energy(linear, steps, "strict", per_step=True).macs == 2 * 18, "a layer is analog or not"
    assert theirs(linear, steps[0])[0] + theirs(linear, steps[1])[0] == 5 * 18, "theirs only in that step"


# --- snnTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["spikformer", "strict"])
@pytest.mark.parametrize("methods", [{}, {"imp": True, "mpbn": True}], ids=["plain", "patched"])
def test_a_convolutional_network_of_snntorch(methods: dict[str, Any], convention: Any) -> None:
    """The tutorial's network with norms; the loop over a static image is in forward."""
    net, x = whole_nets.T6WithNorms(), torch.rand(B, 1, 10, 10) * 4
    for module in (net.conv2, net.fc1):
        nn.init.normal_(module.weight, std=1.0)
    trained(net, x)
    extra = 0.0
    if methods:
        snn_ext.patch(net, example_input=x, **methods)
        extra = T * (4 * 4 * 4 + 6 * 1 * 1 + whole_nets.CLASSES)  # behind conv and pool: 4x4, 1x1
    counts = counted(net, lambda model: model(x))
    report = energy(net, x, convention)
    assert (report.timesteps, report.batch) == (T, B)
    assert all(count.nonzero for count in counts.values()), "every layer sees spikes"
    check(report, counts, extra_macs=extra)
    if methods:
        snn_ext.fold(net.eval())
        check(energy(net, x, convention), counted(net, lambda model: model(x)))


def test_hidden_states_with_the_loop_outside() -> None:
    net, x = t6s(4, 6, 16), torch.rand(B, 1, 16, 16) * 4
    states = {name: value.clone() for name, value in net.state_dict().items()}
    counts = counted(net, lambda model: [model(x) for _ in range(T)])
    report = energy(net, x, timesteps=T)
    check(report, counts)
    assert energy(net, x.expand(T, *x.shape)) == report
    after = net.state_dict()
    assert all(torch.equal(states[name], after[name]) for name in states)
    # without the number of steps it is one call: one step
    assert energy(net, x, per_step=False).timesteps == 1


def test_recurrent_spikes_are_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.neuron = nn.Linear(4, 6), snn.RLeaky(beta=0.9, linear_features=6, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.neuron(self.fc(x))  # type: ignore[no-any-return]

    report = energy(Net(), torch.rand(T, B, 4) * 4)
    recurrent = next(found for found in report.layers if found.name == "neuron.recurrent")
    assert (recurrent.flops, recurrent.values) == (36, "binary")
    assert not any("NOT counted" in note for note in report.notes)


# --- both --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T6 with norms", "MNISTNet", "conv_net in a loop"])
def test_a_measured_model_goes_on_as_if_nothing_had_happened(name: str) -> None:
    case = whole_nets.CASES[name]
    net, x = case.build(), case.data()
    outputs = []
    for measured in (False, True):
        torch.manual_seed(0)
        snn_ext.reset(net)
        twin = copy.deepcopy(net).train()
        first = case.run(twin, x)
        if measured:
            energy(twin, x)
            assert all(module.training for module in twin.modules())
        outputs.append((first, twin(x), twin.state_dict()))
    plain, after = outputs
    for a, b in zip(_tensors(plain), _tensors(after), strict=True):
        assert torch.equal(a, b)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [tensor for part in parts for tensor in _tensors(part)]
