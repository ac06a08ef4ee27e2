"""Arguments of the exact figures: number types and grids, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from snn_ext.errors import OptionError

__all__ = ["DType", "float_type", "grid"]

DType = torch.dtype | str | type[np.floating[Any]]
"""A floating-point type: ``torch.float64``, ``"float64"`` or ``np.float64``."""


def float_type(dtype: DType) -> torch.dtype:
    """float32 or float64 as torch names it.

    Raises:
        OptionError: any other type.
    """
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype | str) else dtype.__name__
    if name not in ("float32", "float64"):
        raise OptionError(f"dtype={dtype!r} is not possible here.", do='use "float32" or "float64"')
    found: torch.dtype = getattr(torch, name)
    return found


def grid(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """One dimension of finite numbers.

    Raises:
        OptionError: anything else; `name` is for the message.
    """
    try:
        found = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise OptionError(f"{name}={values!r} is not a list of numbers.", do=f"pass {name}=[0.0, 0.5, 1.0]")
    return found
