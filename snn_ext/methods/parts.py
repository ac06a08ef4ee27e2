"""From an option to the parameter or module that is attached to a patched site under its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.dynamics.description import NeuronSpec, NormSpec
from snn_ext.errors import AdapterError, ShapeMismatchError
from snn_ext.methods.conversion import LaterSlots, NormalisedInput, TemporalScale, TimedNorm
from snn_ext.methods.neurons import InitialPotential, initial_potential, potential_shape
from snn_ext.methods.norms import NormalisedMembrane, membrane_batch_norm
from snn_ext.methods.options import BNTT, IMP, MPBN, TEBN, Method, TimeNorm
from snn_ext.methods.paths import forget_path, remember_path
from snn_ext.methods.temporal import BatchNormThroughTime, TemporalEffectiveBatchNorm

__all__ = ["Part", "Place", "add_part", "attach", "detach", "new_part", "part_shapes"]

Part = nn.Parameter | nn.Module


@dataclass(frozen=True)
class Place:
    """Everything about a site that its new parts depend on.

    Attributes:
        module: the site.
        spec: what the adapter says about it.
        features: shape of one sample at one step, [C, *], where known.
        timesteps: T, where known.
    """

    module: nn.Module
    spec: NeuronSpec | NormSpec
    features: Sequence[int] | None
    timesteps: int | None


def new_part(option: Method, place: Place, *, device: torch.device, dtype: torch.dtype) -> Part:
    """The parameter or module that `option` puts into this place.

    Raises:
        OptionError, ShapeMismatchError: see `initial_potential`; no channels for a norm.
    """
    if isinstance(option, IMP) and isinstance(place.spec, NeuronSpec):
        return initial_potential(option, place.features, place.spec, device=device, dtype=dtype)
    return _new_module(option, place).to(device, dtype)


def _new_module(option: Method, place: Place) -> nn.Module:
    features, steps = tuple(place.features or ()), place.timesteps or 1
    if isinstance(option, TimeNorm) and isinstance(place.module, _BatchNorm):
        eps = place.module.eps if option.eps is None else option.eps
        momentum = place.module.momentum if option.momentum is None else option.momentum
        if isinstance(option, BNTT):
            return LaterSlots(place.module, steps, bias=option.bias, eps=eps, momentum=momentum)
        return TemporalScale(place.module, steps, stats=_stats(option), eps=eps, momentum=momentum)
    if not features:
        raise ShapeMismatchError(
            f"{type(option).__name__} needs features [C, *] behind time and batch; there are none.",
            do="pass an example_input with features, or exclude this site",
        )
    if isinstance(option, MPBN):
        return membrane_batch_norm(option, features)
    momentum = 0.1 if getattr(option, "momentum", None) is None else option.momentum  # type: ignore[attr-defined]
    if isinstance(option, BNTT):
        eps = 1e-4 if option.eps is None else option.eps
        return BatchNormThroughTime(steps, features[0], bias=option.bias, eps=eps, momentum=momentum)
    if isinstance(option, TEBN):
        eps = 1e-5 if option.eps is None else option.eps
        return TemporalEffectiveBatchNorm(steps, features[0], stats=option.stats, eps=eps, momentum=momentum)
    raise AdapterError(f"{type(option).__name__} has no part.", do="pass an option of snn_ext")


def _stats(option: Method) -> Literal["joint", "step"]:
    return option.stats if isinstance(option, TEBN) else "joint"


def part_shapes(option: Method, place: Place) -> list[tuple[int, ...]]:
    """Shapes of the parameters that `new_part` would make."""
    if isinstance(option, IMP):
        return [potential_shape(option.shape, place.features)]
    with torch.device("meta"):
        return [tuple(p.shape) for p in _new_module(option, place).parameters()]


def attach(module: nn.Module, option: Method, part: Part, path: str) -> None:
    """Attach a part to what an adapter's ``snn_ext_replace`` returned; both remember where they are.

    Raises:
        AdapterError: the module lacks the mixin that the method needs.
    """
    needed = _mixin(option, part)
    if not isinstance(module, needed):
        raise AdapterError(
            f"{type(module).__name__} cannot carry {option.name}.",
            where=path,
            why=f"snn_ext_replace must return a {needed.__name__} where {option.name} is asked for",
            do="report this to the authors of the adapter; the model is unchanged",
        )
    remember_path(module, path)
    if isinstance(module, InitialPotential) and isinstance(option, IMP) and isinstance(part, nn.Parameter):
        module.start_from(option, part)
    elif isinstance(part, nn.Module):
        add_part(module, option.name, part, path)
        if isinstance(part, LaterSlots | TemporalScale) and isinstance(module, _BatchNorm):
            part.take_over(module)


def add_part(module: nn.Module, name: str, part: nn.Module, path: str) -> None:
    """Put a part, or what it was folded to, under its name into the module at `path`."""
    module.add_module(name, part.train(module.training))
    for own, child in part.named_modules(prefix=f"{path}.{name}".removeprefix(".")):
        remember_path(child, own)


def _mixin(option: Method, part: Part) -> type[nn.Module]:
    if isinstance(option, IMP):
        return InitialPotential
    if isinstance(option, MPBN):
        return NormalisedMembrane
    return TimedNorm if isinstance(part, LaterSlots | TemporalScale) else NormalisedInput


def detach(module: nn.Module) -> None:
    """Undo `attach`, as far as it got."""
    forget_path(module)
    if isinstance(module, InitialPotential):
        module.stop_starting()
    for mixin, names in _CHILDREN.items():
        for name in names if isinstance(module, mixin) else ():
            part = module._modules.pop(name, None)
            if isinstance(part, LaterSlots | TemporalScale) and isinstance(module, _BatchNorm):
                part.give_back(module)


_CHILDREN: dict[type[nn.Module], tuple[str, ...]] = {
    NormalisedMembrane: (MPBN.name,),
    TimedNorm: (BNTT.name, TEBN.name),
    NormalisedInput: (BNTT.name, TEBN.name),
}
