"""Energy without any framework: published oracles, counts by hand, conventions, and what is left behind."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import snn_ext
from snn_ext import Energy, NothingMatchedError, OptionError, ShapeUnknownError, UnsupportedSiteError, energy
from snn_ext.analysis.energy_conventions import Geometry, charged
from snn_ext.analysis.energy_counts import Tally
from snn_ext.analysis.energy_report import millijoules
from snn_ext.analysis.energy_values import Operand, values_of
from tests.toy import LeadingNeuron, StepNeuron, leading_net
from tests.unit.test_early_exit import Loop

CONV1 = 118_013_952
"""Multiply-accumulates of the first layer of a ResNet: 3 -> 64 channels, 7x7, on 224x224."""


def spikes(*shape: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(shape) < rate).float()


def layer(report: Energy, name: str) -> snn_ext.LayerEnergy:
    return next(found for found in report.layers if found.name == name)


# --- published numbers ---------------------------------------------------------------------------------


def test_the_first_layer_of_a_resnet() -> None:
    for convention in ("spikformer", "strict"):
        report = energy(nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.rand(1, 3, 224, 224), convention)
        assert report.macs == report.layers[0].flops == CONV1
        assert f"{report.total_mj:.5f}" == "0.54286"


def network(sops: float, steps: int) -> list[Tally]:
    """A first layer as above, run at every step, and everything else as one layer."""
    first = Tally("conv1", "conv", CONV1 * steps, [Operand(CONV1 * steps, 0, "analog")])
    first.shapes[steps, 3, 224, 224] = 1
    rest = Tally("rest", "conv", int(sops * 5), [Operand(sops, sops, "binary")], Counter({(steps, 64): 1}))
    return [first, rest]


@pytest.mark.parametrize(("sops", "printed"), [(3.88e9, "4.035"), (4.83e9, "4.890")], ids=["R34", "R50"])
def test_spikformers_table(sops: float, printed: str) -> None:
    layers = charged(network(sops, 4), Geometry(4, 1), "spikformer")
    assert f"{sum(found.mj for found in layers):.3f}" == printed
    four_times = millijoules(4 * CONV1, sops)
    assert f"{four_times:.3f}" != printed, "the twin: conv1 at every step"
    strict = charged(network(sops, 4), Geometry(4, 1), "strict")
    assert sum(found.mj for found in strict) == pytest.approx(four_times)


def test_the_network_without_spikes() -> None:
    """ResNet-18 as an ANN, 1.82 G MAC."""
    ann = Tally("all", "conv", 1_820_000_000, [Operand(1e9, 1e9, "analog")], Counter({(1, 3): 1}))
    (found,) = charged([ann], Geometry(1, 1), "strict")
    assert f"{found.mj:.3f}" == "8.372"
    assert f"{millijoules(0, 1.82e9):.3f}" != "8.372", "the twin: accumulations"


# --- counts --------------------------------------------------------------------------------------------

CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, 3), (4, 7, 7)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (4, 8, 6)),
    (nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2), (4, 7, 7)),
    (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
    (nn.Conv1d(3, 5, 4), (3, 9)),
    (nn.Conv3d(2, 3, (1, 2, 3)), (2, 3, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5)),
]


def by_hand(conv: Any, features: tuple[int, ...], *, groups: bool = True) -> int:
    """Every kernel weight once per position: of the output, or of the input if transposed."""
    x = torch.zeros(1, *features)
    positions = math.prod((x if isinstance(conv, nn.ConvTranspose2d) else conv(x)).shape[2:])
    channels = conv.in_channels * conv.out_channels // (conv.groups if groups else 1)
    return positions * channels * math.prod(conv.kernel_size)


@pytest.mark.parametrize(("conv", "features"), CONVOLUTIONS, ids=lambda v: str(v)[:60])
def test_convolutions_by_hand(conv: Any, features: tuple[int, ...]) -> None:
    x = spikes(5, *features)
    found = energy(conv, x, "strict").layers[0]
    assert found.flops == by_hand(conv, features)
    assert found.rate == pytest.approx(np.count_nonzero(x.numpy()) / x.numel())
    assert found.sops == pytest.approx(found.rate * found.flops)
    if conv.groups > 1:
        assert found.flops != by_hand(conv, features, groups=False), "the twin: groups forgotten"


def test_a_linear_layer_on_tokens_and_on_steps() -> None:
    net = nn.Linear(6, 5, bias=False)
    assert energy(net, torch.rand(4, 6)).layers[0].flops == 30
    assert energy(net, torch.rand(4, 7, 6)).layers[0].flops == 7 * 30


class Attention(nn.Module):
    """Spikes times spikes, without a softmax, and a functional convolution with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kernel = nn.Parameter(torch.randn(4, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k = (self.q(x) > 0.2).float(), (self.k(x) > -0.2).float()
        y = (q @ k.transpose(1, 2)) @ x
        return F.conv1d(y, self.kernel)


def test_products_of_activations_and_functional_layers() -> None:
    net, x = Attention(), spikes(3, 5, 8)
    report = energy(net, x, "strict")
    assert [found.name for found in report.layers] == ["q", "k", "(5x8 @ 8x5)", "(5x5 @ 5x8)", "kernel"]
    q, k = (net.q(x) > 0.2).float(), (net.k(x) > -0.2).float()
    scores, values = report.layers[2:4]
    assert scores.flops == values.flops == 5 * 5 * 8
    sparser = min(np.count_nonzero(q.numpy()), np.count_nonzero(k.numpy())) / q.numel()
    assert scores.sops == pytest.approx(200 * sparser)
    # the scores are integers, the values spikes: spikes decide, and nothing has to be multiplied
    assert values.values == "binary"
    assert values.macs == 0
    assert values.sops == pytest.approx(200 * np.count_nonzero(x.numpy()) / x.numel())
    assert report.layers[4].values == "integer"
    assert report.layers[4].macs == 8 * 5 * 4
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    assert sum(found.flops for found in report.layers) * 3 == counter.get_total_flops() / 2


class Products(nn.Module):
    """Two activations: x itself, and `other`."""

    def __init__(self, other: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.other, self.product = other, product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.other)


def test_the_binary_side_of_a_product_decides_although_the_other_is_sparser() -> None:
    x, integers = torch.ones(1, 4, 6), torch.zeros(1, 6, 5)
    x[0, 0] = 0
    integers[0, 0] = 2
    found = energy(Products(integers, torch.bmm), x, "strict").layers[0]
    assert (found.values, found.rate, found.macs) == ("binary", 0.75, 0)
    assert found.sops == pytest.approx(0.75 * 4 * 6 * 5)
    found = energy(Products(integers, torch.bmm), x * 2, "strict").layers[0]
    assert (found.values, found.rate, found.macs) == ("integer", pytest.approx(1 / 6), 4 * 6 * 5)


@pytest.mark.parametrize(
    ("product", "shape", "other", "macs"),
    [
        (torch.mv, (4, 6), (6,), 24),
        (lambda x, v: torch.addmv(torch.zeros(4), x, v), (4, 6), (6,), 24),
        (lambda x, v: torch.dot(x.flatten(), v), (4, 6), (24,), 24),
        (lambda x, y: torch.addbmm(torch.zeros(3, 5), x, y), (4, 3, 6), (4, 6, 5), 4 * 3 * 6 * 5),
        (lambda x, y: torch.einsum("bij,jk->bik", x, y), (4, 3, 6), (6, 5), 4 * 3 * 6 * 5),
    ],
    ids=["mv", "addmv", "dot", "addbmm", "einsum"],
)
def test_products_that_torch_does_not_count(
    product: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], other: tuple[int, ...], macs: int
) -> None:
    report = energy(Products(torch.rand(other), product), torch.rand(shape), "strict")
    assert report.macs * report.batch == macs


def test_fused_attention_is_analog() -> None:
    def attend(x: Tensor, y: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, y, y)

    found = energy(Products(spikes(2, 1, 5, 8), attend), spikes(2, 1, 3, 8), "strict").layers[0]
    assert (found.values, found.macs, found.rate) == ("analog", 2 * 3 * 5 * 8, 1)


def test_weights_made_of_weights_are_prepared_and_belong_to_their_layer() -> None:
    net = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 6)),
        parametrizations.weight_norm(nn.Linear(6, 6)),
        prune.random_unstructured(nn.Linear(6, 6), "weight", 0.5),
        nn.Linear(6, 6).half().float(),
    )
    report = energy(net, torch.rand(4, 6))
    assert [(found.name, found.kind, found.flops) for found in report.layers] == [
        (str(i), "linear", 36) for i in range(4)
    ]


