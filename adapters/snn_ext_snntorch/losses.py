"""Losses that look like snnTorch's own, and the recordings they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from snn_ext import ReadoutError
from snn_ext.objectives import recording

__all__ = ["native_loss", "readout"]

# snntorch.backprop decides by `criterion.__name__` whether a loss is given spikes or membranes.
_NATIVE_NAMES = {"membrane": "ce_max_membrane_loss", "spikes": "ce_rate_loss"}


def native_loss(
    objective: Callable[[Tensor, Tensor], Tensor], readout: Callable[[Any], Tensor], want: str
) -> Callable[[Any, Tensor], Tensor]:
    """``loss(output, target)`` with the ``__name__`` that `snntorch.backprop` looks for."""

    def loss(output: Any, target: Tensor) -> Tensor:
        return objective(readout(output), target)

    loss.__name__ = _NATIVE_NAMES[want]
    return loss


def readout(output: Any, want: str) -> Tensor:
    """Scores [T, B, C] from what an snnTorch network returns.

    Args:
        output: one recording ([T, B, C], or a list of T tensors [B, C]), or a tuple or list of
            recordings ``(spikes, ..., membrane)`` in the order the neurons return them.
        want: "membrane" or "spikes".

    Raises:
        ReadoutError: anything else, for example the output of a single step.
    """
    if _is_several(output):
        output = output[0] if want == "spikes" else output[-1]
    scores = recording(output)
    if scores is not None:
        return scores
    raise ReadoutError(
        "the output of the network holds no recording [T, B, C].",
        seen=_describe(output),
        why="an objective looks at single time steps; the network returned one step, or averaged",
        do="collect every step and return (torch.stack(spk_rec), torch.stack(mem_rec))",
    )


def _is_several(output: Any) -> bool:
    """Whether `output` is a group of recordings, not one recording given as a list of steps."""
    return (
        isinstance(output, tuple | list) and len(output) > 1 and all(recording(r) is not None for r in output)
    )


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(_describe(o) for o in output[:4])}"
    return f"a {type(output).__name__}"
