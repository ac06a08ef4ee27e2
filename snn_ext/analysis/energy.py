"""Energy of one inference, by the two conventions of the literature."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from snn_ext.analysis.energy_conventions import Geometry, charged, remarks
from snn_ext.analysis.energy_counts import Recorder, Tally
from snn_ext.analysis.energy_norms import norms_inside, note_norms
from snn_ext.analysis.energy_report import Convention, Energy, LayerEnergy, listed
from snn_ext.analysis.exit_runs import Runner, sequence_of
from snn_ext.dynamics.description import NeuronSpec, Time
from snn_ext.errors import NothingMatchedError, OptionError
from snn_ext.methods.neurons import InitialPotential
from snn_ext.patching import plugins
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.sequence import reset
from snn_ext.patching.shapes import refuse_lazy, untouched
from snn_ext.patching.sites import Site, scan

__all__ = ["Energy", "LayerEnergy", "energy"]


def energy(
    model: nn.Module,
    x: Tensor,
    convention: Convention = "spikformer",
    *,
    timesteps: int | None = None,
    per_step: bool | None = None,
) -> Energy:
    """Operations and energy of one inference, layer by layer; the model runs once and is left as it was.

    With FLOPs_l the multiply-accumulates of layer l at one step, and fr_l the firing rate of its input::

        spikformer   SOPs_l = fr_l * T * FLOPs_l;  E = 4.6 pJ * FLOPs_1 + 0.9 pJ * sum over l >= 2 of SOPs_l
        strict       the same SOPs_l where all inputs are 0 or 1; elsewhere T * FLOPs_l MACs of 4.6 pJ

    Convolutions, linear layers and all other matrix products count, inside modules or not; norms that are
    not foldable cost a MAC per element. The firing rate is the share of values that are not zero.

    Args:
        model: patched or not, in either mode; it is run in eval mode from fresh states.
        x: one batch: a sequence [T, B, ...], or whatever a model takes that loops over time itself.
        convention: ``"spikformer"`` or ``"strict"``.
        timesteps: T; x is static then, [B, ...], and shown T times.
        per_step: whether one call of the model is one step. None finds out by a trial call.

    Returns:
        An `Energy`; its numbers are those of one sample, the mean of the batch.

    Raises:
        OptionError: an unknown convention; x is no tensor of samples, or has no values.
        NothingMatchedError: the model multiplies nothing.
        ShapeUnknownError: a model with lazy modules.
        UnsupportedSiteError: a compiled, scripted or wrapped model.

    Source: Horowitz, ISSCC 2014 (pJ); Zhou et al., Spikformer, ICLR 2023 ("spikformer"); Chen et al.,
    syops-counter 2023 ("strict").
    """
    _check(model, x, convention)
    sequence = sequence_of(x, timesteps)
    with untouched(model), torch.no_grad(), _every_operation():
        model.eval()
        sites = [s for s in scan(model) if isinstance(s.spec, NeuronSpec)]
        steps = _takes_steps(model, sequence, per_step, known=bool(sites) or timesteps is not None)
        reset(model)
        recorder, seen = _watched(model, sites)
        with recorder:
            for part in sequence.unbind(0) if steps else [sequence]:
                model(part)
    geometry, doubts = _geometry(sites, seen, sequence, steps=steps)
    tallies = list(recorder.tallies.values())
    if not any(isinstance(tally, Tally) and tally.macs for tally in tallies):
        raise NothingMatchedError(
            f"{type(model).__name__} multiplied nothing: no convolution, linear layer or matrix product ran.",
            do="pass the whole network, and a batch that is not empty",
        )
    layers = charged(tallies, geometry, convention)
    notes = (*remarks(tallies, geometry, convention, layers), *_memory(model), *doubts, *_missing(recorder))
    return Energy(type(model).__name__, convention, geometry.timesteps, geometry.batch, layers, notes)


def _check(model: nn.Module, x: Tensor, convention: Convention) -> None:
    refuse_wrapped(model)
    refuse_lazy(model)
    if convention not in get_args(Convention):
        raise OptionError(
            f"convention={convention!r} is not a convention.",
            why="the same network differs several-fold between them, so there is no third",
            do='use "spikformer" or "strict"',
        )
    if isinstance(x, Tensor) and (x.is_meta or any(p.is_meta for p in model.parameters())):
        raise OptionError(
            "tensors on the meta device have no values, so there are no firing rates.",
            do="move the model and x to a real device",
        )


@contextlib.contextmanager
def _every_operation() -> Iterator[None]:
    """Attention layers run as their single operations, not as one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _takes_steps(model: nn.Module, sequence: Tensor, per_step: bool | None, *, known: bool) -> bool:
    if per_step is None and not known:  # a network without spikes
        return False
    return Runner(model, on="membrane", per_step=per_step).takes_steps(sequence)


