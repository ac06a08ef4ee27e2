"""Settings have sources, and the networks are those that the settings describe."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import snn_ext
from tests.recipes.runs import small
from tests.recipes.test_runs import NAMES


def preset(name: str) -> Any:
    from recipes.presets import PRESETS

    return PRESETS[name]


def network(name: str, size: int | None = None, **changes: Any) -> torch.nn.Module:
    from dataclasses import replace

    from recipes.networks import build

    return build(replace(preset(name), **({"size": size} if size else {}), **changes), 10)


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_has_a_source(name: str) -> None:
    from recipes.presets import SETTINGS, described

    assert set(preset(name).sources) == set(SETTINGS)
    rows = described(preset(name))
    assert len(rows) == len(SETTINGS)
    assert all(value and source for _, value, source in rows)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("name", "neurons"),
    [("cifar10dvs-vgg11-imp-tets", 921_600), ("imagenet-sew18-imp-lts", 2_483_712)],
)
def test_one_v0_per_neuron_of_the_published_network(name: str, neurons: int) -> None:
    """Counted by hand from feature maps; the same as in the authors' code."""
    chosen = preset(name)
    channels = 2 if chosen.coding == "frames" else 3
    example = torch.zeros(chosen.steps, 1, channels, chosen.size, chosen.size)
    plan = snn_ext.plan(network(name), imp=True, example_input=example)
    assert f"{neurons:,} new parameters" in str(plan)


def test_convolutions() -> None:
    """Outputs x inputs, layer by layer."""
    found = {name: [tuple(p.shape[:2]) for p in weights(name, 4)] for name in NAMES}
    vgg = [(64, 2), (128, 64), (256, 128), (256, 256), (512, 256), (512, 512), (512, 512), (512, 512)]
    assert found["cifar10dvs-vgg11-imp-tets"] == found["dvscifar10-vgg-tebn"] == vgg
    nine = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256)]
    assert found["cifar10-vgg9-bntt"] == nine
    threes = [tuple(p.shape[:2]) for p in weights("cifar10-resnet-mpbn", 4) if p.shape[-1] == 3]
    assert threes == [(16, 3), *[(16, 16)] * 6, (32, 16), *[(32, 32)] * 5, (64, 32), *[(64, 64)] * 5]
    assert len([p for p in network("imagenet-sew18-imp-lts").parameters() if p.ndim == 4]) == 20


def weights(name: str, dimensions: int) -> list[Tensor]:
    return [p for p in network(name).parameters() if p.ndim == dimensions]


def test_the_stem_of_sew_averages() -> None:
    kinds = [type(module).__name__ for module in network("imagenet-sew18-imp-lts").modules()]
    assert "AvgPool2d" in kinds
    assert "MaxPool2d" not in kinds


def test_bntt_network_has_no_bias() -> None:
    """Neither in synapses nor, after the patch, in norms; torch's own beta is frozen and has no effect."""
    model = network("cifar10-vgg9-bntt", size=8)
    x = torch.rand(3, 2, 3, 8, 8)
    snn_ext.patch(model, **preset("cifar10-vgg9-bntt").methods, timesteps=3, example_input=x)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 8 * 3
    assert {m.eps for m in norms} == {1e-4}
    with torch.no_grad():
        for norm in norms:
            if norm.bias is not None:
                norm.bias.fill_(100)  # twin: it would be seen
    assert not [n for n, p in model.named_parameters() if n.endswith("bias") and p.requires_grad]
    changed = model(x)
    with torch.no_grad():
        for norm in norms:
            if norm.bias is not None:
                norm.bias.zero_()
    assert torch.equal(model(x), changed)


# ---------------------------------------------------------------- neurons, against their recurrence


@pytest.mark.parametrize("name", NAMES)
def test_neurons(name: str) -> None:
    """H = decay V + x; spike; reset. Spikes, and gradients by the authors' surrogate, step by step."""
    spec = preset(name).neuron
    x = 1.5 * torch.rand(6, 50, dtype=torch.float32, generator=torch.Generator().manual_seed(3))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes = by_hand(spec, ours)
    found = framework(name, theirs)
    assert torch.equal(spikes, found)
    assert 0.1 < float(spikes.detach().mean()) < 0.9
    weight = torch.rand(6, 50, generator=torch.Generator().manual_seed(4))
    (spikes * weight).sum().backward()
    (found * weight).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-5, atol=1e-6)
    assert ours.grad.abs().sum() > 0


def framework(name: str, x: Tensor) -> Tensor:
    from recipes.networks import Leaky, node
    from recipes.surrogates import flat_triangle

    spec = preset(name).neuron
    if "vgg9" not in name:
        lif = node(spec)
        lif.step_mode = "m"
        found: Tensor = lif(x)
        return found
    leaky = Leaky(spec.decay, spec.threshold, spike_grad=flat_triangle)
    membrane, spikes = leaky.init_leaky(), []
    for x_t in x:
        spike, membrane = leaky(x_t, membrane)
        spikes.append(spike)
    return torch.stack(spikes)


