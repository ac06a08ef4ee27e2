"""Wrong adapters whose neurons, norms or losses compute something else."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snn_ext.dynamics.description import Dynamics, NeuronSpec
from snn_ext.dynamics.surrogates import ATan, fire
from snn_ext.methods.conversion import LaterSlots, TemporalScale
from snn_ext.methods.norms import FiringRule
from snn_ext.patching.hookspecs import Want, hookimpl
from snn_ext.patching.sites import Site
from snn_ext.testing.toy import Membrane, Neuron, OverTime, Start, ToyAdapter

__all__ = [
    "AnewEveryCall",
    "ClampedStart",
    "DetachedStart",
    "FirstBatchOnly",
    "FloorIgnored",
    "FoldAtEquality",
    "HalfMembrane",
    "IgnoredBias",
    "MadeUpThreshold",
    "NoReset",
    "NoisyStart",
    "ResetsEverything",
    "ReversedSlots",
    "ScaledLoss",
    "SequenceOnly",
    "StoredStart",
    "StrictThreshold",
    "SwappedRecordings",
    "TrainedStatistics",
    "ZeroReset",
]


class FloorIgnored(ToyAdapter):
    """Describes a neuron by equations that it does not follow: they know nothing of its floor."""

    def describe_neuron(self, module: Neuron) -> NeuronSpec:
        return replace(super().describe_neuron(module), dynamics=self.equations(module))


class StrictThreshold(ToyAdapter):
    """Says > where the framework compares with >=."""

    def equations(self, module: Neuron) -> Dynamics:
        return replace(super().equations(module), fires_at_equality=False)


class _Clamped(Start):
    threshold: float

    def first(self, x: Tensor) -> Tensor:
        return super().first(x).clamp_max(self.threshold)


class ClampedStart(ToyAdapter):
    """Keeps V0 below the threshold, "so that nothing fires before the first input"."""

    start = _Clamped


class _Detached(Start):
    def first(self, x: Tensor) -> Tensor:
        return super().first(x).detach()


class DetachedStart(ToyAdapter):
    """Takes V0 as a state, which has no history."""

    start = _Detached


class _Noisy(Start):
    def first(self, x: Tensor) -> Tensor:
        v = super().first(x)
        return v + 0.1 * torch.randn_like(v) if self.training else v


class NoisyStart(ToyAdapter):
    """Adds noise to V0 in training, "for regularisation"."""

    start = _Noisy


class _Trained(OverTime):
    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self._modules.get("tebn"), TemporalScale):
            flat = F.batch_norm(x.flatten(0, 1), None, None, self.weight, self.bias, training=True)
            return flat.view(x.shape)
        return super().forward(x)


class TrainedStatistics(ToyAdapter):
    """Its TEBN normalises by the statistics of the batch in eval mode too."""

    norm = _Trained


class _Unbiased(OverTime):
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        part = self._modules.get("bntt")
        y = super().forward(x)
        return y - self.bias if isinstance(part, LaterSlots) and part.bias else y


class IgnoredBias(ToyAdapter):
    """Its BNTT leaves the bias out when it is asked for one."""

    norm = _Unbiased


class _MadeUp(Membrane):
    def firing_rule(self) -> FiringRule:
        return replace(super().firing_rule(), threshold=1.0)


class MadeUpThreshold(ToyAdapter):
    """Under MPBN it fires at the default threshold, not at the neuron's own."""

    membrane = _MadeUp


class _Strict(Membrane):
    def firing_rule(self) -> FiringRule:
        return FiringRule(self.threshold, lambda u: fire(u, ATan()), fires_at_equality=False)


class FoldAtEquality(ToyAdapter):
    """Its firing rule says > and its spike function >=: folding, which compares, decides otherwise."""

    membrane = _Strict


class _Reversed(OverTime):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self._modules.get("bntt"), LaterSlots):
            return super().forward(x.flip(0)).flip(0)
        return super().forward(x)


class ReversedSlots(ToyAdapter):
    """Normalises the first step by the last slot."""

    norm = _Reversed


class _Half(Start):
    def first(self, x: Tensor) -> Tensor:
        return super().first(x).to(x.dtype)


class HalfMembrane(ToyAdapter):
    """Gives the membrane the dtype of the input: in half precision it loses its last digits."""

    start = _Half


class _SequenceOnly(Start):
    stepwise: bool

    def first(self, x: Tensor) -> Tensor:
        zeros: Tensor = Neuron.first(self, x)  # type: ignore[arg-type]
        return zeros if self.stepwise else super().first(x)


class SequenceOnly(ToyAdapter):
    """V0 enters one way of running a neuron and not the other."""

    start = _SequenceOnly


class _Anew(Start):
    v: Tensor | None

    def sequence(self, x: Tensor) -> Tensor:
        self.v = None
        y: Tensor = super().sequence(x)  # type: ignore[misc]
        return y


class AnewEveryCall(ToyAdapter):
    """Starts from V0 in every call, also where the framework goes on."""

    start = _Anew


class _Stored(Start):
    _ext_stored: Tensor | None = None

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.__dict__["_ext_stored"] = self.imp.detach().clone()

    def first(self, x: Tensor) -> Tensor:
        fresh = super().first(x)
        return fresh if self._ext_stored is None else self._ext_stored.to(fresh.dtype).expand_as(fresh)


class StoredStart(ToyAdapter):
    """Stores V0 when it is reset: one optimiser step later it is old."""

    start = _Stored


class _Zeroed(Start):
    v: Tensor | None

    def reset(self) -> None:
        self.v = None if self.v is None else torch.zeros_like(self.v)


class ZeroReset(ToyAdapter):
    """The framework's reset makes zeros, which look like a state that is carried on."""

    start = _Zeroed

    def reset(self, root: nn.Module) -> None:
        for module in root.modules():
            if isinstance(module, Neuron):
                module.v = None


class NoReset(ToyAdapter):
    """snn_ext.reset does nothing for it."""

    def reset(self, root: nn.Module) -> None:
        pass


class ResetsEverything(ToyAdapter):
    """snn_ext.reset(one network) resets every neuron that was ever patched."""

    def __init__(self) -> None:
        self.patched: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        self.patched.add(site.module)
        return super().replace(site, methods)

    def reset(self, root: nn.Module) -> None:
        super().reset(root)
        for module in self.patched:
            if isinstance(module, Neuron):
                module.reset()


class _FirstBatch(Start):
    _ext_batch: int | None = None

    def first(self, x: Tensor) -> Tensor:
        self.__dict__.setdefault("_ext_batch", len(x))
        v = super().first(x)
        return v if self._ext_batch == len(x) else torch.zeros_like(v)


class FirstBatchOnly(ToyAdapter):
    """V0 is for the batch size that was seen first."""

    start = _FirstBatch


class SwappedRecordings(ToyAdapter):
    """Reads spikes where membranes are asked for, and the other way round."""

    def readout(self, output: Any, want: Want) -> Tensor:
        return super().readout(output, "membrane" if want == "spikes" else "spikes")


class ScaledLoss(ToyAdapter):
    """Its native loss averages over the batch a second time."""

    @hookimpl
    def snn_ext_loss(
        self, root: nn.Module, objective: Callable[..., Tensor], readout: Callable[[Any], Tensor], want: Want
    ) -> Callable[[Any, Tensor], Tensor]:
        """Divides once too often."""
        return lambda output, target: objective(readout(output), target) / len(target)
