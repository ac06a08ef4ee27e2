"""Which experiment has which settings, and where each of them comes from. Numbers only; nothing runs here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import snn_ext

CODE = "authors' code"
"""Read in the code or the configurations that the authors published."""


def ours(why: str) -> str:
    """The source of a setting that the authors' code does not tell, or that differs from it."""
    return f"ours: {why}"


@dataclass(frozen=True)
class Neuron:
    """A spiking neuron as data: H[t] = decay * V[t-1] + x[t]; the network builds it in its framework."""

    decay: float
    reset: Literal["hard", "soft"]
    surrogate: Literal["ATan", "triangle", "0.3 * triangle", "tanh"]
    threshold: float = 1.0
    detach_reset: bool = False


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent. V0 never decays; `decay_norms`: parameters of norms do."""

    lr: float
    weight_decay: float
    momentum: float = 0.9
    decay_norms: bool = False


@dataclass(frozen=True)
class Cosine:
    """The learning rate falls to zero along half a cosine."""

    epochs: int

    def factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in this epoch, counted from 0."""
        return (1 + math.cos(math.pi * epoch / self.epochs)) / 2


@dataclass(frozen=True)
class Drops:
    """The learning rate is divided by 10 after these fractions of all epochs."""

    epochs: int
    at: tuple[float, ...]

    def factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in this epoch, counted from 0."""
        return 0.1 ** sum(epoch >= round(fraction * self.epochs) for fraction in self.at)


@dataclass(frozen=True)
class Preset:
    """One experiment.

    Attributes:
        data: name of a data set in `recipes.data`.
        network: name of a network in `recipes.networks`.
        coding: how images become T steps: event ``"frames"``, ``"direct"`` (repeated) or ``"poisson"``.
        size: height and width of what the network sees, in pixels.
        methods: options for `snn_ext.patch`.
        batch: samples per process.
        augmentation: names in `recipes.augment`, in order, for training.
        amp: train in mixed precision.
        sources: where each setting comes from, by the name of its field.
    """

    paper: str
    data: str
    network: str
    neuron: Neuron
    steps: int
    coding: Literal["frames", "direct", "poisson"]
    size: int
    methods: Mapping[str, Any]
    objective: str | snn_ext.objectives.Objective
    optimiser: SGD
    schedule: Cosine | Drops
    batch: int
    augmentation: tuple[str, ...]
    sources: Mapping[str, str] = field(repr=False)
    amp: bool = False
    seed: int = 0


SETTINGS = tuple(f.name for f in fields(Preset) if f.name not in ("paper", "sources"))
"""What has a source."""

_CROP_FLIP = ("crop, padding 4", "flip")
_UNKNOWN = ours("not known")
_REPEATED = ours("not known; the image at every step")
_TEST_100 = "samples 0-99 of every class are the test set"

_DVS = Preset(
    paper="IMP, Shen et al., NeurIPS 2024: CIFAR10-DVS at 48x48",
    data="cifar10-dvs",
    network="vgg11",
    neuron=Neuron(decay=0.25, reset="hard", surrogate="triangle"),
    steps=10,
    coding="frames",
    size=48,
    methods={"imp": snn_ext.IMP(init=(-0.2, 0.2)), "tebn": snn_ext.TEBN()},
    objective=snn_ext.TETS(smoothing=0.01),
    optimiser=SGD(lr=0.1, weight_decay=5e-4),
    schedule=Cosine(epochs=200),
    batch=32,
    augmentation=_CROP_FLIP,
    sources={
        "data": f"{CODE}: {_TEST_100}; {ours('10 frames of equal counts')}",
        "network": f"{CODE}; {ours('place of the dropout (before the last layer), initial weights')}",
        "neuron": f"{CODE}; {ours('fires at H >= 1, as SpikingJelly does, instead of H > 1')}",
        "steps": f"{CODE}; another configuration has 8",
        "coding": CODE,
        "size": f"{CODE}; {ours('resized bilinearly')}",
        "methods": f"{CODE}; {ours('of two published ranges for V0 the first')}",
        "objective": CODE,
        "optimiser": f"{CODE}: at T = 10 V0 and TEBN do not decay; {ours('nor do other norms')}",
        "schedule": CODE,
        "batch": CODE,
        "augmentation": CODE,
        "amp": _UNKNOWN,
        "seed": _UNKNOWN,
    },
)

_NCALTECH = replace(
    _DVS,
    paper="IMP, Shen et al., NeurIPS 2024: N-Caltech101 at 48x48",
    data="n-caltech101",
    sources={
        **_DVS.sources,
        "data": ours("the published split is not known; the last tenth of every class is the test set"),
        "optimiser": f"{CODE}; {ours('V0 does not decay, in the published configuration it does, by 5e-4')}",
        "steps": CODE,
    },
)

_TEBN = replace(
    _DVS,
    paper="TEBN, Duan et al., NeurIPS 2022: DVS-CIFAR10",
    methods={"tebn": snn_ext.TEBN()},
    objective="sdt",
    optimiser=SGD(lr=0.02, weight_decay=5e-4, decay_norms=True),
    batch=64,
    sources={
        **_DVS.sources,
        "data": f"{_TEST_100} (so SpikingJelly's TEBN split); {ours('10 frames of equal counts')}",
        "network": ours("TET's VGGSNN; only settings for CIFAR-10 are known"),
        "neuron": f"{CODE}, for CIFAR-10; {ours('fires at H >= 1, as SpikingJelly does, instead of H > 1')}",
        "steps": ours("usual for this data; the authors' CIFAR-10 code has 4"),
        "methods": CODE,
        "optimiser": f"{CODE}, for CIFAR-10: p and norms decay too",
        "objective": f"{CODE}, for CIFAR-10",
        "schedule": f"{CODE}, for CIFAR-10",
        "batch": f"{CODE}, for CIFAR-10",
        "size": ours("as TET and IMP"),
        "augmentation": ours("as IMP"),
    },
)

_IMAGENET = Preset(
    paper="IMP, Shen et al., NeurIPS 2024: ImageNet, SEW-ResNet-18",
    data="imagenet",
    network="sew-resnet18",
    neuron=Neuron(decay=1.0, reset="hard", surrogate="ATan"),
    steps=4,
    coding="direct",
    size=224,
    methods={"imp": snn_ext.IMP(init=(-0.2, 0.2))},
    objective="lts",
    optimiser=SGD(lr=0.05, weight_decay=0.0),
    schedule=Cosine(epochs=320),
    batch=192,
    augmentation=("random resized crop", "flip"),
    amp=True,
    seed=2020,
    sources={
        "data": CODE,
        "network": f"{CODE}, with ADD and an average pool in the stem; {ours('its size 3 and stride 2')};"
        " the authors start from torchvision's ResNet-18: --weights",
        "neuron": f"{CODE}; the reset is not detached there, in SEW's own code it is",
        "steps": CODE,
        "coding": _REPEATED,
        "size": ours("not known; as usual"),
        "methods": "no script with IMP and LTS is published; where V0 was published it never trained",
        "objective": CODE,
        "optimiser": CODE,
        "schedule": CODE,
        "batch": f"{CODE}: 192 on each of 4 GPUs",
        "augmentation": ours("not known; torchvision's usual one"),
        "amp": CODE,
        "seed": CODE,
    },
)

_MPBN = Preset(
    paper="MPBN, Guo et al., ICCV 2023: CIFAR-10, ResNet-20",
    data="cifar10",
    network="resnet20",
    neuron=Neuron(decay=0.25, reset="hard", surrogate="tanh", threshold=0.5),
    steps=4,
    coding="direct",
    size=32,
    methods={"mpbn": snn_ext.MPBN()},
    objective="sdt",
    optimiser=SGD(lr=0.1, weight_decay=1e-4),
    schedule=Cosine(epochs=400),
    batch=128,
    augmentation=(*_CROP_FLIP, "autoaugment", "cutout"),
    seed=3407,
    sources={
        "data": CODE,
        "network": f"{CODE}: ResNet-20; {ours('widths 16, 32, 64; shortcuts by 1x1 convolutions')}",
        "neuron": f"{CODE}; {ours('fires at BN(H) >= 0.5, as SpikingJelly does, instead of >')}",
        "steps": f"{CODE}: the default",
        "coding": _REPEATED,
        "size": "the data's",
        "methods": CODE,
        "objective": ours("not known"),
        "optimiser": f"{CODE}: weights only",
        "schedule": CODE,
        "batch": CODE,
        "augmentation": f"{CODE}: AutoAugment, Cutout; {ours('crop, flip, a hole of 16 pixels')}",
        "amp": _UNKNOWN,
        "seed": CODE,
    },
)

_BNTT = Preset(
    paper="BNTT, Kim and Panda, Frontiers in Neuroscience 2021: CIFAR-10, VGG9",
    data="cifar10",
    network="vgg9",
    neuron=Neuron(decay=0.95, reset="soft", surrogate="0.3 * triangle", detach_reset=True),
    steps=25,
    coding="poisson",
    size=32,
    methods={"bntt": snn_ext.BNTT()},
    objective="sdt",
    optimiser=SGD(lr=0.3, weight_decay=1e-4, decay_norms=True),
    schedule=Drops(epochs=100, at=(0.5, 0.7, 0.9)),
    batch=256,
    augmentation=_CROP_FLIP,
    sources={
        "data": f"{CODE}; {ours('all 10,000 test images: there, the last batch is left out')}",
        "network": f"{CODE}, in snnTorch; {ours('widths from memory: 64-64-128-128-256-256-256, 1024')}",
        "neuron": CODE,
        "steps": CODE,
        "coding": f"{CODE}: ternary spikes",
        "size": "the data's",
        "methods": f"{CODE}: eps 1e-4, no beta, after every convolution and the first linear layer",
        "objective": f"{CODE}: cross-entropy of the accumulated scores",
        "optimiser": f"{CODE}: gamma decays too",
        "schedule": CODE,
        "batch": CODE,
        "augmentation": ours("not known"),
        "amp": _UNKNOWN,
        "seed": _UNKNOWN,
    },
)

PRESETS: dict[str, Preset] = {
    "cifar10dvs-vgg11-imp-tets": _DVS,
    "ncaltech101-vgg11-imp-tets": _NCALTECH,
    "dvscifar10-vgg-tebn": _TEBN,
    "imagenet-sew18-imp-lts": _IMAGENET,
    "cifar10-resnet-mpbn": _MPBN,
    "cifar100-resnet-mpbn": replace(
        _MPBN, paper="MPBN, Guo et al., ICCV 2023: CIFAR-100, ResNet-20", data="cifar100"
    ),
    "cifar10-vgg9-bntt": _BNTT,
}


def described(preset: Preset) -> list[tuple[str, str, str]]:
    """Rows (setting, value, source) of a preset."""
    values = {name: getattr(preset, name) for name in SETTINGS}
    values["methods"] = ", ".join(map(repr, preset.methods.values()))
    values["augmentation"] = "; ".join(preset.augmentation)
    return [(name, str(value), preset.sources[name]) for name, value in values.items()]
