"""Networks and helpers that the SpikingJelly tests share. Skips them where SpikingJelly is not installed."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import snn_ext

pytest.importorskip("spikingjelly", reason="SpikingJelly is an optional dependency")

from spikingjelly.activation_based import base, functional, layer, memopt, monitor, neuron, surrogate
from spikingjelly.activation_based.model import (
    parametric_lif_net,
    sew_resnet,
    spike_dhs,
    spikformer,
    spiking_resnet,
    spiking_vgg,
)

__all__ = [
    "CHANNELS",
    "ONE_MODE",
    "SHAPES",
    "SIDE",
    "TAKES_V0",
    "TAKING",
    "TIMESTEPS",
    "Equations",
    "StepLoop",
    "base",
    "conv_net",
    "every_neuron_class",
    "firing_rates",
    "functional",
    "gradients",
    "layer",
    "make_neuron",
    "memopt",
    "monitor",
    "neuron",
    "neurons_of",
    "parametric_lif_net",
    "patched_neuron",
    "sew_resnet",
    "spike_dhs",
    "spikformer",
    "spiking_resnet",
    "spiking_vgg",
    "steps",
    "surrogate",
]

TIMESTEPS = 4


def conv_net(
    node: Callable[[], nn.Module] = neuron.LIFNode, *, mode: str = "m", wide: int = 4
) -> nn.Sequential:
    """Conv, BN, neuron, pool, flatten, linear, neuron; input [T, N, 2, 6, 6] or [N, 2, 6, 6]."""
    net = nn.Sequential(
        layer.Conv2d(2, wide, 3, padding=1),
        layer.BatchNorm2d(wide),
        node(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(9 * wide, 5),
        node(),
    )
    with torch.no_grad():
        net[5].weight.mul_(8)  # so that the last neurons fire
    functional.set_step_mode(net, mode)
    return net


class StepLoop(nn.Module):
    """The time loop users write by hand around a network in 's' mode: [T, N, *] -> [T, N, K]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        outputs = []
        for t in range(x.shape[0]):
            outputs.append(self.net(x[t]))
        return torch.stack(outputs)


def steps(node: nn.Module, x: Tensor, mode: str) -> Tensor:
    """Run [T, N, *] through a neuron in either step mode, without a reset."""
    node.step_mode = mode
    return node(x) if mode == "m" else torch.stack([node(x_t) for x_t in x])


def neurons_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, base.MemoryModule) and "v" in m._memories]