class Recurrent(nn.Module):
    """Keeps its state in a buffer that it writes into."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(5):
            self.state.copy_(self.outer(x) + self.inner(self.state))
        return self.state


def test_states_in_buffers_are_inputs() -> None:
    report = energy(Recurrent(), torch.rand(3, 4))
    # the first step starts from a constant, which torch need not multiply every time
    assert layer(report, "inner").flops == 4 * 16
    assert layer(report, "outer").flops == 5 * 16


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_segments_are_seen(use_reentrant: bool) -> None:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = leading_net()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.net, x, use_reentrant=use_reentrant)

    net, x = Segments(), torch.rand(4, 3, 4)
    assert energy(net, x).total_mj == energy(net.net, x).total_mj > 0


def test_inference_mode_changes_nothing() -> None:
    net, x = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2)),
        torch.rand(4, 2, 5, 5),
    )
    outside = energy(net, x)
    with torch.inference_mode():
        assert energy(net, x) == outside


def test_attention_layers_are_taken_apart() -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return net(x, x, x)[0]  # type: ignore[no-any-return]

    report = energy(Self(), torch.rand(3, 5, 8))
    assert sum(found.flops for found in report.layers) == 5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_operations_that_are_not_known_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.rnn = nn.Linear(4, 4), nn.LSTM(4, 4)
            self.scale = nn.Parameter(torch.rand(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.fc(x * self.scale))[0]  # type: ignore[no-any-return]

    notes = energy(Net(), torch.rand(5, 3, 4)).notes
    assert notes[-1].startswith("NOT counted")
    assert "rnn" in notes[-1]
    assert "scale" not in notes[-1]
    assert not any("NOT" in note for note in energy(leading_net(), torch.rand(5, 3, 4)).notes)


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["time first", "batch first", "static"])
def test_loops_inside_the_model(kind: str) -> None:
    net = Loop(kind, steps=5)
    x = spikes(*{"time first": (5, 3, 4), "batch first": (3, 5, 4), "static": (3, 4)}[kind])
    report = energy(net, x)
    assert (report.timesteps, report.batch) == (5, 3)
    assert [found.flops for found in report.layers] == [4 * 12, 12 * 8, 8 * 3]
    assert report.layers[0].macs == report.macs == 48, "not five times"
    assert report.sops == pytest.approx(sum(found.rate * 5 * found.flops for found in report.layers[1:]))


def test_loops_around_the_model() -> None:
    def stepwise() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), StepNeuron(), nn.Linear(6, 3), StepNeuron()).eval()

    torch.manual_seed(1)
    net, x = stepwise(), spikes(5, 3, 4) * 3
    report = energy(net, x)
    assert (report.timesteps, report.batch) == (5, 3)
    for module in net:
        if isinstance(module, StepNeuron):
            module.reset()
    hidden = torch.stack([net[1](net[0](x_t)) for x_t in x])
    assert layer(report, "2").rate == pytest.approx(
        np.count_nonzero(hidden.detach().numpy()) / hidden.numel()
    )
    static = energy(net, x[0], timesteps=5)
    assert (static.timesteps, static.batch) == (5, 3)
    assert static == energy(net, x[:1].repeat(5, 1, 1))
    assert energy(net, x[0], per_step=False).timesteps == 1


def test_whole_sequences() -> None:
    net, x = leading_net(), spikes(6, 3, 4) * 2
    report = energy(net, x)
    assert (report.timesteps, report.batch) == (6, 3)
    assert [found.flops for found in report.layers] == [24, 30, 15]
    assert report.macs == 24
    strict = energy(net, x, "strict")
    assert layer(strict, "0").macs == 6 * 24
    assert strict.sops == report.sops


class EncodesOnce(nn.Module):
    """The first layer sees the image once, and its output is repeated; the head sees the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = nn.Conv2d(1, 2, 3), LeadingNeuron()
        self.body, self.head = nn.Conv2d(2, 2, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.neuron(self.stem(x).unsqueeze(0).repeat(4, 1, 1, 1, 1) * 3)
        y = self.body(y.flatten(0, 1)).view(4, -1, 8)
        return self.head(y.mean(0))  # type: ignore[no-any-return]


def test_layers_that_run_once_are_not_counted_at_every_step() -> None:
    report = energy(EncodesOnce(), torch.rand(3, 1, 6, 6))
    assert (report.timesteps, report.batch) == (4, 3)
    assert [found.flops for found in report.layers] == [16 * 18, 4 * 36, 24]
    assert layer(report, "stem").macs == 16 * 18
    assert layer(report, "head").sops == pytest.approx(24 * layer(report, "head").rate)
    strict = energy(EncodesOnce(), torch.rand(3, 1, 6, 6), "strict")
    assert layer(strict, "stem").macs == 16 * 18, "strict charges what is computed: once"


def test_no_neuron_is_one_step() -> None:
    report = energy(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(7, 4), "strict")
    assert (report.timesteps, report.batch, report.macs) == (1, 7, 24)
    assert any("no spiking neuron" in note for note in report.notes)


def test_neurons_that_disagree_are_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc, self.c = (
                LeadingNeuron(),
                LeadingNeuron(),
                nn.Linear(4, 4),
                LeadingNeuron(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.b(self.fc(self.a(x)))] * 2))  # type: ignore[no-any-return]

    report = energy(Twice(), torch.rand(4, 3, 4) * 3)
    assert report.timesteps == 4
    assert any("different numbers of steps" in note for note in report.notes)


