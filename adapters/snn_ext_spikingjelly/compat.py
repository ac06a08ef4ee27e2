"""What differs between releases of SpikingJelly; features are probed, versions never compared."""

from __future__ import annotations

import warnings

from spikingjelly.activation_based import base, neuron
from torch import nn

from snn_ext import UnsupportedReleaseError

__all__ = ["check_release", "warn_ignored_overrides"]

_LEGACY_STEPS = ("neuronal_charge", "neuronal_fire", "neuronal_reset")


def check_release() -> None:
    """Raise `UnsupportedReleaseError` unless membranes can enter and steps can be replaced in this release.

    Releases before 2.0.0 run their neurons through compiled evaluation paths of their own, and have no
    functional step: initial membranes would have no gradient in eval mode, and norms no place.
    """
    if not hasattr(base.MemoryModule, "materialize_states"):
        raise UnsupportedReleaseError(
            "this release of SpikingJelly cannot be patched.",
            why="it has no MemoryModule.materialize_states, the only place where an initial membrane with a"
            " gradient can enter; spikingjelly 2.0.0 and later have it",
            do="pip install 'spikingjelly>=2.0.0'",
        )


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
