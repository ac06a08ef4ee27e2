"""Patched models in distributed training."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.dynamics.description import Time
from snn_ext.methods.batch_norms import BatchNorm, SynchronisedNorm
from snn_ext.methods.conversion import TimedNorm
from snn_ext.methods.paths import remember_path
from snn_ext.methods.swap import swap_class
from snn_ext.methods.sync import SYNC
from snn_ext.patching.arguments import refuse_wrapped
from snn_ext.patching.sites import scan

__all__ = ["convert_sync_batchnorm"]


def convert_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Let every batch norm of `model` take its training statistics over all processes, in place.

    For patched and unpatched norms alike, on CPU (gloo) and GPU. torch's own conversion replaces the
    modules, which loses TEBN's scale and the frameworks' time dimension. Without a process group, or in
    eval mode, nothing changes. Call it before wrapping in DistributedDataParallel.

    Returns:
        The model.

    Raises:
        UnsupportedSiteError: the model is compiled or wrapped.
    """
    refuse_wrapped(model)
    times = {id(site.module): site.spec.time for site in scan(model)}
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            if not isinstance(module, BatchNorm | TimedNorm | SynchronisedNorm):
                swap_class(module, SynchronisedNorm)
                remember_path(module, path)
                module.__dict__["_ext_leading"] = times.get(id(module)) is Time.LEADING
            module.__dict__[SYNC] = True
    return model
