"""Where a sequence begins, and which states belong to one that goes on."""

from __future__ import annotations

from torch import Tensor, nn

from snn_ext.methods.neurons import SpikingNeuron
from snn_ext.patching import plugins

__all__ = ["carried", "is_carried", "reset"]

_MARK = "_snn_ext_carried"


def carried(state: Tensor) -> Tensor:
    """Mark a membrane as carried over from an earlier step, so that V0 is not added to it; returns it.

    Needed only where a framework hands states through the user's code (snnTorch) and that code makes
    a *new* tensor of them between two steps::

        mem = snn_ext.carried(mem * (1 - done))       # without it: a new sequence

    ``mem.detach()``, ``mem.detach_()`` and writing into ``mem`` are recognised without it.
    """
    setattr(state, _MARK, True)
    return state


def is_carried(state: Tensor) -> bool:
    """Whether `carried` marked this very tensor."""
    return getattr(state, _MARK, False)


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
