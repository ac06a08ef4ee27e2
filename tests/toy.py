"""A tiny framework and its adapter, so that the core is tested without any real framework.

`LeadingNeuron` sees [T, B, *] and is patched in place; `StepNeuron` sees [B, *], keeps its state, and is
replaced by a *new* object, as a third party's adapter may do; `Odd` cannot be patched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext import AdapterInfo, Dynamics, NeuronSpec, Site, Time, functional, hookimpl, register, swap_class
from snn_ext.kernels import Call
from snn_ext.neurons import InitialPotential
from snn_ext.patching import plugins

DYNAMICS = Dynamics(decay=0.5, gain=1.0, threshold=1.0, reset="soft")


class LeadingNeuron(nn.Module):
    """Starts every call from zero; [T, B, *]."""

    def start(self, x: Tensor) -> Tensor | float:
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        return functional.multistep(x, self.start(x), DYNAMICS).spikes


class StepNeuron(nn.Module):
    """One step a call; [B, *]."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def forward(self, x: Tensor) -> Tensor:
        v = self.start(x) if self.v is None or self.v.shape != x.shape else self.v
        spikes, self.v = functional.step(x, v, DYNAMICS)
        return spikes

    def reset(self) -> None:
        self.v = None


class Odd(nn.Module):
    """A neuron that the adapter knows and refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 1).to(x.dtype)


class Start(InitialPotential):
    """In place: mixed into `LeadingNeuron`."""

    def start(self, x: Tensor) -> Tensor:
        return self.initial_membrane(x.shape[2:], x.dtype)


class ReplacedStepNeuron(InitialPotential, StepNeuron):
    """A new object in the place of a `StepNeuron`."""

    def start(self, x: Tensor) -> Tensor:
        return self.initial_membrane(x.shape[1:], x.dtype).expand_as(x)


class ToyAdapter:
    name = "toy"

    @hookimpl
    def snn_ext_adapter(self) -> AdapterInfo:
        return AdapterInfo(name=self.name, framework="tests", distribution="toy", methods=("imp",))

    @hookimpl
    def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | None:
        no_norms = dict.fromkeys(("mpbn", "bntt", "tebn", "clock"), "the toy framework takes no norms")
        if isinstance(module, LeadingNeuron):
            return NeuronSpec(Time.LEADING, dynamics=DYNAMICS, unsupported=no_norms)
        if isinstance(module, StepNeuron):
            return NeuronSpec(Time.PER_CALL, dynamics=DYNAMICS, unsupported=no_norms)
        if isinstance(module, Odd):
            return NeuronSpec(Time.LEADING, unsupported={"*": "it has no membrane"})
        return None

    @hookimpl
    def snn_ext_replace(
        self, site: Site, methods: tuple[str, ...], features: tuple[int, ...] | None
    ) -> nn.Module:
        if isinstance(site.module, LeadingNeuron):
            swap_class(site.module, Start)
            return site.module
        new = ReplacedStepNeuron()
        new.train(site.module.training)
        return new

    @hookimpl
    def snn_ext_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        (x,) = args
        if isinstance(module, LeadingNeuron):
            return Call(x, DYNAMICS, v0=module.start(x))
        if isinstance(module, StepNeuron):
            goes_on = module.v is not None and module.v.shape == x.shape
            return Call(x[None], DYNAMICS, v=module.v if goes_on else module.start(x))
        return None

    @hookimpl
    def snn_ext_reset(self, root: nn.Module) -> None:
        for module in root.modules():
            if isinstance(module, StepNeuron):
                module.reset()


@contextmanager
def registered(plugin: object) -> Iterator[None]:
    """Register an adapter for the duration of a test."""
    before = set(plugins.registry().adapters)
    register(plugin)
    try:
        yield
    finally:
        for name in set(plugins.registry().adapters) - before:
            plugins.registry().remove(name)


def leading_net(channels: int = 6) -> nn.Sequential:
    """[T, B, 4] -> [T, B, 3], two neurons, enough drive to fire."""
    net = nn.Sequential(
        nn.Linear(4, channels), LeadingNeuron(), nn.Linear(channels, 5), LeadingNeuron(), nn.Linear(5, 3)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net
