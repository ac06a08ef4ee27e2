"""Objectives: a loss over [T, B, C] scores together with the readout it was made for."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snn_ext.dynamics import functional
from snn_ext.errors import OptionError, ReadoutError

__all__ = ["LTS", "OBJECTIVES", "SDT", "TET", "TETS", "Objective", "recording", "resolve_objective"]


class Objective(nn.Module):
    """Base of all objectives: ``objective(outputs, labels)`` is the loss, `readout` the scores.

    Args:
        smoothing: label smoothing epsilon in [0, 1): labels become (1 - eps) * y + eps / C.
    """

    name: ClassVar[str]

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = _in_unit_interval("smoothing", smoothing)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Loss (scalar) of scores [T, B, C] against labels [B] (indices) or [B, C] (probabilities).

        Raises:
            ReadoutError: the scores have no time dimension, or the labels do not fit.
        """
        raise NotImplementedError

    def readout(self, outputs: Tensor) -> Tensor:
        """Scores [B, C] to predict from: the mean over time of [T, B, C]."""
        return _with_time(outputs).mean(0)

    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}"


class SDT(Objective):
    """Standard direct training: cross-entropy of the time-averaged scores; read out by the mean."""

    name = "sdt"

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.sdt(outputs, labels, smoothing=self.smoothing)


class TET(Objective):
    """Temporal efficient training: cross-entropy of every step, averaged; read out by the mean.

    Args:
        lam: weight in [0, 1] of the mean-squared term that pulls all scores towards `target`; the
            cross-entropy gets 1 - lam. The authors' scripts use 0 and 1e-3.
        target: m of that term, one value for every class.
        smoothing: label smoothing.

    Source: Deng et al., ICLR 2022, and its published code.
    """

    name = "tet"

    def __init__(self, lam: float = 0.0, target: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.lam = _in_unit_interval("lam", lam, closed=True)
        self.target = float(target)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.tet(outputs, labels, lam=self.lam, target=self.target, smoothing=self.smoothing)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, target={self.target}, {super().extra_repr()}"


class TETS(Objective):
    """TET-S: TET without the squared term, with smoothed labels instead; read out by the mean.

    Args:
        smoothing: epsilon; 0.01 in every published configuration.

    Source: Shen et al., NeurIPS 2024, and its published code.
    """

    name = "tet-s"

    def __init__(self, smoothing: float = 0.01) -> None:
        super().__init__(smoothing)

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.tet(outputs, labels, smoothing=self.smoothing)


class LTS(Objective):
    """Last time step: cross-entropy of the last step's scores, and predictions read from it alone.

    Source: Shen et al., NeurIPS 2024, and its published code.
    """

    name = "lts"

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.lts(outputs, labels, smoothing=self.smoothing)

    def readout(self, outputs: Tensor) -> Tensor:
        """Scores [B, C] to predict from: the last step of [T, B, C]."""
        return _with_time(outputs)[-1]


OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (SDT, TET, TETS, LTS)}


def resolve_objective(objective: str | Objective) -> Objective:
    """The objective itself, or the default one of that name ("sdt", "tet", "tet-s", "lts").

    Raises:
        OptionError: an unknown name, or something that is not an objective.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str) and objective in OBJECTIVES:
        return OBJECTIVES[objective]()
    raise OptionError(
        f"{objective!r} is not an objective.",
        do=f"use one of {', '.join(map(repr, OBJECTIVES))}, or an object such as snn_ext.TET(lam=1e-3)",
    )


def recording(output: Any) -> Tensor | None:
    """Scores [T, B, C] from one recording: such a tensor, or a list of T tensors [B, C]; else None."""
    if isinstance(output, list) and output and all(isinstance(o, Tensor) and o.ndim == 2 for o in output):
        output = torch.stack(output)
    return output if isinstance(output, Tensor) and output.ndim == 3 else None


def _with_time(outputs: Tensor) -> Tensor:
    if outputs.ndim != 3 or 0 in outputs.shape:
        raise ReadoutError(
            f"a readout needs scores [T, B, C], got {list(outputs.shape)}.",
            do="return the scores of every step from the model: torch.stack(steps) -> [T, B, C]",
        )
    return outputs


def _in_unit_interval(name: str, value: float, *, closed: bool = False) -> float:
    below = value <= 1 if closed else value < 1
    if not (math.isfinite(value) and value >= 0 and below):
        raise OptionError(
            f"{name}={value!r} is outside [0, 1{']' if closed else ')'}.",
            do=f"pass a fraction such as {name}=0.01",
        )
    return float(value)
