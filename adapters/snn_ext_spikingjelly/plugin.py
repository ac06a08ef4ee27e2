"""Hooks of the SpikingJelly adapter. Nothing here imports SpikingJelly until a model needs it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from snn_ext import AdapterInfo, NeuronSpec, Site, comes_from, hookimpl, swap_class


@hookimpl
def snn_ext_adapter() -> AdapterInfo:
    return AdapterInfo(
        name="spikingjelly",
        framework="spikingjelly",
        distribution="spikingjelly",
        methods=("imp", "mpbn"),
    )


@hookimpl
def snn_ext_describe(module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | None:
    if not comes_from(module, "spikingjelly"):
        return None
    from snn_ext_spikingjelly.describe import describe

    return describe(module, path, root)


@hookimpl
def snn_ext_replace(site: Site, methods: Mapping[str, object], features: tuple[int, ...] | None) -> nn.Module:
    from snn_ext_spikingjelly.compat import warn_ignored_overrides
    from snn_ext_spikingjelly.neurons import MIXINS

    warn_ignored_overrides(site.module, str(site))
    swap_class(site.module, MIXINS[frozenset(methods)])
    return site.module


@hookimpl
def snn_ext_reset(root: nn.Module) -> None:
    # The framework's own reset_net caches the module list per root and would miss later changes.
    if any(comes_from(module, "spikingjelly") for module in root.modules()):
        for module in root.modules():
            reset = getattr(module, "reset", None)
            if callable(reset):
                reset()