def _watched(model: nn.Module, sites: list[Site]) -> tuple[Recorder, dict[int, list[tuple[int, ...]]]]:
    """Who counts, and the shapes that each neuron is given. The hooks go when the model is restored."""
    paths: dict[int, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        if norms_inside(module):
            paths[id(module)] = (path, module)
    recorder = Recorder(
        model, skip={path for path, _ in paths.values()}, neurons=[site.module for site in sites]
    )
    seen: dict[int, list[tuple[int, ...]]] = {}
    for path, module in paths.values():
        _tell(module, note_norms(recorder, module, path), sites)
    for site in sites:
        shapes = seen.setdefault(id(site.module), [])
        _tell(site.module, lambda inputs, shapes=shapes: shapes.append(_shape(inputs)), sites)
    return recorder, seen


def _tell(module: nn.Module, note: Any, sites: list[Site]) -> None:
    """Call `note` with the inputs of every call of `module`, however it is called."""
    module.register_forward_pre_hook(
        lambda m, args, kwargs: note((*args, *kwargs.values())), with_kwargs=True
    )
    adapter = next((site.adapter for site in sites if site.module is module), None)
    if adapter is not None:
        plugins.ask(adapter, "snn_ext_watch", module=module, note=note)


def _shape(inputs: tuple[Any, ...]) -> tuple[int, ...]:
    return next((tuple(t.shape) for t in inputs if isinstance(t, Tensor) and t.numel()), ())


def _geometry(
    sites: list[Site], seen: dict[int, list[tuple[int, ...]]], sequence: Tensor, *, steps: bool
) -> tuple[Geometry, list[str]]:
    """T and B, and what is uncertain about them."""
    if steps:
        return Geometry(*sequence.shape[:2]), []
    found: Counter[tuple[int, int]] = Counter()
    for site in sites:
        shapes = [shape for shape in seen[id(site.module)] if shape]
        if shapes and site.spec.time is Time.PER_CALL:
            found[len(shapes), shapes[0][0]] += 1
        elif shapes and site.spec.time is Time.LEADING and len(shapes[0]) > 1:
            found[sum(shape[0] for shape in shapes), shapes[0][1]] += 1
    if not found:
        doubt = f"no spiking neuron was seen at work: taken for one step of {len(sequence)} samples"
        return Geometry(1, len(sequence)), [doubt]
    ((timesteps, batch), _), *others = found.most_common()
    doubts = []
    if others:
        listing = listed(f"{t} x {b} ({n})" for (t, b), n in found.most_common())
        doubts.append(f"neurons see different numbers of steps x samples: {listing}; the first is used")
    return Geometry(timesteps, batch), doubts


def _memory(model: nn.Module) -> Iterator[str]:
    starts = [m.imp for m in model.modules() if isinstance(m, InitialPotential) and "imp" in m._parameters]
    if starts:
        count = sum(start.numel() for start in starts)
        yield f"V0 of {len(starts)} neurons: {count:,} values of memory, no operations"


def _missing(recorder: Recorder) -> Iterator[str]:
    if recorder.unknown:
        yield f"NOT counted, operations on weights that are not known: {listed(recorder.unknown)}"