# --- conventions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "values"),
    [
        ([0.0, 1.0, 1.0], "binary"),
        ([0.0, 0.0, 0.0], "binary"),
        ([0.0, -1.0, 1.0], "ternary"),
        ([0.0, 1.0, 2.0], "integer"),
        ([-3.0, 0.0, 1.0], "integer"),
        ([0.0, 0.25, 1.0], "analog"),
        ([0.0, 0.25, 0.25], "analog"),  # two values only, but a factor all the same
        ([0.0, math.nan, 1.0], "analog"),
    ],
)
def test_values(x: list[float], values: str) -> None:
    assert values_of(torch.tensor(x)) == values
    if not any(math.isnan(v) or v % 1 for v in x):
        assert values_of(torch.tensor(x).long()) == values


class TwoLayers(nn.Module):
    """What `second` is given is `given`, whatever the input."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 0 + self.given)  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", [[0, 1, 0, 1], [0, 1, 0, -1], [0, 3, 0, 1], [0, 0.5, 0, 1]])
def test_inputs_that_are_not_spikes(given: list[float]) -> None:
    net, x = TwoLayers(torch.tensor(given, dtype=torch.float32)), torch.rand(2, 4)
    spikformer, strict = energy(net, x), energy(net, x, "strict")
    second = layer(spikformer, "second")
    assert (second.rate, second.sops, second.macs) == (0.5, 8, 0), "half of the values are not zero"
    binary = set(given) <= {0, 1}
    assert (layer(strict, "second").macs, layer(strict, "second").sops) == ((0, 8) if binary else (16, 0))
    assert spikformer.total_mj == pytest.approx(4.6e-9 * 16 + 0.9e-9 * 8)
    assert strict.total_mj == pytest.approx(4.6e-9 * (16 if binary else 32) + 0.9e-9 * (8 if binary else 0))
    text = " ".join(spikformer.notes)
    assert f"{strict.total_mj:.4g}" in text, "the other convention is in the report"
    by_value = sum(map(abs, given)) / 4 * 16
    assert (f"would have {by_value:.4g} SOPs instead of 8" in text) == (
        second.values in ("integer", "analog")
    )


def test_the_rate_of_a_shared_layer_is_that_of_all_its_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.fc(torch.zeros_like(x))  # type: ignore[no-any-return]

    found = energy(Shared(), torch.ones(3, 4), "strict").layers[0]
    assert (found.rate, found.sops, found.flops) == (0.5, 16, 32)


def test_one_analog_step_makes_a_layer_analog() -> None:
    """So that step by step and as a whole sequence are charged alike."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), StepNeuron())
    x = spikes(3, 2, 4)
    x[1, 0, 0] = 0.5
    assert energy(net, x, "strict").macs == 3 * 16
    assert energy(net, x.round(), "strict").macs == 0


