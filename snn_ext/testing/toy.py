"""A tiny framework and a correct adapter for it: what the broken adapters are made from.

It has one of everything that an adapter must care about: neurons with a state, in two step modes, one of
them with equations that `Dynamics` cannot express; a batch norm over [T, B, C]; a reset of its own; and
networks that return (spikes, scores) with the batch first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics.description import Dynamics, Leak, NeuronSpec, NormSpec, Time
from snn_ext.dynamics.surrogates import ATan, fire
from snn_ext.methods.conversion import NormalisedInput, TimedNorm
from snn_ext.methods.neurons import InitialPotential
from snn_ext.methods.norms import FiringRule, NormalisedMembrane
from snn_ext.methods.swap import swap_class
from snn_ext.patching import plugins
from snn_ext.patching.hookspecs import AdapterInfo, Want, hookimpl
from snn_ext.patching.sites import Site
from snn_ext.testing.case import Case

__all__ = ["CASE", "Net", "Neuron", "Norm", "ToyAdapter", "registered", "reset_net"]


class Neuron(nn.Module):
    """LIF with a learnable leak: ``h = v + (x - v) * sigmoid(w)``, fires at h >= threshold, resets to 0.

    Args:
        threshold: theta.
        floor: the membrane never falls below it; None: it may.
    """

    def __init__(self, threshold: float = 1.0, floor: float | None = None) -> None:
        super().__init__()
        self.threshold, self.floor = threshold, floor
        self.stepwise = False
        self.w = nn.Parameter(torch.zeros(()))
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of a whole sequence [T, B, *], or of one step [B, *] if `stepwise`."""
        return self.step(x) if self.stepwise else self.sequence(x)

    def sequence(self, x: Tensor) -> Tensor:
        """A whole sequence."""
        return torch.stack([self.step(x_t) for x_t in x.unbind(0)])

    def step(self, x: Tensor) -> Tensor:
        """One step; the state is kept until `reset`, or until the batch size changes."""
        v = self.first(x) if self.v is None or self.v.shape != x.shape else self.v
        h = v + (x - v) * self.w.sigmoid()
        if self.floor is not None:
            h = h.clamp_min(self.floor)
        s, h = self.decide(h)
        self.v = h * (1 - s.detach())
        return s.to(x.dtype)

    def first(self, x: Tensor) -> Tensor:
        """The membrane that a sequence starts from."""
        return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))

    def decide(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes, and the membrane to reset and carry on."""
        return fire(h - self.threshold, ATan()), h

    def reset(self) -> None:
        """Forget the state."""
        self.v = None


class Norm(nn.BatchNorm1d):
    """Batch norm over [T, B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        flat: Tensor = super().forward(x.flatten(0, 1))
        return flat.view(x.shape)


class Net(nn.Module):
    """[T, B, 4] -> spikes and scores of the last layer, [B, T, 3] each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), Norm(6), Neuron(), nn.Linear(6, 5), Neuron(threshold=0.5))
        self.head = nn.ModuleDict(
            {"lift": nn.Linear(5, 5), "low": Neuron(floor=-0.25), "scores": nn.Linear(5, 3), "fire": Neuron()}
        )
        with torch.no_grad():  # so that every neuron fires now and then
            for layer in (self.body[0], self.body[3], self.head["lift"], self.head["scores"]):
                layer.weight.mul_(6)  # type: ignore[operator]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.head["low"](self.head["lift"](self.body(x)))
        scores = self.head["scores"](hidden)
        spikes = self.head["fire"](scores)
        return spikes.transpose(0, 1), scores.transpose(0, 1)


def reset_net(net: nn.Module) -> None:
    """The framework's own reset."""
    for module in net.modules():
        if isinstance(module, Neuron):
            module.reset()


def _step_by_step(neuron: nn.Module, x: Tensor) -> Tensor:
    neuron.stepwise = True  # type: ignore[assignment]
    return torch.stack([neuron(x_t) for x_t in x])


def _scores(output: Any, want: Want) -> Tensor:
    spikes, scores = output
    chosen: Tensor = spikes if want == "spikes" else scores
    return chosen.transpose(0, 1)


CASE = Case(
    name="toy",
    make_model=Net,
    make_input=lambda batch: torch.rand(6, batch, 4) * 4 - 1,
    play_steps=_step_by_step,
    reset=reset_net,
    scores=_scores,
    neurons=("body.2", "body.4", "head.low", "head.fire"),
)
"""The toy network; no check is unsupported on it."""


# --- its adapter -------------------------------------------------------------------------------------


class Start(InitialPotential):
    """Sequences start from V0."""

    def first(self, x: Tensor) -> Tensor:
        """V0 instead of zeros."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self.initial_membrane(x.shape[1:], dtype).expand_as(x)


class Membrane(NormalisedMembrane):
    """Decides on the normalised membrane."""

    threshold: float

    def firing_rule(self) -> FiringRule:
        return FiringRule(self.threshold, lambda u: fire(u, ATan()), fires_at_equality=True)

    def decide(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """MPBN's decision instead of the neuron's own."""
        return self.membrane_decision()(h)


class Input(NormalisedInput):
    """Normalises the input current."""

    def sequence(self, x: Tensor) -> Tensor:
        """The norm sees the whole sequence first."""
        y: Tensor = super().sequence(self.input_norm.sequence(x))  # type: ignore[misc]
        return y


class OverTime(TimedNorm):
    """A norm with a slot, or a scale, per step."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x)


class ToyAdapter:
    """Correct; broken adapters override one of its methods, or name another class."""

    start: type = Start
    membrane: type = Membrane
    input: type = Input
    norm: type = OverTime

    @hookimpl
    def snn_ext_adapter(self) -> AdapterInfo:
        """See `snn_ext.patching.hookspecs`, here and below."""
        methods = ("imp", "mpbn", "bntt", "tebn")
        return AdapterInfo("toy framework", "snn_ext", "snn-ext", methods)

    @hookimpl
    def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | NormSpec | None:
        """Calls `describe`."""
        return self.describe(module, path, root)

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | NormSpec | None:
        """Neurons and norms of the toy framework."""
        if isinstance(module, Norm):
            return NormSpec(Time.LEADING, module.num_features)
        return self.describe_neuron(module) if isinstance(module, Neuron) else None

    def describe_neuron(self, module: Neuron) -> NeuronSpec:
        """A neuron with a floor is not one of the neurons that `Dynamics` can express."""
        known = module.floor is None
        unsupported = {} if known else {"mpbn": "its membrane has a floor"}
        if module.stepwise:
            unsupported |= dict.fromkeys(("bntt", "tebn", "clock"), "it runs step by step")
        time = Time.PER_CALL if module.stepwise else Time.LEADING
        dynamics = self.equations(module) if known else None
        return NeuronSpec(time, threshold=module.threshold, dynamics=dynamics, unsupported=unsupported)

    def equations(self, module: Neuron) -> Dynamics:
        """Of a neuron without a floor."""
        leak = Leak(module.w.detach().sigmoid(), divide=False)
        return Dynamics(leak=leak, threshold=module.threshold, detach_reset=True)

    @hookimpl
    def snn_ext_replace(self, site: Site, methods: tuple[str, ...], features: Any) -> nn.Module:
        """Calls `replace`."""
        return self.replace(site, methods)

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        """In place, with the mixin of each method."""
        swap_class(site.module, *self.mixins(site, methods))
        return site.module

    def mixins(self, site: Site, methods: tuple[str, ...]) -> tuple[type, ...]:
        """Outermost first."""
        if isinstance(site.spec, NormSpec):
            return (self.norm,)
        by_name = {"imp": self.start, "mpbn": self.membrane, "bntt": self.input, "tebn": self.input}
        return tuple(by_name[name] for name in methods)

    @hookimpl
    def snn_ext_reset(self, root: nn.Module) -> None:
        """Calls `reset`."""
        self.reset(root)

    def reset(self, root: nn.Module) -> None:
        """The framework's own."""
        reset_net(root)

    @hookimpl
    def snn_ext_readout(self, root: nn.Module, output: Any, want: Want) -> Tensor | None:
        """Calls `readout`."""
        mine = any(isinstance(module, Neuron) for module in root.modules())
        return self.readout(output, want) if mine else None

    def readout(self, output: Any, want: Want) -> Tensor:
        """Time first."""
        return _scores(output, want)

    @hookimpl
    def snn_ext_cases(self) -> Sequence[Case]:
        """One."""
        return (CASE,)


@contextmanager
def registered(plugin: object) -> Iterator[str]:
    """Register an adapter for as long as the context lasts; gives its name."""
    before = {adapter.name for adapter in plugins.adapters()}
    plugins.register(plugin)
    names = [adapter.name for adapter in plugins.adapters() if adapter.name not in before]
    try:
        yield names[0]
    finally:
        for name in names:
            plugins.registry().remove(name)