SLOPES = {
    "triangle": lambda u: (1 - u.abs()).clamp(min=0),
    "0.3 * triangle": lambda u: 0.3 * (1 - u.abs()).clamp(min=0),
    "ATan": lambda u: 1 / (1 + (math.pi * u) ** 2),
    # derivative of tanh(3u) / (2 tanh 1.5), by 1 / cosh^2
    "tanh": lambda u: (u.abs() <= 0.5) * 3 / torch.cosh(3 * u) ** 2 / (2 * math.tanh(1.5)),
}


def by_hand(spec: Any, x: Tensor) -> Tensor:
    """Straight through: the spike's value, the slope's gradient."""
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x:
        h = spec.decay * v + x_t
        u = h - spec.threshold
        fired = (u > 0 if spec.surrogate == "0.3 * triangle" else u >= 0).to(h)
        linear = SLOPES[spec.surrogate](u.detach()) * u
        spike = fired + (linear - linear.detach())
        reset = spike.detach() if spec.detach_reset else spike
        v = h * (1 - reset) if spec.reset == "hard" else h - spec.threshold * reset
        spikes.append(spike)
    return torch.stack(spikes)


# ---------------------------------------------------------------- training settings


def test_schedules() -> None:
    from recipes.presets import Cosine, Drops

    assert [Cosine(4).factor(epoch) for epoch in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    drops = Drops(100, (0.5, 0.7, 0.9))
    assert [drops.factor(e) for e in (0, 49, 50, 69, 70, 90)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])
    few = Drops(3, (0.5, 0.7, 0.9))  # where fractions are not whole epochs
    assert [few.factor(e) for e in range(3)] == pytest.approx([1, 1, 0.01])


@pytest.mark.parametrize("name", NAMES)
def test_v0_does_not_decay(name: str) -> None:
    from recipes.loop import make_optimiser

    chosen = small(name)
    model = network(name, size=chosen.size)
    channels = 2 if chosen.coding == "frames" else 3
    example = torch.zeros(2, 2, channels, chosen.size, chosen.size)
    snn_ext.patch(model, **chosen.methods, timesteps=2, example_input=example)
    groups = make_optimiser(model, chosen).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {group["lr"] for group in groups} == {chosen.optimiser.lr}
    named = dict(model.named_parameters())
    assert len(decay) == len(named)
    v0 = {decay[id(p)] for n, p in named.items() if n.endswith("imp")}
    assert v0 == ({0.0} if "imp" in chosen.methods else set())
    assert {decay[id(p)] for p in named.values() if p.ndim == 4} == {chosen.optimiser.weight_decay}
    added = {decay[id(p)] for n, p in named.items() if "tebn" in n or "bntt" in n or "mpbn" in n}
    wanted = chosen.optimiser.weight_decay if chosen.optimiser.decay_norms else 0.0
    assert added in ({wanted}, set())


def test_poisson_spikes_are_ternary_and_drawn_anew() -> None:
    """P(spike) = min(1, |x| / 2), with the sign of x; x = 0 gives none."""
    from dataclasses import replace

    from recipes.augment import sequence

    values = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
    images = values.repeat(1000, 1).reshape(1, 1, 1000, 5)
    spikes = sequence(replace(preset("cifar10-vgg9-bntt"), steps=20), images)
    assert spikes.shape == (20, 1, 1, 1000, 5)
    assert set(spikes.unique().tolist()) == {-1.0, 0.0, 1.0}
    mean = spikes.mean((0, 1, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0]), rtol=0, atol=0.02)
    assert not torch.equal(spikes[0], spikes[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_the_preset_says(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, steps, methods, objective, sgd, schedule, batch = (
        cell.strip() for cell in row.strip("|").split("|")
    )
    chosen = preset(name)
    assert int(steps) == chosen.steps
    assert methods == ", ".join(type(method).__name__ for method in chosen.methods.values())
    known = {"SDT": "sdt", "LTS": "lts", "TET-S 0.01": snn_ext.TETS(0.01)}
    assert repr(known[objective]) == repr(chosen.objective)
    lr, decay, *norms = sgd.split(", ")
    wanted = (chosen.optimiser.lr, chosen.optimiser.weight_decay, chosen.optimiser.decay_norms)
    assert (float(lr), float(decay), bool(norms)) == wanted
    assert re.findall(r"\d+", schedule)[-1] == str(chosen.schedule.epochs)
    assert int(batch.rpartition(" ")[2]) == chosen.batch
