"""Fold norms away for inference, and measure what that changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics.description import NeuronSpec
from snn_ext.errors import FoldError, SnnExtError
from snn_ext.methods.conversion import NormalisedInput
from snn_ext.methods.folding import blank_time_fold, fold_time
from snn_ext.methods.norms import NormalisedMembrane
from snn_ext.methods.options import BNTT, MPBN, TEBN
from snn_ext.methods.parts import add_part
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.measured import FoldResult
from snn_ext.patching.record import Record, patched_modules
from snn_ext.patching.sequence import reset, tensors_in
from snn_ext.patching.shapes import follows_weights, run, untouched
from snn_ext.patching.sites import scan

__all__ = ["fold", "install_blanks", "last_fold", "remember_fold"]


def fold(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Fold norms away for inference, in place. There is no way back: train and save first.

    MPBN becomes a threshold and a comparison sign per channel or element: exact up to rounding of the
    threshold, for gamma of either sign, gamma = 0 and every reset (a soft reset goes on subtracting the
    neuron's own threshold). BNTT and TEBN at neurons become an affine per step of the neuron's input, and
    at norms one of the layer before, where that is a convolution or a linear layer; elsewhere they stay.

    Args:
        model: patched with ``mpbn``, ``bntt`` or ``tebn``, in eval mode.
        example_input: what you would pass to ``model(...)``; if given, the model runs before and
            after from fresh states, and the largest differences are printed and kept: the `FoldResult`
            ``snn_ext.report(model).fold``.

    Returns:
        The model.

    Raises:
        FoldError: nothing to fold; training mode; ``carry="normalised"``; no running statistics. The
            model is unchanged then.
        UnsupportedSiteError: the model is compiled or wrapped.
    """
    refuse_wrapped(model)
    if model.training:
        raise FoldError(f"{type(model).__name__} is in training mode.", do="call model.eval() first")
    folded = {
        path: parts for path, module in _open_sites(model).items() if (parts := _folded(model, path, module))
    }
    if not folded:
        raise FoldError("nothing to fold.", do="patch the model with mpbn=True and train it first")
    found = patched_modules(model)
    before = _observe(model, example_input) if example_input is not None else None
    for path, parts in folded.items():
        _install(path, *found[path], parts)
    result = None
    if before is not None:
        result = _compare(len(folded), before, _observe(model, example_input))
        print(result)
    remember_fold(model, result)
    return model


def remember_fold(model: nn.Module, result: FoldResult | None) -> None:
    """Keep the result of the last fold, with everything that is folded."""
    for module, record in patched_modules(model).values():
        if record.folded:
            replace(record, measured=result).attach(module)


def last_fold(model: nn.Module) -> FoldResult | None:
    """The result of the last fold, if it was measured."""
    return next((record.measured for _, record in patched_modules(model).values() if record.folded), None)


def install_blanks(model: nn.Module, paths: Mapping[str, Iterable[str]]) -> None:
    """Fold these methods (per site) without values, for `load` to fill in."""
    for path, (module, record) in patched_modules(model).items():
        parts: dict[str, nn.Module] = {}
        for name in paths.get(path, ()):
            if name == MPBN.name and isinstance(module, NormalisedMembrane):
                parts[name] = module.blank_fold()
            else:
                parts[name] = blank_time_fold(module, record.timesteps or 1)
        if parts:
            _install(path, module, record, parts)


def _open_sites(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, (module, record) in patched_modules(model).items() if not record.folded}


def _folded(model: nn.Module, path: str, module: nn.Module) -> dict[str, nn.Module]:
    """What takes the place of the norms of one site; empty where nothing can."""
    parts: dict[str, nn.Module] = {}
    try:
        if isinstance(module, NormalisedMembrane):
            parts[MPBN.name] = module.folded()
        over_time = [name for name in (BNTT.name, TEBN.name) if name in module._modules]
        if over_time and (isinstance(module, NormalisedInput) or follows_weights(model, path)):
            parts[over_time[0]] = fold_time(module)
    except SnnExtError as error:
        raise FoldError(error.what, where=path or "(root)", why=error.why, do=error.do) from None
    return parts


def _install(path: str, module: nn.Module, record: Record, parts: Mapping[str, nn.Module]) -> None:
    for name, part in parts.items():
        add_part(module, name, part, path)
    replace(record, folded=tuple(parts)).attach(module)


_Observed = tuple[list[Tensor], list[Tensor]]


def _observe(model: nn.Module, example_input: Any) -> _Observed:
    """Outputs of the model and of its neurons on the example, from fresh states, leaving no trace."""
    spikes: list[Tensor] = []
    neurons = [site.module for site in scan(model) if isinstance(site.spec, NeuronSpec)]
    with untouched(model), torch.no_grad():
        reset(model)
        for module in neurons:
            module.register_forward_hook(lambda m, i, o: spikes.extend(list(tensors_in(o))[:1]))
        output = list(tensors_in(run(model, example_input)))
    return output, spikes


def _compare(sites: int, before: _Observed, after: _Observed) -> FoldResult:
    differences = [float((a - b).abs().max()) for a, b in zip(before[0], after[0], strict=True) if a.numel()]
    flips = sum(int((a != b).sum()) for a, b in zip(before[1], after[1], strict=True))
    count = sum(a.numel() for a in before[1])
    return FoldResult(sites, max(differences, default=0.0), flips / max(count, 1))
