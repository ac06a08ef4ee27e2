"""What `snn_ext.energy` returns, and the table it prints."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from snn_ext.analysis.energy_values import Values

__all__ = ["PJ_PER_AC", "PJ_PER_MAC", "Convention", "Energy", "LayerEnergy", "listed", "millijoules"]

Convention = Literal["spikformer", "strict"]
PJ_PER_MAC = 4.6
PJ_PER_AC = 0.9
_WIDTH = 100


def millijoules(macs: float, sops: float) -> float:
    """4.6 pJ per multiply-accumulate and 0.9 pJ per accumulation (45 nm, FP32), in mJ."""
    return (PJ_PER_MAC * macs + PJ_PER_AC * sops) * 1e-9


@dataclass(frozen=True)
class LayerEnergy:
    """One layer, for one sample (the mean of the batch).

    Attributes:
        name: path of the layer in the model.
        kind: "conv", "linear", "product" (of two activations), "norm".
        flops: multiply-accumulates of one time step if every input counts; for norms, elements.
        values: what its inputs are: "binary", "ternary", "integer" or "analog" ("" for norms).
        rate: firing rate of its input, the share of values that are not zero.
        macs: multiply-accumulates charged, over all time steps.
        sops: accumulations charged, over all time steps.
        note: why a norm is free, or is not.
    """

    name: str
    kind: Literal["conv", "linear", "product", "norm"]
    flops: float
    values: Values | Literal[""]
    rate: float
    macs: float
    sops: float
    note: str = ""

    @property
    def mj(self) -> float:
        """Energy in mJ."""
        return millijoules(self.macs, self.sops)


@dataclass(frozen=True)
class Energy:
    """What `snn_ext.energy` returns: ``print(energy)`` is a table.

    Attributes:
        model: name of its class.
        convention: by which operations were charged.
        timesteps: T.
        batch: number of samples it is the mean of.
        layers: in the order in which they ran.
        notes: what the numbers include, leave out or assume, a sentence each.
    """

    model: str
    convention: Convention
    timesteps: int
    batch: int
    layers: tuple[LayerEnergy, ...]
    notes: tuple[str, ...]

    @property
    def macs(self) -> float:
        """Multiply-accumulates charged, per sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def sops(self) -> float:
        """Accumulations charged (synaptic operations), per sample."""
        return sum(layer.sops for layer in self.layers)

    @property
    def total_mj(self) -> float:
        """Energy of one sample in mJ."""
        return millijoules(self.macs, self.sops)

    def __str__(self) -> str:
        steps = f"{self.timesteps} step{'s' if self.timesteps != 1 else ''}"
        title = f"energy of {self.model} by {self.convention!r}: one sample, {steps} (mean of {self.batch})"
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("layer", overflow="fold")
        table.add_column("kind", no_wrap=True)
        table.add_column("input", no_wrap=True)
        for header in ("MACs/step", "rate", "MACs", "SOPs", "mJ"):
            table.add_column(header, justify="right", no_wrap=True)
        for layer in self.layers:
            if layer.kind != "norm" or layer.macs:
                table.add_row(*map(Text, _cells(layer)))
        table.add_row("total", "", "", "", "", _short(self.macs), _short(self.sops), f"{self.total_mj:.6g}")
        buffer = io.StringIO()
        Console(file=buffer, width=_WIDTH, color_system=None, legacy_windows=False).print(table)
        lines = [title, *(line.rstrip() for line in buffer.getvalue().splitlines())]
        for note in self.notes:
            lines += textwrap.wrap(f"- {note}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(lines)


def _cells(layer: LayerEnergy) -> tuple[str, ...]:
    rate = "" if layer.kind == "norm" else f"{layer.rate:.4f}"
    counts = (_short(layer.macs), _short(layer.sops), f"{layer.mj:.4g}")
    return (layer.name or "(root)", layer.kind, layer.values, _short(layer.flops), rate, *counts)


def _short(count: float) -> str:
    """Four digits: 118.0 M."""
    if not count:
        return "0"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size * 0.99995:
            return f"{count / size:.4g} {unit}"
    return f"{count:.4g}"


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names for a sentence, the first few of them."""
    every = list(names)
    return ", ".join(name or "(root)" for name in every[:most]) + (
        f" and {len(every) - most} more" if len(every) > most else ""
    )
