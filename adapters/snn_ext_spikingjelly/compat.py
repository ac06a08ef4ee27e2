"""What differs between releases of SpikingJelly; features are probed, versions never compared."""

from __future__ import annotations

import warnings

from spikingjelly.activation_based import base, neuron
from torch import nn

__all__ = ["missing_feature", "warn_ignored_overrides"]

_LEGACY_STEPS = ("neuronal_charge", "neuronal_fire", "neuronal_reset")


def missing_feature() -> str | None:
    """What this release lacks for the adapter to work at all, or None."""
    if not hasattr(base.MemoryModule, "materialize_states"):
        return (
            "this release of SpikingJelly has no MemoryModule.materialize_states, the only place where"
            " an initial membrane with a gradient can enter; use spikingjelly >= 2.0.0"
        )
    return None


def warn_ignored_overrides(module: nn.Module, where: str) -> None:
    """IF and LIF subclasses written for older releases are ignored by SpikingJelly without a word."""
    if not isinstance(module, neuron.IFNode | neuron.LIFNode | neuron.ParametricLIFNode):
        return
    ignored = [name for name in _LEGACY_STEPS if hasattr(type(module), name)]
    if ignored:
        warnings.warn(
            f"{where}: {', '.join(ignored)} is defined, but this release of SpikingJelly never calls"
            " it: the neuron runs its parent's equations, patched or not",
            stacklevel=2,
        )