def test_binary_input_of_the_first_layer_is_remarked() -> None:
    net = leading_net()
    assert any("binary already" in note for note in energy(net, spikes(4, 2, 4)).notes)
    assert not any("binary already" in note for note in energy(net, torch.rand(4, 2, 4)).notes)


# --- norms ---------------------------------------------------------------------------------------------


def norm_of(net: nn.Module, x: Tensor) -> snn_ext.LayerEnergy:
    (found,) = [found for found in energy(net, x, "strict").layers if found.kind == "norm"]
    return found


class Normed(nn.Module):
    """What happens between a convolution and a norm."""

    def __init__(self, between: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.between = nn.Conv2d(1, 2, 3), norm or nn.BatchNorm2d(2), between

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self.conv(x)))  # type: ignore[no-any-return]


def test_a_batch_norm_behind_a_convolution_is_free() -> None:
    x = torch.rand(4, 1, 5, 5)
    moves: list[Callable[[Tensor], Tensor]] = [
        lambda y: y,
        lambda y: y.clone(),
        lambda y: y.view(2, 2, 2, 3, 3).flatten(0, 1),
        lambda y: y.transpose(2, 3).contiguous(),
        lambda y: torch.stack([y, y]).flatten(0, 1),
    ]
    for move in moves:
        found = norm_of(Normed(move), x)
        assert (found.macs, found.note) == (0, "can be folded into the layer before")
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda y: y + 1,
        lambda y: y.mul_(2),
        lambda y: y.relu(),
        lambda y: F.max_pool2d(y, 1),
        lambda y: F.pad(y[..., 1:], (0, 1)),
        lambda y: torch.cat([y[:1], torch.rand(3, 2, 3, 3)]),
    ]
    for change in changes:
        found = norm_of(Normed(change), x)
        assert (found.flops, found.macs) == (18, 18), "twice 3x3 values, each multiplied and shifted"


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False), nn.InstanceNorm2d(2), nn.LayerNorm(3)],
)
def test_norms_of_the_data_are_never_free(norm: nn.Module) -> None:
    found = norm_of(Normed(lambda y: y, norm), torch.rand(4, 1, 5, 5))
    assert (found.macs, found.note) == (18, "takes statistics of its input")


