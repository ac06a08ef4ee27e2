"""Where a sequence begins, and which states belong to one that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.errors import TimestepError
from snn_ext.methods.neurons import SpikingNeuron
from snn_ext.methods.paths import located
from snn_ext.methods.temporal import BatchNormThroughTime, TemporalEffectiveBatchNorm
from snn_ext.patching import plugins

__all__ = [
    "carried",
    "fired_by",
    "is_carried",
    "mark_like",
    "mark_output",
    "reset",
    "steps_behind",
    "tensors_in",
]

_STEPS = "_snn_ext_steps"
_FIRED = "_snn_ext_fired"
_UNCOUNTED = -1


def carried(state: Tensor, of: Tensor | None = None) -> Tensor:
    """Mark a membrane as carried over from an earlier step, so that V0 is not added to it.

    Needed only where a framework hands states through the user's code (snnTorch) and that code makes
    a *new* tensor of them between two steps::

        mem = snn_ext.carried(mem * (1 - done), of=mem)       # without it: a new sequence

    ``mem.detach()``, ``mem.detach_()``, views and writing into ``mem`` are recognised without it (under
    `torch.compile` and `torch.func`, only ``mem.detach_()`` and writing into ``mem`` are).

    Args:
        state: the new membrane.
        of: the membrane it was made from; needed where more than the mark goes with it: the pending
            reset under MPBN, the time step under BNTT and TEBN.

    Returns:
        `state` itself.
    """
    fired = None if of is None else fired_by(of)
    if fired is not None and of is not None and state.shape == of.shape:
        fired = torch.where((state == 0) & (of != 0), torch.zeros_like(fired), fired)
    mark_like(state, of, fired)
    return state


def mark_like(state: Tensor, of: Tensor | None, fired: Tensor | None = None) -> None:
    """For adapters: `mark_output` with the number of steps that `of` was marked with."""
    steps = None if of is None else _marked(of, _STEPS)
    mark_output(state, _UNCOUNTED if steps is None else steps, fired)


def mark_output(state: Tensor, steps: int = _UNCOUNTED, fired: Tensor | None = None) -> None:
    """For adapters: mark the membrane a neuron returns.

    Args:
        state: the membrane.
        steps: number of steps done since the start of its sequence, where somebody needs it.
        fired: spikes of this step, where the reset acts one step later and cannot be seen from `state`.
    """
    _mark(state, _STEPS, steps)
    if fired is not None:
        _mark(state, _FIRED, (fired, _version(state)))


def is_carried(state: Tensor) -> bool:
    """Whether this membrane came out of a neuron, or was marked with `carried`."""
    return _marked(state, _STEPS) is not None


def steps_behind(state: Tensor, neuron: nn.Module) -> int:
    """For adapters: steps done in the sequence this membrane belongs to, 0 at a start.

    Raises:
        TimestepError: it goes on, but nobody said from which step; `neuron` is for the message.
    """
    steps = _marked(state, _STEPS)
    if steps == _UNCOUNTED:
        raise TimestepError(
            "the membrane was marked as carried over, but not from which step.",
            where=located(neuron),
            do="snn_ext.carried(new_mem, of=mem)",
        )
    return int(steps or 0)


def fired_by(state: Tensor) -> Tensor | None:
    """For adapters: the spikes given to `mark_output`."""
    marked: tuple[Tensor, int] | None = _marked(state, _FIRED)
    if marked is None:
        return None
    fired, version = marked
    # Written into since: what was set to zero is a membrane that ended, and owes no reset.
    return fired if version == _version(state) else fired * (state != 0)


# The mark sits on the tensor and on its memory: ``mem.detach()`` is another tensor on the same memory,
# and memory that is freed and used again is another storage object.


def _mark(state: Tensor, name: str, value: object) -> None:
    setattr(state, name, value)
    storage = _memory(state)
    if storage is not None:
        setattr(storage, name, value)


def _marked(state: Tensor, name: str) -> Any:
    value = getattr(state, name, None)
    return getattr(_memory(state), name, None) if value is None else value


def _memory(state: Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor that fills it; None where it cannot be seen (compile, torch.func, fakes)."""
    if torch.compiler.is_compiling() or not state.numel():
        return None
    try:
        storage = state.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None
    return storage if storage.nbytes() == state.numel() * state.element_size() else None


def _version(state: Tensor) -> int:
    """How often the memory of `state` was written to; 0 where that is not counted."""
    return 0 if torch.compiler.is_compiling() or state.is_inference() else state._version


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def reset(model: nn.Module) -> None:
    """Forget the state of every neuron inside `model`, so that its next call starts a new sequence.

    Reaches nested modules and copies, and nothing outside `model`, whatever the framework's own
    reset does. States keep no gradient history.
    """
    for module in model.modules():
        if isinstance(module, SpikingNeuron | BatchNormThroughTime | TemporalEffectiveBatchNorm):
            module.reset()
    for adapter in plugins.usable_adapters():
        if plugins.ask(adapter, "snn_ext_reset", root=model):
            return
