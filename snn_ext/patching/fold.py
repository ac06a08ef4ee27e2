"""Fold norms away for inference, and measure what that changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.errors import FoldError, SnnExtError
from snn_ext.methods.norms import FoldedMembraneNorm, MembraneBatchNorm, NormalisedMembrane
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.record import Record, patched_modules
from snn_ext.patching.sequence import reset, tensors_in
from snn_ext.patching.shapes import run, untouched

__all__ = ["FoldResult", "fold", "install_blanks"]


@dataclass(frozen=True)
class FoldResult:
    """What `fold` measured on its example input.

    Attributes:
        sites: number of folded sites.
        output_difference: largest absolute difference of the model's output.
        spike_mismatch: share of spikes of the folded sites that differ.
    """

    sites: int
    output_difference: float
    spike_mismatch: float

    def __str__(self) -> str:
        return (
            f"folded {self.sites} sites: largest output difference {self.output_difference:.3g},"
            f" spike mismatch {self.spike_mismatch:.3g}"
        )


def fold(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Turn every MPBN into a threshold and a comparison sign, per channel or per element, in place.

    Exact up to rounding of the threshold: for gamma of either sign, gamma = 0, both resets (a soft
    reset goes on subtracting the neuron's own threshold). There is no way back: train and save first.

    Args:
        model: patched with ``mpbn``, in eval mode.
        example_input: what you would pass to ``model(...)``; if given, the model runs before and
            after from fresh states, and the largest differences are printed.

    Returns:
        The model.

    Raises:
        FoldError: no MPBN; training mode; ``carry="normalised"``; no running statistics. The model is
            unchanged then.
        UnsupportedSiteError: the model is compiled or wrapped.
    """
    refuse_wrapped(model)
    sites = _foldable(model)
    if not sites:
        raise FoldError("nothing to fold.", do="patch the model with mpbn=True and train it first")
    if model.training:
        raise FoldError(f"{type(model).__name__} is in training mode.", do="call model.eval() first")
    folded = {path: _folded(path, module) for path, (module, _) in sites.items()}
    modules = [module for module, _ in sites.values()]
    before = _observe(model, modules, example_input) if example_input is not None else None
    for path, (module, record) in sites.items():
        _install(module, record, folded[path])
    if before is not None:
        print(_compare(len(sites), before, _observe(model, modules, example_input)))
    return model


def install_blanks(model: nn.Module, paths: set[str]) -> None:
    """Fold these sites without values, for `load` to fill in."""
    for path, (module, record) in _foldable(model).items():
        if path in paths and isinstance(module.mpbn, MembraneBatchNorm):
            _install(module, record, module.mpbn.blank_fold())


_Sites = dict[str, tuple[NormalisedMembrane, Record]]


def _foldable(model: nn.Module) -> _Sites:
    return {
        path: (module, record)
        for path, (module, record) in patched_modules(model).items()
        if isinstance(module, NormalisedMembrane) and isinstance(module.mpbn, MembraneBatchNorm)
    }


def _folded(path: str, module: NormalisedMembrane) -> FoldedMembraneNorm:
    try:
        return module.folded()
    except SnnExtError as error:
        raise FoldError(error.what, where=path or "(root)", why=error.why, do=error.do) from None


def _install(module: NormalisedMembrane, record: Record, norm: FoldedMembraneNorm) -> None:
    module.mpbn = norm.train(module.training)
    replace(record, folded=True).attach(module)


_Observed = tuple[list[Tensor], list[Tensor]]


def _observe(model: nn.Module, sites: list[NormalisedMembrane], example_input: Any) -> _Observed:
    """Outputs of the model and of the sites on the example, from fresh states, leaving no trace."""
    spikes: list[Tensor] = []
    with untouched(model), torch.no_grad():
        reset(model)
        for module in sites:
            module.register_forward_hook(lambda m, i, o: spikes.extend(list(tensors_in(o))[:1]))
        output = list(tensors_in(run(model, example_input)))
    return output, spikes


def _compare(sites: int, before: _Observed, after: _Observed) -> FoldResult:
    differences = [float((a - b).abs().max()) for a, b in zip(before[0], after[0], strict=True) if a.numel()]
    flips = sum(int((a != b).sum()) for a, b in zip(before[1], after[1], strict=True))
    count = sum(a.numel() for a in before[1])
    return FoldResult(sites, max(differences, default=0.0), flips / max(count, 1))
