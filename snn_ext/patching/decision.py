"""What a plan consists of: one decision per site; data, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from snn_ext.methods.options import Method
from snn_ext.methods.parts import Place, part_shapes
from snn_ext.patching.sites import Site
from snn_ext.patching.stepper import NOBODY, Stepper
from snn_ext.patching.table import Row, render

__all__ = ["ALREADY", "Decision", "Plan"]

ALREADY = "already patched"
"""Reason of a decision that changes nothing because the site is as asked."""


@dataclass(frozen=True)
class Decision:
    """What will happen at one site.

    Attributes:
        site: the module and its paths.
        methods: method name -> option; empty if the site is left alone.
        features: shape of one sample at one step; None where not needed.
        origin: where `features` came from.
        timesteps: T; None where not needed.
        reason: why the site is left alone, or "already patched".
        omitted: why some of the methods asked for are not among `methods`.
        keeps_time: this neuron tells a norm before it which step it is.
        clock: the neuron that tells this norm.
        backend: what the user wants the neurons' steps to be taken by; None for the best.
        step: what will take them.
    """

    site: Site
    methods: Mapping[str, Method] = field(default_factory=dict)
    features: tuple[int, ...] | None = None
    origin: str = ""
    timesteps: int | None = None
    reason: str = ""
    omitted: str = ""
    keeps_time: bool = False
    clock: Site | None = None
    backend: str | None = None
    step: Stepper = NOBODY

    @property
    def done(self) -> tuple[str, ...]:
        """What is, or will be, in the site: methods, and "clock" for keeping time."""
        waits = self.reason and self.reason != ALREADY
        return () if waits else (*self.methods, *(("clock",) if self.keeps_time else ()))

    @property
    def place(self) -> Place:
        """What the new parts depend on."""
        return Place(self.site.module, self.site.spec, self.features, self.timesteps)

    def row(self, parameters: Mapping[str, int] | None = None) -> Row:
        """Its line in the table; `parameters` (name -> count) where they exist already."""
        note = self.reason or self.omitted
        if parameters is None:
            parameters = {k: _count(part_shapes(m, self.place)) for k, m in self.methods.items()}
        return Row(
            site=self.site.path,
            aliases=len(self.site.paths) - 1,
            module=self.site.kind,
            adapter=self.site.adapter,
            time=self.site.spec.time.value,
            features=self.features,
            origin=self.origin,
            methods=tuple(self.methods),
            parameters=parameters,
            step=self.step.name,
            step_note=self.step.reason,
            note="keeps time for a norm" if self.keeps_time and not self.methods else note,
        )


def _count(shapes: list[tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes)


@dataclass(frozen=True)
class Plan:
    """The outcome of `snn_ext.plan`: a description; the model is unchanged until `apply`.

    Attributes:
        model: the root.
        decisions: one per site, in the order of the tree.
    """

    model: nn.Module
    decisions: tuple[Decision, ...]
    executor: Callable[[Plan], nn.Module] = field(repr=False)

    def apply(self) -> nn.Module:
        """Carry the plan out, all of it or nothing; returns the patched model."""
        return self.executor(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"model": name, "sites": [one dict per row]}``."""
        rows = [d.row().to_dict() for d in self.decisions]
        return {"model": type(self.model).__name__, "sites": rows}

    def __str__(self) -> str:
        title = f"plan for {type(self.model).__name__}"
        return render(title, [d.row() for d in self.decisions])