def test_a_second_norm_behind_a_free_one_is_free() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    assert energy(net, torch.rand(4, 4), "strict").macs == 12


def test_standalone_norms_over_time() -> None:
    net = nn.Sequential(nn.Linear(4, 3), snn_ext.norms.BatchNormThroughTime(5, 3), LeadingNeuron())
    report = energy(net, torch.rand(5, 2, 4), "strict")
    assert report.macs == 5 * 12
    alone = nn.Sequential(LeadingNeuron(), snn_ext.norms.BatchNormThroughTime(5, 4), nn.Linear(4, 3))
    assert energy(alone, torch.rand(5, 2, 4) * 3, "strict").macs >= 5 * 4


# --- the model is left alone ---------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws, counts, keeps states, learns statistics, and may fail in the middle."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.fc, self.bn, self.neuron = nn.Linear(4, 4), nn.BatchNorm1d(4), StepNeuron()
        self.calls, self.fails, self.memory = 0, fails, [torch.zeros(2)]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.memory.append(x)
        y = self.fc(x + torch.rand_like(x) + random.random() + np.random.rand())  # noqa: NPY002
        y = self.neuron(F.batch_norm(y, self.bn.running_mean, self.bn.running_var, training=True))
        if self.fails:
            raise RuntimeError("in the middle")
        return y


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_is_left_as_it_was(fails: bool, training: bool) -> None:
    net = Noisy(fails=fails).train(training)
    net.fc.eval()
    seen: list[bool] = []
    net.register_forward_pre_hook(lambda m, _: seen.append(m.training or torch.is_grad_enabled()))
    net.neuron.v = state = torch.ones(3, 4)
    x = torch.rand(5, 3, 4)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in net.modules()]
    given = x.clone()
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            energy(net, x, per_step=True)
    else:
        assert energy(net, x, per_step=True) == energy(net, x, per_step=True)
    assert set(seen) == {False}, "it ran, in eval mode and without gradients"
    assert net.training is training
    assert not net.fc.training
    assert net.bn.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert hooks == [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in net.modules()]
    assert net.neuron.v is state
    assert torch.equal(state, torch.ones(3, 4))
    assert net.calls == 0
    assert len(net.memory) == 1
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert (np.random.get_state()[1] == generators[2]).all()  # noqa: NPY002
    assert torch.equal(x, given)
    assert torch._C._len_torch_dispatch_stack() == 0
    assert all(p.grad is None for p in net.parameters())
    assert torch.is_grad_enabled()
    assert not any(vars(p.untyped_storage()) for p in net.parameters())


