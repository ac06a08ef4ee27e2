"""Figure 3 of the IMP paper: which input spike pattern can become which output pattern."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from snn_ext.dynamics.description import Dynamics
from snn_ext.dynamics.functional import multistep
from snn_ext.errors import OptionError
from snn_ext.figures.numbers import DType, float_type, grid

__all__ = ["pattern_mapping"]

_MOST_STEPS = 12  # 2^12 x 2^12 cells


def pattern_mapping(
    v0: float | Literal["learnable"] = 0.0,
    reset: Literal["soft", "hard"] = "soft",
    fires_at_equality: bool = True,
    steps: int = 4,
    weights: ArrayLike | None = None,
    v0_grid: ArrayLike | None = None,
    *,
    dtype: DType = "float32",
) -> NDArray[np.bool_]:
    """Which of the 2^T input spike patterns an IF neuron (threshold 1) can map to which output pattern.

    Every input pattern is run through one synapse, input current = weight * spike, for every member of a
    sweep over weights (and over V0, where that is learnable); a cell is True if any member maps the column
    to the row. The counts belong to the sweep: a wider range of weights alone adds cells.

    Args:
        v0: initial membrane; ``"learnable"`` sweeps it over `v0_grid`.
        reset: ``"soft"`` (the paper) or ``"hard"``, to 0.
        fires_at_equality: the neuron fires at >= threshold (the paper), else at >.
        steps: T, up to 12.
        weights: of the sweep; 17 equally spaced values in [0, 1], or 9 where V0 is swept too.
        v0_grid: V0 of the sweep; 9 equally spaced values in [-1, 1].
        dtype: of the computation, float32 or float64. The default sweeps are exact in both.

    Returns:
        [2^T, 2^T]: axis 0 is the output pattern, axis 1 the input pattern, as numbers whose most
        significant bit is the first time step.

    Raises:
        OptionError: an argument that is not one of the above.

    Source: IMP (Shen et al., NeurIPS 2024), Figure 3, and its published code.
    """
    _check(v0, reset, steps, v0_grid)
    kind = float_type(dtype)
    learnable = isinstance(v0, str)
    starts = (np.linspace(-1, 1, 9) if v0_grid is None else v0_grid) if isinstance(v0, str) else [v0]
    sweep = np.linspace(0, 1, 9 if learnable else 17) if weights is None else weights
    v = torch.as_tensor(grid("v0_grid" if learnable else "v0", starts)).to(kind)
    w = torch.as_tensor(grid("weights", sweep)).to(kind)
    bits = _bits(steps).to(kind)
    dynamics = Dynamics(reset=reset, fires_at_equality=fires_at_equality)
    current = (bits[:, :, None] * w)[:, :, None, :].expand(-1, -1, len(v), -1)  # [T, pattern, v0, weight]
    spikes = multistep(current, v[:, None], dynamics).spikes
    place = 2 ** torch.arange(steps - 1, -1, -1)
    output = (spikes.long() * place[:, None, None, None]).sum(0)
    cells = np.zeros((2**steps, 2**steps), dtype=np.bool_)
    cells[output.numpy(), np.arange(2**steps)[:, None, None]] = True
    return cells


def _bits(steps: int) -> torch.Tensor:
    """[T, 2^T]: the spikes of all patterns."""
    shifts = torch.arange(steps - 1, -1, -1)
    return (torch.arange(2**steps) >> shifts[:, None]) & 1


def _check(v0: object, reset: str, steps: object, v0_grid: ArrayLike | None) -> None:
    if (not isinstance(v0, int | float | np.number) and v0 != "learnable") or isinstance(v0, bool):
        raise OptionError(f"v0={v0!r} is not possible.", do='pass a number, or "learnable"')
    if v0_grid is not None and v0 != "learnable":
        raise OptionError(f"v0_grid is not used with v0={v0!r}.", do='pass v0="learnable", or drop v0_grid')
    if reset not in ("soft", "hard"):
        raise OptionError(f"reset={reset!r} is not possible.", do='use "soft" or "hard"')
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= _MOST_STEPS:
        raise OptionError(f"steps={steps!r} is not possible.", do=f"pass a number from 1 to {_MOST_STEPS}")
