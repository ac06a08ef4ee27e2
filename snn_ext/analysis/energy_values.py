"""What the inputs of a layer are: how many are not zero, how large they are, and of which kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Operand", "Values", "values_of"]

Values = Literal["binary", "ternary", "integer", "analog"]
_KINDS: tuple[Values, ...] = ("binary", "ternary", "integer", "analog")


def values_of(x: Tensor) -> Values:
    """``"binary"`` {0, 1}, ``"ternary"`` {-1, 0, 1}, ``"integer"``, else ``"analog"``."""
    if x.dtype is torch.bool or bool(((x == 0) | (x == 1)).all()):
        return "binary"
    if x.is_floating_point() and not bool((x == x.round()).all()):
        return "analog"
    return "ternary" if bool((x.abs() <= 1).all()) else "integer"


@dataclass
class Operand:
    """One side of the products of a layer, over all calls.

    Attributes:
        active: products with a non-zero value on this side: sum over calls of MACs * share of non-zeros.
        valued: the same with the mean of |value| instead, where a value of 2 counts as two spikes.
        values: the least binary kind seen in any call.
    """

    active: float = 0.0
    valued: float = 0.0
    values: Values = "binary"

    def add(self, x: Tensor, macs: int) -> None:
        """One call with `macs` products."""
        if x.numel():
            self.active += macs * int(x.count_nonzero()) / x.numel()
            self.valued += macs * float(x.abs().sum(dtype=torch.float64)) / x.numel()
            self.values = max(self.values, values_of(x), key=_KINDS.index)