def firing_rates(model: nn.Module, x: Tensor) -> list[float]:
    """Mean output of every neuron of `model` in one forward, in the order of the tree."""
    rates: dict[int, float] = {}
    nodes = neurons_of(model)
    handles = [
        node.register_forward_hook(lambda m, _, y: rates.__setitem__(id(m), y.detach().abs().mean().item()))
        for node in nodes
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    snn_ext.reset(model)
    return [rates[id(node)] for node in nodes]


def gradients(model: nn.Module, *, of_methods: bool = False) -> dict[str, Tensor | None]:
    """Name -> gradient, of the parameters the model was born with, or of those snn-ext added."""
    return {
        name: p.grad
        for name, p in model.named_parameters()
        if (name.rpartition(".")[2] == "imp") is of_methods
    }


def patched_neuron(
    node: nn.Module, value: Tensor | float, features: tuple[int, ...], *, option: snn_ext.IMP | None = None
) -> nn.Module:
    """`node` with V0 = `value` (what is stored, before squashing) for samples of this shape."""
    option = option or snn_ext.IMP()
    x = torch.zeros(1, *features) if node.step_mode == "s" else torch.zeros(4, 1, *features)
    snn_ext.patch(node, imp=option, example_input=x)
    with torch.no_grad():
        node.imp.copy_(torch.as_tensor(value, dtype=node.imp.dtype))
    return node


# --- every neuron class of the framework -------------------------------------------------------------

CHANNELS, SIDE = 3, 4
"""Samples that every neuron class takes: [3, 4, 4]."""

_BY_NAME = {
    "num_node": 4,
    "act_dim": 2,
    "dec_pop_dim": 2,
    "T": TIMESTEPS,
    "k": 2,
    "level": 4,
    "q_threshold": 0.5,
    "threshold_related": True,
    "act": torch.relu,
    "out_channels": CHANNELS,
    "inplane": CHANNELS,
    "tau": 2.0,
    "decay_input": True,
}


def _scan_core(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    h = v + x
    spike = (h >= 1).to(h)
    return spike, h - spike


def _few_spike_table() -> object:
    ones = [1.0] * TIMESTEPS
    return neuron.FewSpikeTable(ones, ones, ones)


_SPECIAL: dict[str, Callable[[type[nn.Module]], nn.Module]] = {
    "FlexSN": lambda cls: cls(core=_scan_core, num_states=1),
    "FewSpikeNode": lambda cls: cls(_few_spike_table()),
    "OutlierAwareThresholdNode": lambda cls: cls(_few_spike_table(), _few_spike_table(), 1.0),
    "HGNode": lambda cls: cls([_few_spike_table()], []),
}


def every_neuron_class() -> list[type[nn.Module]]:
    """All module classes defined in `spikingjelly.activation_based.neuron`, private ones included, and
    all others of the framework that derive from one of them or keep a memory module's state."""
    for info in pkgutil.iter_modules(neuron.__path__, f"{neuron.__name__}."):
        importlib.import_module(info.name)
    found = {cls for cls in _subclasses(nn.Module) if _is_neuron(cls)}
    return sorted(found, key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def _is_neuron(cls: type) -> bool:
    home = cls.__module__.startswith("spikingjelly.")
    return home and any(c.__module__.startswith(f"{neuron.__name__}.") for c in cls.__mro__)


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def make_neuron(cls: type[nn.Module], mode: str = "m") -> nn.Module:
    """An instance with default arguments; required ones are filled in by name."""
    if cls.__name__ in _SPECIAL:
        node = _SPECIAL[cls.__name__](cls)
    else:
        wanted = inspect.signature(cls).parameters.values()
        needed = [p.name for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        # One of out_features and out_channels is required, though both have a default.
        needed += [p.name for p in wanted if p.name in ("out_channels", "inplane")]
        node = cls(**{name: _BY_NAME[name] for name in needed})
    if hasattr(node, "step_mode"):
        node.step_mode = mode
    return node


TAKES_V0 = {
    "ActivationAwareIFNode",
    "CUBALIFNode",
    "ComplementaryLIFNode",
    "EIFNode",
    "GatedLIFNode",
    "HalfThresholdIFNode",
    "IFNode",
    "ILIFNode",
    "IzhikevichNode",
    "KLIFNode",
    "LIAFNode",
    "LIFNode",
    "MPBNLIFNode",
    "ParametricLIFNode",
    "QIFNode",
    "RAFNode",
    "TernaryIFNode",
    "TernaryLIFNode",
    "save_v_LIFNode",
}
"""Names of the classes that must take V0; what is neither here nor abstract must be refused."""

ONE_MODE = {"GatedLIFNode": "m"}
"""Classes that run in one step mode only."""

TAKING = [
    pytest.param(cls, mode, id=f"{cls.__name__}-{mode}")
    for cls in every_neuron_class()
    for mode in ONE_MODE.get(cls.__name__, "sm")
    if cls.__name__ in TAKES_V0
]
"""(class, mode) of all of them."""


# --- the framework's equations, written down a second time ---------------------------------------------


@dataclass(frozen=True)
class Equations:
    """One IF, LIF or PLIF neuron, as `spikingjelly.activation_based.functional` documents it."""

    kind: str = "LIF"
    tau: float = 2.0
    decay_input: bool = True
    threshold: float = 1.0
    reset: float | None = 0.0
    detach: bool = False
    surrogate: str = "Sigmoid"
    alpha: float = 4.0

    def node(self, mode: str, *, store_v_seq: bool = False) -> nn.Module:
        """The framework's own neuron with these equations."""
        common = {
            "v_threshold": self.threshold,
            "v_reset": self.reset,
            "detach_reset": self.detach,
            "surrogate_function": getattr(surrogate, self.surrogate)(alpha=self.alpha),
            "step_mode": mode,
            "store_v_seq": store_v_seq,
        }
        if self.kind == "IF":
            return neuron.IFNode(**common)
        if self.kind == "LIF":
            return neuron.LIFNode(tau=self.tau, decay_input=self.decay_input, **common)
        return neuron.ParametricLIFNode(init_tau=self.tau, decay_input=self.decay_input, **common)

    def charge(self, x: Tensor, v: Tensor) -> Tensor:
        """H[t]; the order of operations is the framework's, so that results can be compared bit by bit."""
        rest = 0.0 if self.reset is None else self.reset
        if self.kind == "IF":
            return v + x
        if self.kind == "LIF":
            if self.decay_input:
                return v + (x - (v - rest)) / self.tau
            return v - (v - rest) / self.tau + x
        leak = torch.tensor(-math.log(self.tau - 1.0), dtype=x.dtype).sigmoid()
        return v + (x - (v - rest)) * leak if self.decay_input else v - (v - rest) * leak + x

    def after(self, h: Tensor, s: Tensor) -> Tensor:
        """V[t] after the reset."""
        return h - s * self.threshold if self.reset is None else s * self.reset + (1.0 - s) * h

    @property
    def decay(self) -> float:
        return 1.0 if self.kind == "IF" else 1.0 - 1.0 / self.tau

    @property
    def gain(self) -> float:
        return 1.0 - self.decay if self.decay_input and self.kind != "IF" else 1.0

    def run(self, x: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H, S and V of every step, [T, N, *] each, from the initial membrane [*]."""
        v = v0.expand(x.shape[1:])
        charged, spikes, membranes = [], [], []
        for x_t in x:
            h = self.charge(x_t, v)
            s = (h >= self.threshold).to(x.dtype)
            v = self.after(h, s)
            charged.append(h)
            spikes.append(s)
            membranes.append(v)
        return torch.stack(charged), torch.stack(spikes), torch.stack(membranes)


SHAPES: dict[str | tuple[int, ...], tuple[int, ...]] = {
    "neuron": (3, 2, 5),
    "channel": (3, 1, 1),
    "layer": (),
    (2, 5): (2, 5),
    (1, 2, 1): (1, 2, 1),
}
"""What `IMP(shape=...)` gives for samples of [3, 2, 5]."""
