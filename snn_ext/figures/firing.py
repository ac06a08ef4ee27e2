"""Figure 1 of the IMP paper: what an initial potential does to a neuron, against what the input does."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from snn_ext.dynamics.description import Dynamics
from snn_ext.dynamics.functional import multistep
from snn_ext.errors import OptionError
from snn_ext.figures.numbers import DType, float_type

__all__ = ["firing_patterns"]

_NEURONS, _STEPS, _PARTS = 7, 32, 12


def firing_patterns(
    mode: Literal["imp", "intensity"] = "imp", dtype: DType = "float32"
) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Membranes and spikes of 7 IF neurons (threshold 1, soft reset) over 32 steps of constant input.

    ``"imp"``: V0 = k / 12 for neuron k = 0..6, input 1 / 12: only the phase differs. ``"intensity"``: V0 = 0,
    input 1 / (12 - k) - 1e-7: the period differs.

    In ``"imp"`` exact arithmetic meets the threshold exactly, and rounding decides: **float32 and float64
    give other spike times.** The published figure is that of float32.

    Args:
        mode: panel (a) or (b).
        dtype: of the computation, float32 or float64.

    Returns:
        membrane [7, 32], V *after* the reset, in `dtype` (bright in the figure: just below the threshold);
        and spikes [7, 32]. Row 0 is the neuron at the bottom.

    Raises:
        OptionError: another mode or type.

    Source: IMP (Shen et al., NeurIPS 2024), Figure 1, and its published code.
    """
    kind = float_type(dtype)
    k = torch.arange(_NEURONS, dtype=kind)
    if mode == "imp":
        v0, current = k / _PARTS, torch.full_like(k, 1 / _PARTS)
    elif mode == "intensity":
        v0, current = torch.zeros_like(k), 1 / (_PARTS - k) - 1e-7
    else:
        raise OptionError(f"mode={mode!r} is not possible.", do='use "imp" or "intensity"')
    out = multistep(current.expand(_STEPS, 1, -1), v0, Dynamics(reset="soft"))
    return out.membranes[:, 0].T.numpy(), out.spikes[:, 0].T.bool().numpy()
