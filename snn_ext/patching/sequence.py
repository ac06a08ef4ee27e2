"""Where a sequence begins, and which states belong to one that goes on."""

from __future__ import annotations

from torch import Tensor, nn

from snn_ext.methods.neurons import SpikingNeuron
from snn_ext.patching import plugins

__all__ = ["carried", "fired_by", "is_carried", "remember_fired", "reset"]

_CARRIED = "_snn_ext_carried"
_FIRED = "_snn_ext_fired"


def carried(state: Tensor, of: Tensor | None = None) -> Tensor:
    """Mark a membrane as carried over from an earlier step, so that V0 is not added to it.

    Needed only where a framework hands states through the user's code (snnTorch) and that code makes
    a *new* tensor of them between two steps::

        mem = snn_ext.carried(mem * (1 - done), of=mem)       # without it: a new sequence

    ``mem.detach()``, ``mem.detach_()`` and writing into ``mem`` are recognised without it.

    Args:
        state: the new membrane.
        of: the membrane it was made from; needed under MPBN, where the pending reset goes with it.

    Returns:
        `state` itself.
    """
    setattr(state, _CARRIED, True)
    if of is not None and fired_by(of) is not None:
        remember_fired(state, fired_by(of))
    return state


def is_carried(state: Tensor) -> bool:
    """Whether `carried` marked this very tensor."""
    return getattr(state, _CARRIED, False)


def remember_fired(state: Tensor, spikes: Tensor | None) -> None:
    """For adapters: the spikes that a membrane fired, where the reset acts one step later."""
    setattr(state, _FIRED, spikes)


def fired_by(state: Tensor) -> Tensor | None:
    """For adapters: what `remember_fired` left on this very tensor."""
    return getattr(state, _FIRED, None)


def reset(model: nn.Module) -> None:
    """Forget the state of every neuron inside `model`, so that its next call starts a new sequence.

    Reaches nested modules and copies, and nothing outside `model`, whatever the framework's own
    reset does. States keep no gradient history.
    """
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.reset()
    for adapter in plugins.usable_adapters():
        if plugins.ask(adapter, "snn_ext_reset", root=model):
            return
