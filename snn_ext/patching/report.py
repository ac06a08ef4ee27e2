"""What is patched in a model now."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from snn_ext.dynamics.description import NormSpec
from snn_ext.errors import BackendUnavailableError
from snn_ext.patching.decision import Decision
from snn_ext.patching.fold import last_fold
from snn_ext.patching.measured import FoldResult
from snn_ext.patching.record import Record, patched_modules
from snn_ext.patching.sites import scan
from snn_ext.patching.stepper import Stepper, device_of, stepper
from snn_ext.patching.table import Row, render

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """What is patched in a model now: ``print(report)`` is a table, `to_dict` the same as data.

    Attributes:
        model: name of its class.
        rows: one per site.
        fold: what the last `snn_ext.fold` changed; None where it had no example to measure that on.
    """

    model: str
    rows: tuple[Row, ...]
    fold: FoldResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"model": name, "sites": [one dict per row], "fold": dict or None}``."""
        fold = None if self.fold is None else asdict(self.fold)
        return {"model": self.model, "sites": [row.to_dict() for row in self.rows], "fold": fold}

    def __str__(self) -> str:
        table = render(f"report for {self.model}", self.rows)
        return table if self.fold is None else f"{table}\n{self.fold}"


def _sizes(module: nn.Module, record: Record | None) -> dict[str, int]:
    names = record.methods if record is not None else ()
    return {
        name: sum(p.numel() for n, p in module.named_parameters() if n.partition(".")[0] == name)
        for name in names
    }


def _step(decision: Decision, device: torch.device, backend: str | None) -> Stepper:
    try:
        return stepper(decision.site, decision.done, device, backend)
    except BackendUnavailableError as error:  # it was there when the model was patched
        return Stepper(backend or "", error.why or error.what)


def report(model: nn.Module) -> Report:
    """What is patched in `model`, and which sites are not; works on wrapped models too."""
    rows = []
    patched = patched_modules(model)
    replaced = {id(module): record for module, record in patched.values()}
    for site in scan(model):
        if isinstance(site.spec, NormSpec) and id(site.module) not in replaced:
            continue
        record = replaced.get(id(site.module))
        if record is None:
            decision = Decision(site, reason=site.spec.refusal("*") or "not patched")
        else:
            note = "folded, cannot be unpatched" if record.folded else ""
            note = note or ("" if record.methods else "keeps time for a norm")
            decision = Decision(
                site,
                record.methods,
                record.features,
                record.origin,
                record.timesteps,
                omitted=note,
                keeps_time=record.keeps_time,
            )
            decision = replace(decision, step=_step(decision, device_of(model), record.backend))
        rows.append(decision.row(_sizes(site.module, record)))
    return Report(type(model).__name__, tuple(rows), last_fold(model))
