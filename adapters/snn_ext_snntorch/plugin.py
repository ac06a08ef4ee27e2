"""Hooks of the snnTorch adapter. Nothing here imports snnTorch until a model needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from snn_ext import AdapterInfo, NeuronSpec, Site, comes_from, hookimpl, swap_class


@hookimpl
def snn_ext_adapter() -> AdapterInfo:
    return AdapterInfo(
        name="snntorch", framework="snntorch", distribution="snntorch", methods=("imp", "mpbn")
    )


@hookimpl
def snn_ext_describe(module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | None:
    if not comes_from(module, "snntorch"):
        return None
    from snn_ext_snntorch.describe import describe

    return describe(module)


@hookimpl
def snn_ext_replace(site: Site, methods: Mapping[str, object], features: tuple[int, ...] | None) -> nn.Module:
    from snn_ext_snntorch.neurons import MIXINS, adopt_state

    swap_class(site.module, MIXINS[frozenset(methods)])
    adopt_state(site.module)
    return site.module


@hookimpl
def snn_ext_reset(root: nn.Module) -> None:
    # utils.reset() sees direct children only, misses copies, and resets other networks as well.
    neurons = [m for m in root.modules() if comes_from(m, "snntorch") and "mem" in m._buffers]
    for neuron in neurons:
        reset = getattr(neuron, "reset_mem", None)
        if callable(reset):
            reset()


@hookimpl
def snn_ext_readout(root: nn.Module, output: Any, want: str) -> Tensor | None:
    if not any(comes_from(module, "snntorch") for module in root.modules()):
        return None
    from snn_ext_snntorch.losses import readout

    return readout(output, want)


@hookimpl
def snn_ext_loss(
    root: nn.Module, objective: Any, readout: Callable[[Any], Tensor], want: str
) -> Callable[[Any, Tensor], Tensor] | None:
    if not any(comes_from(module, "snntorch") for module in root.modules()):
        return None
    from snn_ext_snntorch.losses import native_loss

    return native_loss(objective, readout, want)
