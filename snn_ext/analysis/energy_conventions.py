"""From counts to charged operations: the two conventions, and what to say about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snn_ext.analysis.energy_counts import NormTally, Tally
from snn_ext.analysis.energy_report import Convention, LayerEnergy, listed, millijoules
from snn_ext.analysis.energy_values import Operand

__all__ = ["Geometry", "charged", "remarks"]

Tallies = Sequence[Tally | NormTally]


@dataclass(frozen=True)
class Geometry:
    """T and B: how often, and for how many samples, the layers ran."""

    timesteps: int
    batch: int

    def steps(self, tally: Tally) -> int:
        """Time steps this layer ran at: fewer than T where it works on what does not change with time."""
        if tally.kind == "product":
            return self.timesteps
        calls = sum(self._steps_of(shape, tally.kind) * n for shape, n in tally.shapes.items())
        return max(1, min(self.timesteps, round(calls)))

    def _steps_of(self, shape: tuple[int, ...], kind: str) -> float:
        t, b = self.timesteps, self.batch
        if kind == "conv":
            return shape[0] / b
        if len(shape) > 2 and shape[:2] in ((t, b), (b, t)):
            return t
        return shape[0] / b if shape and shape[0] % b == 0 else 1


def charged(tallies: Tallies, geometry: Geometry, convention: Convention) -> tuple[LayerEnergy, ...]:
    """Every layer with what the convention charges for one sample."""
    first = next((t for t in tallies if isinstance(t, Tally) and t.kind != "product"), None)
    return tuple(
        _layer(t, geometry, convention, first=t is first) if isinstance(t, Tally) else _norm(t, geometry)
        for t in tallies
    )


def _layer(tally: Tally, geometry: Geometry, convention: Convention, *, first: bool) -> LayerEnergy:
    operand = _decisive(tally)
    flops = tally.macs / (geometry.batch * geometry.steps(tally))
    macs = sops = 0.0
    if convention == "strict" and operand.values != "binary":
        macs = tally.macs / geometry.batch
    elif convention == "spikformer" and first:
        macs = flops
    else:
        sops = operand.active / geometry.batch
    rate = operand.active / tally.macs if tally.macs else 0.0
    return LayerEnergy(tally.name, tally.kind, flops, operand.values, rate, macs, sops)


def _decisive(tally: Tally) -> Operand:
    """The side that makes products unnecessary where it is zero; of two activations a binary one rather
    than another, then the sparser one."""
    binary = [o for o in tally.operands if o.values == "binary"]
    return min(binary or tally.operands, key=lambda o: o.active)


def _norm(norm: NormTally, geometry: Geometry) -> LayerEnergy:
    macs = 0.0 if norm.free else norm.elements / geometry.batch
    flops = norm.elements / (geometry.batch * geometry.timesteps)
    return LayerEnergy(norm.name, "norm", flops, "", 1.0, macs, 0.0, norm.free or norm.why)


def remarks(
    tallies: Tallies, geometry: Geometry, convention: Convention, layers: Sequence[LayerEnergy]
) -> Iterator[str]:
    """What the numbers mean, a sentence each."""
    yield (
        "45 nm, FP32: 4.6 pJ per MAC, 0.9 pJ per accumulation (SOP); arithmetic only. Not counted: memory"
        " traffic, neuron updates, residual additions, pooling, biases"
    )
    yield from _convention(layers, convention)
    yield from _inputs(tallies, geometry, convention, layers)
    yield from _norms(layers)
    other: Convention = "strict" if convention == "spikformer" else "spikformer"
    theirs = charged(tallies, geometry, other)
    yield f"by {other!r} it would be {_total(theirs):.4g} mJ, by {convention!r} it is {_total(layers):.4g} mJ"
    dense = sum(layer.flops for layer in layers if layer.kind != "norm")
    yield f"for scale: one step with every operation a MAC would be {millijoules(dense, 0):.4g} mJ"


def _total(layers: Sequence[LayerEnergy]) -> float:
    return sum(layer.mj for layer in layers)


def _convention(layers: Sequence[LayerEnergy], convention: Convention) -> Iterator[str]:
    if convention == "strict":
        yield "strict: a layer with an input that is not 0 or 1 pays a MAC for every product, zeros included"
        return
    first = next((layer for layer in layers if layer.kind in ("conv", "linear")), None)
    if first is None:
        return
    name = first.name or "(root)"
    yield f"spikformer: SOPs = rate x T x MACs/step; the first layer ({name}) pays the MACs of one step"
    if first.values == "binary":
        yield f"the input of {name} is binary already (event data?); the convention charges MACs all the same"


_WORDS = {
    "ternary": "ternary (-1, 0, 1: additions and subtractions would do)",
    "integer": "integer (added spikes)",
    "analog": "analog (direct coding, averaged spikes, membranes)",
}


def _inputs(
    tallies: Tallies, geometry: Geometry, convention: Convention, layers: Sequence[LayerEnergy]
) -> Iterator[str]:
    charge = "MACs" if convention == "strict" else "accumulations"
    for values, words in _WORDS.items():
        charged_so = [layer for layer in layers if (layer.macs if convention == "strict" else layer.sops)]
        names = [layer.name for layer in charged_so if layer.values == values]
        if names:
            yield f"{words} inputs charged as {charge} at {listed(names)}"
    sums = [
        (_decisive(tally).valued / geometry.batch, layer.sops)
        for tally, layer in zip(tallies, layers, strict=True)
        if isinstance(tally, Tally) and layer.values in ("integer", "analog") and layer.sops
    ]
    if sums:
        valued, active = (sum(column) for column in zip(*sums, strict=True))
        yield (
            "rate is the share of non-zero values, whatever their size; by the mean of |value| (a 2 is two"
            f" spikes) these layers would have {valued:.4g} SOPs instead of {active:.4g}"
        )


def _norms(layers: Sequence[LayerEnergy]) -> Iterator[str]:
    norms = [layer for layer in layers if layer.kind == "norm"]
    for note in dict.fromkeys(norm.note for norm in norms):
        names = [norm.name for norm in norms if norm.note == note]
        cost = "one MAC per element and step" if any(n.macs for n in norms if n.note == note) else "0"
        remedy = "; snn_ext.fold may remove it" if note == "not folded" else ""
        yield f"norms at {cost}, {note}{remedy}: {listed(names)}"