def test_it_starts_from_fresh_states() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), StepNeuron(), nn.Linear(4, 2)), torch.rand(5, 3, 4)
    fresh = energy(net, x)
    for per_step in (None, True):
        net[1].v = torch.full((3, 4), 100.0)
        assert energy(net, x, per_step=per_step) == fresh
    whole = energy(net, x[0], per_step=False)
    net[1].v = None
    assert energy(net, x[0], per_step=False) == whole


def test_the_output_is_the_same_afterwards() -> None:
    net, x = leading_net(), torch.rand(5, 3, 4)
    before = net(x)
    energy(net, x)
    assert torch.equal(net(x), before)


# --- errors and the table ------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["Strict", "", None, 3, ["strict"]])
def test_unknown_conventions(convention: Any) -> None:
    with pytest.raises(OptionError, match=r"do: use .spikformer. or .strict."):
        energy(leading_net(), torch.rand(4, 2, 4), convention)


@pytest.mark.parametrize("x", [torch.rand(4), torch.rand(4, 0, 4), None, [torch.rand(4, 2, 4)], 3])
def test_inputs_without_samples(x: Any) -> None:
    with pytest.raises(OptionError, match="do: "):
        energy(leading_net(), x)


def test_models_that_cannot_be_counted() -> None:
    x = torch.rand(4, 2, 4)
    with pytest.raises(NothingMatchedError, match="multiplied nothing"):
        energy(LeadingNeuron(), x)
    with pytest.raises(OptionError, match=r"is not a torch\.nn\.Module"):
        energy(torch.relu, x)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="meta"):
        energy(nn.Linear(4, 2, device="meta"), x)
    with pytest.raises(OptionError, match="meta"):
        energy(nn.Linear(4, 2), x.to("meta"))
    with pytest.raises(ShapeUnknownError, match="do: run one forward"):
        energy(nn.LazyLinear(4), x)
    with pytest.raises(UnsupportedSiteError, match="wrapped in DataParallel"):
        energy(nn.DataParallel(leading_net()), x)
    with pytest.raises(OptionError, match="timesteps=0"):
        energy(leading_net(), x, timesteps=0)
    with pytest.raises(OptionError, match="per_step=True"):
        energy(leading_net(), x, per_step=True)


def test_the_table() -> None:
    net = nn.Sequential(leading_net(), nn.Linear(3, 3), nn.BatchNorm1d(2))
    report = energy(net, torch.rand(6, 2, 4))
    text = str(report)
    lines = text.splitlines()
    assert lines[0] == "energy of Sequential by 'spikformer': one sample, 6 steps (mean of 2)"
    assert lines[1].split() == ["layer", "kind", "input", "MACs/step", "rate", "MACs", "SOPs", "mJ"]
    assert lines[2].split()[:3] == ["0.0", "linear", "analog"]
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[-1] == f"{report.total_mj:.6g}"
    assert "4.6 pJ per MAC, 0.9 pJ per accumulation" in text
    assert "45 nm" in text
    assert max(map(len, lines)) <= 100
    assert report.total_mj == pytest.approx(sum(found.mj for found in report.layers))
    # long names wrap and nothing in them is markup
    named = nn.Sequential()
    named.add_module("[red]" + "x" * 120, nn.Linear(4, 2))
    assert "[red]" in str(energy(named, torch.rand(2, 4)))


def test_numbers_in_the_table() -> None:
    from snn_ext.analysis.energy_report import _short

    cases = {
        0: "0",
        12: "12",
        999: "999",
        1000: "1 k",
        118_013_952: "118 M",
        3.88e9: "3.88 G",
        999_960: "1 M",
    }
    assert {count: _short(count) for count in cases} == cases


def test_combinations_of_factors_agree_with_numpy() -> None:
    """SOPs of a binary input are what a loop over all products that are not multiplied by zero counts."""
    x, net = spikes(2, 3, 4, 4), nn.Conv2d(3, 2, 2, bias=False)
    found = energy(net, x, "strict").layers[0]
    windows = 0
    for b, i, j in itertools.product(range(2), range(3), range(3)):
        windows += 2 * np.count_nonzero(x[b, :, i : i + 2, j : j + 2].numpy())
    # the convention takes the mean rate for every window; borders are seen by fewer windows
    assert found.sops == pytest.approx(windows / 2, rel=0.25)
    assert found.sops == pytest.approx(np.count_nonzero(x.numpy()) / x.numel() * 2 * 9 * 12)
