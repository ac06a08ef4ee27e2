"""Wrong adapters that describe, replace or undo in a wrong way."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics.description import NeuronSpec, NormSpec, Time
from snn_ext.methods.neurons import InitialPotential
from snn_ext.methods.swap import original_class, swap_class
from snn_ext.patching.hookspecs import hookimpl
from snn_ext.patching.sites import Site
from snn_ext.testing.toy import Neuron, Start, ToyAdapter

__all__ = [
    "AsksForKeys",
    "ByAttribute",
    "ByDepth",
    "ByExactClass",
    "ByThreshold",
    "CopiedParameter",
    "DropsHooks",
    "EvalMode",
    "ExtraKey",
    "ForgetsPatched",
    "ForgetsWhenMoved",
    "Lambda",
    "LeavesTraces",
    "NeedsTrace",
    "NewObject",
    "OnePath",
    "RandomProbe",
    "SharedCopy",
    "StaysBehind",
    "TakenForGranted",
    "TidiesLate",
    "WideSpikes",
]

_Spec = NeuronSpec | NormSpec | None


class ByAttribute(ToyAdapter):
    """Takes for a neuron whatever has a membrane and a threshold."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> _Spec:
        spec = super().describe(module, path, root)
        looks_like = hasattr(module, "v") and hasattr(module, "threshold")
        return NeuronSpec(Time.LEADING) if spec is None and looks_like else spec


class ByThreshold(ToyAdapter):
    """Passes neurons by in silence that have another threshold than the default."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> _Spec:
        other = isinstance(module, Neuron) and module.threshold != 1.0
        return None if other else super().describe(module, path, root)


class RandomProbe(ToyAdapter):
    """Describes a neuron by what it does with random input."""

    def describe_neuron(self, module: Neuron) -> NeuronSpec:
        torch.rand(4)
        return super().describe_neuron(module)


class ByExactClass(ToyAdapter):
    """Knows the framework's classes, and not what users derive from them."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> _Spec:
        derived = isinstance(module, Neuron) and original_class(module) is not Neuron
        return None if derived else super().describe(module, path, root)


class OnePath(ToyAdapter):
    """Takes for granted that a module has one name."""

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        (_,) = site.paths
        return super().replace(site, methods)


class NewObject(ToyAdapter):
    """Puts a copy in the place of the neuron; the user's reference is stale."""

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        new = copy.copy(site.module)
        swap_class(new, *self.mixins(site, methods))
        return new


class ByDepth(ToyAdapter):
    """Looks for neurons near the top only."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> _Spec:
        return None if path.count(".") > 3 else super().describe(module, path, root)


class _Versioned(Start):
    def get_extra_state(self) -> Tensor:
        return torch.ones(())

    def set_extra_state(self, state: Any) -> None:
        pass

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: Any, *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        missing_keys[:] = [key for key in missing_keys if key != f"{prefix}_extra_state"]


class ExtraKey(ToyAdapter):
    """Keeps a version number of its own in checkpoints."""

    start = _Versioned


class DropsHooks(ToyAdapter):
    """Loses the hooks of a neuron."""

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        site.module._forward_hooks.clear()
        return super().replace(site, methods)


class CopiedParameter(ToyAdapter):
    """Trains a copy of a neuron's parameter; unpatch brings the original back."""

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        if isinstance(site.module, Neuron):
            site.module.__dict__["_old_w"] = site.module.w
            site.module._parameters["w"] = nn.Parameter(site.module.w.detach().clone())
        return super().replace(site, methods)

    @hookimpl
    def snn_ext_changed(self, root: nn.Module, replaced: tuple[nn.Module, ...]) -> None:
        """Brings it back."""
        for module in root.modules():
            if "_old_w" in module.__dict__ and original_class(module) is type(module):
                module._parameters["w"] = module.__dict__.pop("_old_w")


class EvalMode(ToyAdapter):
    """Leaves neurons in eval mode."""

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        return super().replace(site, methods).eval()


class _Wide(Start):
    def step(self, x: Tensor) -> Tensor:
        spikes: Tensor = super().step(x)  # type: ignore[misc]
        return spikes.to(torch.promote_types(x.dtype, torch.float32))


class WideSpikes(ToyAdapter):
    """Returns spikes in the dtype of the membrane, which the next layer cannot take in half precision."""

    start = _Wide


class _Behind(Start):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return self


class StaysBehind(ToyAdapter):
    """Keeps its neurons in float32, and on their device, for ever."""

    start = _Behind


class _Forgetful(Start):
    v: Tensor | None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.v = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class ForgetsWhenMoved(ToyAdapter):
    """Forgets its state when the network is moved or converted."""

    start = _Forgetful


class _Shared(Start):
    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        memo[id(self.imp)] = self.imp
        new: nn.Module = copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]
        return new


class SharedCopy(ToyAdapter):
    """Copies of a network share one V0."""

    start = _Shared


class _Noted(Start):
    _ext_note: Any = None

    def start_from(self, *args: Any, **kwargs: Any) -> None:
        super().start_from(*args, **kwargs)
        self.__dict__["_ext_note"] = lambda: "patched"


class Lambda(ToyAdapter):
    """Keeps a lambda on the neuron, which does not pickle."""

    start = _Noted


class ForgetsPatched(ToyAdapter):
    """Does not recognise what it has patched."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> _Spec:
        return None if isinstance(module, InitialPotential) else super().describe(module, path, root)


class LeavesTraces(ToyAdapter):
    """Marks patched networks, and does not take the mark away."""

    @hookimpl
    def snn_ext_changed(self, root: nn.Module, replaced: tuple[nn.Module, ...]) -> None:
        """Marks the root."""
        if any(isinstance(module, InitialPotential) for module in root.modules()):
            root.__dict__["_ext_seen"] = True


class _Asking(Start):
    _version = 2

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: Any, *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        if local_metadata.get("version", 2) != 2:
            missing_keys.append(f"{prefix}imp")


class AsksForKeys(ToyAdapter):
    """Insists on its key in checkpoints that were made before it existed."""

    start = _Asking


class NeedsTrace(ToyAdapter):
    """Needs to have seen a neuron run before it can replace it."""

    def __init__(self) -> None:
        self.seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    @hookimpl
    def snn_ext_watch(self, module: nn.Module, note: Any) -> None:
        """Notes it."""
        self.seen.add(module)

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        if site.module not in self.seen:
            raise RuntimeError(f"{site} was never watched")
        return super().replace(site, methods)


class TidiesLate(ToyAdapter):
    """Tidies up when a network is unpatched, if it was told before that the patch was complete."""

    def __init__(self) -> None:
        self.complete: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def replace(self, site: Site, methods: tuple[str, ...]) -> nn.Module:
        site.module.__dict__["_ext_left"] = True
        return super().replace(site, methods)

    @hookimpl
    def snn_ext_changed(self, root: nn.Module, replaced: tuple[nn.Module, ...]) -> None:
        """Notes what is complete, tidies what was."""
        for module in replaced:
            if original_class(module) is not type(module):
                self.complete.add(module)
            elif module in self.complete:
                module.__dict__.pop("_ext_left", None)


class TakenForGranted(ToyAdapter):
    """Expects a neuron of its framework in every network."""

    def describe(self, module: nn.Module, path: str, root: nn.Module) -> _Spec:
        next(m for m in root.modules() if isinstance(m, Neuron))
        return super().describe(module, path, root)
