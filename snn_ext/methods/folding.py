"""BNTT and TEBN in eval mode are an affine per step: y[t] = scale[t] * x[t] + shift[t]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.errors import FoldError
from snn_ext.methods.conversion import FoldedTime, LaterSlots, TemporalScale, TimedNorm
from snn_ext.methods.temporal import BatchNormThroughTime, TemporalEffectiveBatchNorm

__all__ = ["blank_time_fold", "fold_time"]


def fold_time(module: nn.Module) -> FoldedTime:
    """The affine per step of a norm (`TimedNorm`) or of the norm before a neuron (`NormalisedInput`).

    With s = sqrt(var + eps): BNTT scale[t] = gamma_t / s_t, shift[t] = beta_t - mu_t * gamma_t / s_t; TEBN
    scale[t] = p[t] * gamma / s, shift[t] = p[t] * (beta - mu * gamma / s). Computed in float64.

    Raises:
        FoldError: training mode, no running statistics, or nothing there to fold.
    """
    if module.training:
        raise FoldError("a norm in training mode cannot be folded.", do="call model.eval() first")
    part = module._modules.get("bntt") or module._modules.get("tebn")
    if isinstance(module, TimedNorm) and isinstance(module, _BatchNorm) and isinstance(part, LaterSlots):
        first = (module, module.bias if part.bias else None)
        return _stacked([first, *((norm, norm.bias) for norm in part)])  # type: ignore[list-item]
    if isinstance(module, TimedNorm) and isinstance(module, _BatchNorm) and isinstance(part, TemporalScale):
        return _stacked([(module, module.bias)] * len(part.scale), part.scale)
    if isinstance(part, BatchNormThroughTime):
        return _stacked([(norm, norm.bias) for norm in part.slots])  # type: ignore[misc]
    if isinstance(part, TemporalEffectiveBatchNorm):
        return _stacked([(part.bn, part.bn.bias)] * len(part.scale), part.scale)
    raise FoldError(f"{type(module).__name__} has no norm over time to fold.", do="fold it once")


def _stacked(norms: Sequence[tuple[_BatchNorm, Tensor | None]], p: Tensor | None = None) -> FoldedTime:
    affines = [_affine(norm, bias) for norm, bias in norms]
    scale, shift = (torch.stack(part) for part in zip(*affines, strict=True))
    if p is not None:
        scale, shift = scale * p.double().unsqueeze(1), shift * p.double().unsqueeze(1)
    dtype = norms[0][0].running_mean.dtype  # type: ignore[union-attr]
    return FoldedTime(scale.to(dtype), shift.to(dtype))


def _affine(norm: _BatchNorm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        raise FoldError("a norm without running statistics cannot be folded.", do="keep it as it is")
    slope = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        slope = slope * norm.weight.double()
    shift = -norm.running_mean.double() * slope
    return slope, shift if bias is None else shift + bias.double()


def blank_time_fold(module: nn.Module, timesteps: int) -> FoldedTime:
    """What `fold_time` returns, without values: for checkpoints to be loaded into."""
    part = module._modules.get("bntt") or module._modules.get("tebn")
    norms = [m for m in (module, *(part.modules() if part is not None else ())) if isinstance(m, _BatchNorm)]
    like = next((t for t in (*norms[0].parameters(), *norms[0].buffers())), torch.zeros(()))
    blank = like.new_zeros(timesteps, norms[0].num_features, dtype=torch.get_default_dtype())
    return FoldedTime(blank, blank)
