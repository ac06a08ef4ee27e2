"""When a network has seen enough: the rules of early exit, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.errors import OptionError, ReadoutError
from snn_ext.methods.conversion import FoldedTime, LaterSlots, TimedNorm
from snn_ext.methods.temporal import BatchNormThroughTime

__all__ = ["BNTTExit", "ConfidenceExit", "Statistic", "gamma_sizes", "low_from"]

Statistic = Literal["mean", "max"] | float


@dataclass(frozen=True)
class BNTTExit:
    """Stop all samples after one step, read off the gammas of BNTT: no data, no labels.

    With g_l[t] the size of ``|gamma|`` in layer l at step t, low[t] is true where g_l[t] < threshold in
    *every* BNTT layer. Expect it not to fire: gammas rarely become that small without weight decay.

    Args:
        threshold: tau; a step counts as low strictly below it.
        mode: exit at the first low step after which all are low (``"sustained"``), or at the first low
            step (``"first"``, the literal wording).
        statistic: size of a layer's gammas over its channels: their ``"mean"``, their ``"max"``, or a
            quantile given as a number from 0 to 1.

    Raises:
        OptionError: a value of the wrong kind.

    Source: Kim and Panda, Frontiers in Neuroscience 2021, has such an exit; the exact rule is ours, no
    published code contains one.
    """

    threshold: float = 0.1
    mode: Literal["sustained", "first"] = field(default="sustained", kw_only=True)
    statistic: Statistic = field(default="mean", kw_only=True)

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not self.threshold > 0:
            raise _impossible(self, "threshold", "use a positive number such as 0.1")
        if self.mode not in ("sustained", "first"):
            raise _impossible(self, "mode", "use 'sustained' or 'first'")
        quantile = _is_number(self.statistic) and 0 <= float(self.statistic) <= 1
        if self.statistic not in ("mean", "max") and not quantile:
            raise _impossible(self, "statistic", "use 'mean', 'max' or a quantile such as 0.9")

    def exit_step(self, model: nn.Module) -> int | None:
        """The step (1 is the first) after which `model` stops; None: it never does.

        Raises:
            OptionError: the model has no BNTT layer, or one that was folded.
        """
        sizes = list(gamma_sizes(model, self.statistic).values())
        return low_from(sizes, self.threshold, self.mode)


@dataclass(frozen=True)
class ConfidenceExit:
    """Stop a sample as soon as the softmax of its mean score so far reaches `p` in one class.

    Args:
        p: a probability in (0, 1]. What it is worth depends on the model: `calibrate_exit` picks one.

    Raises:
        OptionError: a value of the wrong kind.
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        if not _is_number(self.p) or not 0 < self.p <= 1:
            raise _impossible(self, "p", "use a probability such as 0.9")

    def met(self, mean_scores: Tensor) -> Tensor:
        """Which samples [B] are finished, from the mean of their scores so far [B, C]."""
        return confidence(mean_scores) >= self.p


def confidence(scores: Tensor) -> Tensor:
    """The largest class probability [...] of scores [..., C].

    Raises:
        ReadoutError: there is one class only, and its probability is always 1.
    """
    if scores.shape[-1] < 2:
        raise ReadoutError(
            f"scores of {scores.shape[-1]} class have no confidence.",
            do="use ConfidenceExit with two classes or more; BNTTExit needs no classes",
        )
    return scores.softmax(-1).amax(-1)


def gamma_sizes(model: nn.Module, statistic: Statistic = "mean") -> dict[str, Tensor]:
    """Path -> g [T] (float64): how large ``|gamma|`` is at every step, for every BNTT layer of `model`.

    Converted norms (slot 0 is the norm itself), norms at the input of neurons and stand-alone
    `BatchNormThroughTime` modules. A norm without affine has gamma = 1.

    Raises:
        OptionError: the model has no BNTT layer, or one that was folded.
    """
    found = {}
    for path, module in model.named_modules():
        slots: list[nn.Module] = []
        if isinstance(module._modules.get("bntt"), FoldedTime):
            raise OptionError(
                "BNTTExit cannot be decided after folding.",
                where=f"{path or '(root)'} ({type(module).__name__})",
                why="the gammas are folded into an affine together with the statistics",
                do="read rule.exit_step(model) before snn_ext.fold, or use ConfidenceExit",
            )
        if isinstance(module, BatchNormThroughTime):
            slots = list(module.slots)
        elif isinstance(module, TimedNorm) and isinstance(later := module._modules.get("bntt"), LaterSlots):
            slots = [module, *later]
        if slots:
            found[path or "(root)"] = torch.stack([_size(slot, statistic) for slot in slots])
    if not found:
        raise OptionError(
            f"BNTTExit needs BNTT, and {type(model).__name__} has no layer with it.",
            do="train a model patched with snn_ext.patch(model, bntt=True, timesteps=T),"
            " or use ConfidenceExit, which works with any model",
        )
    return found


def _size(norm: nn.Module, statistic: Statistic) -> Tensor:
    weight = norm.weight if isinstance(norm, _BatchNorm) else None
    if not isinstance(weight, Tensor):
        return torch.ones((), dtype=torch.float64)
    sizes = weight.detach().abs().to("cpu", torch.float64)
    if statistic == "mean":
        return sizes.mean()
    return sizes.amax() if statistic == "max" else sizes.quantile(float(statistic))


def low_from(
    sizes: Sequence[Tensor], threshold: float, mode: Literal["sustained", "first"] = "sustained"
) -> int | None:
    """The exit step (1 is the first) for the sizes g_l [T] of all layers, None where there is none.

    Layers of different length are compared over the steps that all have: the model runs no longer.
    """
    steps = min(len(g) for g in sizes)
    low = torch.stack([g[:steps] < threshold for g in sizes]).all(0).tolist()
    if mode == "first":
        return low.index(True) + 1 if True in low else None
    last_high = max((t for t, is_low in enumerate(low) if not is_low), default=-1)
    return last_high + 2 if last_high + 2 <= steps else None


def _impossible(rule: BNTTExit | ConfidenceExit, name: str, do: str) -> OptionError:
    return OptionError(f"{type(rule).__name__}({name}={getattr(rule, name)!r}) is not possible.", do=do)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
