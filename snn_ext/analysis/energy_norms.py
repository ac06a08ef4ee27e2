"""What the norms that snn-ext put into a model cost, folded or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from snn_ext.analysis.energy_counts import Recorder
from snn_ext.methods.conversion import FoldedTime, NormalisedInput, TimedNorm
from snn_ext.methods.norms import MembraneBatchNorm, NormalisedMembrane
from snn_ext.methods.options import BNTT, MPBN, TEBN

__all__ = ["Note", "norms_inside", "note_norms"]

Note = Callable[[tuple[Any, ...]], None]
_OVER_TIME = (BNTT.name, TEBN.name)


def norms_inside(module: nn.Module) -> bool:
    """Whether `note_norms` counts the norms of this module; the operations inside it are not counted then."""
    return isinstance(module, NormalisedMembrane | NormalisedInput | TimedNorm)


def note_norms(recorder: Recorder, module: nn.Module, path: str) -> Note:
    """A function to be told of the inputs of `module` at every call.

    Kernels compute these norms without any operation of their own, so they are counted here: one
    multiply-accumulate per element and step, or nothing once they are folded.
    """
    return functools.partial(_note, recorder, module, path)


def _note(recorder: Recorder, module: nn.Module, path: str, inputs: tuple[Any, ...]) -> None:
    x = next((t for t in inputs if isinstance(t, Tensor)), None)
    if x is None:
        return
    prefix = f"{path}." if path else ""
    if isinstance(module, NormalisedMembrane):
        folded = not isinstance(module.mpbn, MembraneBatchNorm)
        free = "folded into thresholds" if folded else ""
        recorder.add_norm(prefix + MPBN.name, x.numel(), free=free, why="" if folded else "not folded")
    for name in _OVER_TIME:
        part = module._modules.get(name)
        if part is None:
            continue
        if not isinstance(part, FoldedTime):
            recorder.add_norm(prefix + name, x.numel(), why="not folded")
        elif recorder.origins.product(x) is None:
            recorder.add_norm(prefix + name, x.numel(), why="not directly behind a layer that could take it")
        else:
            recorder.add_norm(prefix + name, x.numel(), free="folded into the layer before")
