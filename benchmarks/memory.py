"""How much memory a call keeps for its backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["kept"]


def kept(way: Callable[[], Any]) -> int:
    """Bytes of distinct memory that one call has saved for its backward pass when that begins.

    Inputs count, parameters do not: those are there anyhow. What a function keeps by other means than
    autograd's is not seen, and what was saved for a graph that is already gone does not count.
    """
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()
    found: list[int] = []

    def pack(tensor: torch.Tensor) -> _Saved:
        there = isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter)
        saved = _Saved(tensor.detach(), there)  # detached: an output would hold its own graph alive
        alive.add(saved)
        return saved

    def unpack(saved: _Saved) -> torch.Tensor:
        if not found:
            storages = [s.tensor.untyped_storage() for s in alive if not s.there]
            found.append(sum({s.data_ptr(): s.nbytes() for s in storages}.values()))
        return saved.tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        way()
    return found[0] if found else 0


@dataclass(eq=False, slots=True, weakref_slot=True)
class _Saved:
    tensor: torch.Tensor
    there: bool
    """Whether it lies in a parameter."""
