"""Hooks of the snnTorch adapter. Nothing here imports snnTorch until a model needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext import AdapterInfo, NeuronSpec, NormSpec, Site, comes_from, hookimpl, swap_class
from snn_ext.kernels import Call


@hookimpl
def snn_ext_adapter() -> AdapterInfo:
    return AdapterInfo(
        name="snntorch",
        framework="snntorch",
        distribution="snntorch",
        methods=("imp", "mpbn", "bntt", "tebn"),
    )


def _is_snntorch(root: nn.Module) -> bool:
    return any(comes_from(module, "snntorch") for module in root.modules())


@hookimpl
def snn_ext_describe(module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | NormSpec | None:
    if isinstance(module, _BatchNorm):
        # torch's own batch norms belong to whoever calls them
        if not _is_snntorch(root) or any(comes_from(m, "spikingjelly") for m in root.modules()):
            return None
        from snn_ext_snntorch.describe import describe_norm

        return describe_norm(module)
    if not comes_from(module, "snntorch"):
        return None
    from snn_ext_snntorch.describe import describe

    return describe(module)


@hookimpl
def snn_ext_replace(site: Site, methods: tuple[str, ...], features: tuple[int, ...] | None) -> nn.Module:
    from snn_ext_snntorch.neurons import adopt_state, mixins
    from snn_ext_snntorch.norms import Norm

    if isinstance(site.spec, NormSpec):
        swap_class(site.module, Norm)
    else:
        swap_class(site.module, *mixins(methods))
        adopt_state(site.module)
    return site.module


@hookimpl
def snn_ext_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    from snn_ext_snntorch.state import call_of

    usual = len(args) in (1, 2) and kwargs.keys() <= {"mem"}
    return call_of(module, *args, **kwargs) if usual else None


@hookimpl
def snn_ext_changed(root: nn.Module, replaced: tuple[nn.Module, ...]) -> None:
    if _is_snntorch(root):
        from snn_ext_snntorch.norms import watch

        watch(root)


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
    if not _is_snntorch(root):
        return None
    from snn_ext_snntorch.losses import readout

    return readout(output, want)


@hookimpl
def snn_ext_loss(
    root: nn.Module, objective: Any, readout: Callable[[Any], Tensor], want: str
) -> Callable[[Any, Tensor], Tensor] | None:
    if not _is_snntorch(root):
        return None
    from snn_ext_snntorch.losses import native_loss

    return native_loss(objective, readout, want)


@hookimpl
def snn_ext_cases() -> tuple[Any, ...]:
    from snn_ext_snntorch.cases import cases

    return cases()
