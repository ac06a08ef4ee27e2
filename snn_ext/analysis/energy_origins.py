"""Which tensors of a running model are weights, and which come straight out of a layer with weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snn_ext.patching.record import walk
from snn_ext.patching.sequence import tensors_in

__all__ = ["Origins"]

_MARK = "_snn_ext_origin"
_aten = torch.ops.aten
_MOVES = {_aten.clone, _aten._to_copy, _aten.stack, _aten.cat}
"""Operations that move values and change none."""


@dataclass(frozen=True)
class _Origin:
    kind: Literal["weight", "buffer", "product"]
    layer: str


class Origins:
    """Follows tensors through operations, by the memory they lie in.

    A *weight* is a parameter, or what was computed from parameters (and buffers) alone: normalised,
    pruned, quantised or cast weights. A *product* is the output of a layer with weights, untouched since.

    Args:
        model: whose parameters and buffers are known by name.
        neurons: ids of modules whose buffers are states.
    """

    def __init__(self, model: nn.Module, neurons: set[int]) -> None:
        self._known: dict[tuple[int, int], _Origin] = {}
        for path, module in walk(model):
            for name, parameter in module._parameters.items():
                self._know(parameter, _Origin("weight", _layer_name(path, name)))
            for buffer in module._buffers.values() if id(module) not in neurons else ():
                self._know(buffer, _Origin("buffer", path))
        self._whole: dict[int, _Origin] = {}
        for (memory, _), origin in reversed(self._known.items()):
            self._whole[memory] = origin
        self._own = set(self._whole)

    def _know(self, tensor: Tensor | None, origin: _Origin) -> None:
        place = None if tensor is None else _place(tensor)
        if place is not None:
            self._known.setdefault(place, origin)

    def _of(self, tensor: Tensor) -> _Origin | None:
        place = _place(tensor)
        if place is None:
            return None
        known = self._known.get(place) or self._whole.get(place[0])
        return known or getattr(tensor.untyped_storage(), _MARK, None)

    def weight(self, tensor: Any) -> str | None:
        """Path of the module whose weight this is."""
        return self._layer(tensor, "weight")

    def product(self, tensor: Any) -> str | None:
        """Path of the layer whose output this is."""
        return self._layer(tensor, "product")

    def owner(self, tensor: Any) -> str | None:
        """Path of the module that has this tensor as a parameter or buffer."""
        return self._layer(tensor, "weight", "buffer")

    def _layer(self, tensor: Any, *kinds: str) -> str | None:
        origin = self._of(tensor) if isinstance(tensor, Tensor) else None
        return origin.layer if origin is not None and origin.kind in kinds else None

    def constant(self, *values: Any) -> bool:
        """Whether all tensors in there are weights and buffers, so that nothing depends on an input."""
        return _common([self._of(t) for t in tensors_in(values)], moves=False) is not None

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """After an operation: what its outputs are."""
        given = [self._of(t) for t in tensors_in((args, kwargs))]
        origin = _common(given, moves=func._overloadpacket in _MOVES)
        if origin is not None:
            self._set(out, origin)
        elif func._schema.is_mutable:
            self._forget(func, args, kwargs)

    def mark_product(self, out: Any, layer: str) -> None:
        """`out` came out of the layer of this name."""
        self._set(out, _Origin("product", layer))

    def _set(self, out: Any, origin: _Origin) -> None:
        for tensor in tensors_in(out):
            place = _place(tensor)
            # never on the model's own memory: nothing may stay behind
            if place is not None and place[0] not in self._own:
                setattr(tensor.untyped_storage(), _MARK, origin)

    def _forget(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What is written into is no longer what it was, a buffer that keeps a state for example."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for tensor in tensors_in(args[i] if i < len(args) else kwargs.get(argument.name)):
                place = _place(tensor)
                if place is not None and hasattr(memory := tensor.untyped_storage(), _MARK):
                    delattr(memory, _MARK)
                if place in self._known:
                    del self._known[place]
                    self._whole.pop(place[0], None)


def _layer_name(path: str, parameter: str) -> str:
    """A layer is called by its module, or by its parameter where a module has several."""
    if ".parametrizations." in path:
        return path.split(".parametrizations.")[0]
    if parameter.startswith("weight") and not parameter.startswith(("weight_ih", "weight_hh")):
        return path
    return path if parameter == "bias" else f"{path}.{parameter}".strip(".")


def _common(given: list[_Origin | None], *, moves: bool) -> _Origin | None:
    kinds = {None if origin is None else origin.kind for origin in given}
    if kinds and kinds <= {"weight", "buffer"}:
        return next((origin for origin in given if origin and origin.kind == "weight"), given[0])
    if moves and kinds == {"product"} and len(set(given)) == 1:
        return given[0]
    return None


def _place(tensor: Tensor) -> tuple[int, int] | None:
    """Where a tensor lies in memory; None where it lies nowhere (empty, sparse, meta)."""
    try:
        memory = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None
    return (memory, int(tensor.storage_offset())) if memory else None
