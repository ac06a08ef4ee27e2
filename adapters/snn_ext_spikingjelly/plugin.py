"""Hooks of the SpikingJelly adapter. Nothing here imports SpikingJelly until a model needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext import AdapterInfo, NeuronSpec, NormSpec, Site, comes_from, hookimpl, swap_class
from snn_ext.kernels import Call


@hookimpl
def snn_ext_adapter() -> AdapterInfo:
    return AdapterInfo(
        name="spikingjelly",
        framework="spikingjelly",
        distribution="spikingjelly",
        methods=("imp", "mpbn", "bntt", "tebn"),
    )


@hookimpl
def snn_ext_check_release() -> None:
    from snn_ext_spikingjelly.compat import check_release

    check_release()


def _is_spikingjelly(root: nn.Module) -> bool:
    return any(comes_from(module, "spikingjelly") for module in root.modules())


@hookimpl
def snn_ext_describe(module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | NormSpec | None:
    norm = isinstance(module, _BatchNorm) and _is_spikingjelly(root)
    if not norm and not comes_from(module, "spikingjelly"):
        return None
    snn_ext_check_release()  # what is imported next needs names that older releases do not have
    from snn_ext_spikingjelly.describe import describe, describe_norm

    return describe_norm(module, root) if norm else describe(module, root)


@hookimpl
def snn_ext_replace(site: Site, methods: tuple[str, ...], features: tuple[int, ...] | None) -> nn.Module:
    from snn_ext_spikingjelly.compat import warn_ignored_overrides
    from snn_ext_spikingjelly.neurons import mixins
    from snn_ext_spikingjelly.norms import norm_class

    if isinstance(site.spec, NormSpec):
        swap_class(site.module, norm_class(site.spec))
    else:
        warn_ignored_overrides(site.module, str(site))
        swap_class(site.module, *mixins(methods, type(site.module)))
    return site.module


@hookimpl
def snn_ext_watch(module: nn.Module, note: Callable[[tuple[Any, ...]], None]) -> None:
    # The memory optimiser calls neither forward nor hooks.
    step = getattr(module, "functional_forward", None)
    if step is not None:

        def noted(inputs: tuple[Any, ...], *args: Any, **kwargs: Any) -> Any:
            note(tuple(inputs))
            return step(inputs, *args, **kwargs)

        module.__dict__["functional_forward"] = noted


@hookimpl
def snn_ext_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    from snn_ext_spikingjelly.state import call_of

    return call_of(module, args[0]) if len(args) == 1 and not kwargs else None


@hookimpl
def snn_ext_changed(root: nn.Module, replaced: tuple[nn.Module, ...]) -> None:
    if _is_spikingjelly(root):
        from snn_ext_spikingjelly.norms import watch_containers

        watch_containers(root)


@hookimpl
def snn_ext_reset(root: nn.Module) -> None:
    # The framework's own reset_net caches the module list per root and would miss later changes.
    if _is_spikingjelly(root):
        for module in root.modules():
            reset = getattr(module, "reset", None)
            if callable(reset):
                reset()


@hookimpl
def snn_ext_cases() -> tuple[Any, ...]:
    from snn_ext_spikingjelly.cases import cases

    return cases()
