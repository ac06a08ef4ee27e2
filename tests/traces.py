"""What a model is, bit by bit: to show that something leaves no trace on it."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]


def fingerprint(model: nn.Module) -> Any:
    """Everything modules hold (the very objects, and what is in tensors), gradients, random generators."""
    found: list[Any] = [random.getstate(), torch.random.get_rng_state().tolist()]
    for path, module in model.named_modules(remove_duplicate=False):
        found.append((path, id(type(module)), module.training, _of(vars(module), 0)))
    return found


def _of(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        grad = value.grad.flatten().tolist() if value.is_leaf and value.grad is not None else None
        marks = sorted(name for name in vars(value) if name.startswith("_snn_ext"))
        return id(value), str(value.dtype), tuple(value.shape), value.flatten().tolist(), grad, marks
    if isinstance(value, dict) and depth < 3:
        return [(str(key), _of(item, depth + 1)) for key, item in value.items()]
    if isinstance(value, list | tuple | set) and depth < 3:
        return [type(value), *(_of(item, depth + 1) for item in value)]
    return value if isinstance(value, bool | int | float | str | None) else id(value)
