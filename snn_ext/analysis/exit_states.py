"""Samples leave a running batch: the states of the others are kept, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from snn_ext.errors import OptionError
from snn_ext.patching.sequence import fired_by, is_carried, mark_like

__all__ = ["States"]

_NO_STATES = ("_parameters", "_modules")


class States:
    """The states of a model between two steps. Make it after a reset, before the first step.

    A state is a tensor that a module holds (as an attribute, buffer, or inside lists, tuples and dicts)
    and did not hold, or held with other contents, at the start; so constants and statistics are none.
    No framework has to be known: SpikingJelly's memories, snnTorch's buffers and the attributes of
    users are found alike.

    Args:
        model: the model.
        neurons: path -> module of neurons whose states must be recognised.
    """

    def __init__(self, model: nn.Module, neurons: dict[str, nn.Module]) -> None:
        self.model, self.neurons = model, neurons
        # The tensors themselves are kept too: the address of a freed one may be used again.
        self.at_start = {id(t): (t, _version(t)) for module in model.modules() for t in _held(module)}

    def keep(self, index: Tensor, batch: int) -> None:
        """Drop all samples but those at `index` from every state with `batch` samples in front.

        Raises:
            OptionError: a neuron keeps its state in another layout, [batch * n, ...] for example.
        """
        self._check(batch)
        shrunk: dict[int, tuple[Tensor, Tensor]] = {}

        def shrink(tensor: Tensor) -> Tensor:
            if not self._is_state(tensor) or len(tensor) != batch:
                return tensor
            if id(tensor) not in shrunk:  # one state under two names stays one
                shrunk[id(tensor)] = (tensor, _select(tensor, index))
            return shrunk[id(tensor)][1]

        for module in self.model.modules():
            attributes = module.__dict__
            for name in [name for name in attributes if name not in _NO_STATES]:
                old = attributes[name]
                new = _mapped(old, shrink)
                if new is not old:
                    attributes[name] = new

    def _is_state(self, tensor: Tensor) -> bool:
        before = self.at_start.get(id(tensor))
        return tensor.ndim > 0 and tensor.numel() > 0 and (before is None or before[1] != _version(tensor))

    def _check(self, batch: int) -> None:
        for path, neuron in self.neurons.items():
            sizes = [list(t.shape) for t in _held(neuron) if self._is_state(t)]
            if sizes and all(size[0] != batch for size in sizes):
                raise OptionError(
                    f"samples cannot leave the batch: a neuron's state is not [B, ...] with B = {batch}.",
                    where=f"{path or '(root)'} ({type(neuron).__name__})",
                    seen=f"states of shape {', '.join(map(str, sizes))}",
                    why="which part of it belongs to which sample is not known",
                    do="run one sample at a time, or all steps and judge the scores afterwards",
                )


def _select(state: Tensor, index: Tensor) -> Tensor:
    """The samples at `index`; the marks of a membrane that is carried on go with it."""
    index = index.to(state.device)
    kept = state[index]
    if is_carried(state):
        fired = fired_by(state)
        mark_like(kept, state, None if fired is None else fired[index])
    return kept


def _held(module: nn.Module) -> Iterator[Tensor]:
    """Tensors that a module itself holds, parameters excepted."""
    for name, value in module.__dict__.items():
        if name not in _NO_STATES:
            yield from _tensors(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with its tensors changed: lists and dicts in place, tuples anew where one changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        for key in list(value):
            value[key] = _mapped(value[key], change)
    elif isinstance(value, list):
        value[:] = [_mapped(part, change) for part in value]
    elif isinstance(value, tuple):
        parts = [_mapped(part, change) for part in value]
        if any(new is not old for new, old in zip(parts, value, strict=True)):
            return _rebuilt(value, parts)
    return value


def _rebuilt(value: tuple[Any, ...], parts: Sequence[Any]) -> Any:
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
