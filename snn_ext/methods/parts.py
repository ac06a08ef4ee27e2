"""From an option to the parameter or module that is attached to a patched neuron under its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from snn_ext.dynamics.description import NeuronSpec
from snn_ext.errors import AdapterError
from snn_ext.methods.neurons import InitialPotential, initial_potential, potential_shape
from snn_ext.methods.norms import NormalisedMembrane, membrane_batch_norm
from snn_ext.methods.options import IMP, MPBN, Method

__all__ = ["Part", "attach", "detach", "part_shapes", "part_size", "parts"]

Part = nn.Parameter | nn.Module
_MIXINS: dict[str, type[nn.Module]] = {IMP.name: InitialPotential, MPBN.name: NormalisedMembrane}


def parts(
    methods: Mapping[str, Method],
    features: Sequence[int] | None,
    spec: NeuronSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Part]:
    """One part per method, on `device`, in `dtype`.

    Raises:
        OptionError, ShapeMismatchError: see `initial_potential`.
    """
    made: dict[str, Part] = {}
    for name, option in methods.items():
        if isinstance(option, IMP):
            made[name] = initial_potential(option, features, spec, device=device, dtype=dtype)
        elif isinstance(option, MPBN):
            made[name] = membrane_batch_norm(option, features or ()).to(device, dtype)
    return made


def part_shapes(option: Method, features: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Shapes of the parameters that `parts` would make."""
    if isinstance(option, IMP):
        return [potential_shape(option.shape, features)]
    if isinstance(option, MPBN):
        with torch.device("meta"):
            return [tuple(p.shape) for p in membrane_batch_norm(option, features or ()).parameters()]
    return []


def part_size(option: Method, features: Sequence[int] | None) -> int:
    """Number of new parameters."""
    return sum(torch.Size(shape).numel() for shape in part_shapes(option, features))


def attach(module: nn.Module, methods: Mapping[str, Method], made: Mapping[str, Part], path: str) -> None:
    """Attach parts to what an adapter's ``snn_ext_replace`` returned.

    Raises:
        AdapterError: the module lacks the mixin that a method needs.
    """
    for name, part in made.items():
        if not isinstance(module, _MIXINS[name]):
            raise AdapterError(
                f"{type(module).__name__} cannot carry {name}.",
                where=path,
                why=f"snn_ext_replace must return a {_MIXINS[name].__name__} where {name} is asked for",
                do="report this to the authors of the adapter; the model is unchanged",
            )
        option = methods[name]
        if (
            isinstance(module, InitialPotential)
            and isinstance(option, IMP)
            and isinstance(part, nn.Parameter)
        ):
            module.start_from(option, part, path)
        elif isinstance(part, nn.Module):
            module.add_module(name, part.train(module.training))


def detach(module: nn.Module) -> None:
    """Undo `attach`."""
    if isinstance(module, InitialPotential):
        module.stop_starting()
    if isinstance(module, NormalisedMembrane):
        module._modules.pop(MPBN.name, None)
