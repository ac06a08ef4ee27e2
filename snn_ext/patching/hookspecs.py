"""The contract between core and adapters (pluggy hooks; keyword arguments, stateless).

An adapter is a module or object with some of these hooks, found through the entry-point group
``snn_ext`` or given to `snn_ext.register`. Only `snn_ext_adapter`, `snn_ext_describe` and
`snn_ext_replace` are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pluggy
from torch import Tensor, nn

from snn_ext.dynamics.description import NeuronSpec, NormSpec
from snn_ext.kernels import Call
from snn_ext.methods.objectives import Objective

if TYPE_CHECKING:
    from snn_ext.patching.sites import Site

__all__ = ["PROJECT", "AdapterInfo", "Want", "hookimpl"]

PROJECT = "snn_ext"
Want = Literal["membrane", "spikes"]

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Decorator for an adapter's hooks."""


@dataclass(frozen=True)
class AdapterInfo:
    """Who an adapter is.

    Args:
        name: short name used in plans and checkpoints.
        framework: top-level import package of the framework it adapts.
        distribution: name to ``pip install`` for that framework.
        methods: names of the methods it can put into its neurons and norms.
    """

    name: str
    framework: str
    distribution: str
    methods: tuple[str, ...]


@hookspec
def snn_ext_adapter() -> AdapterInfo:  # type: ignore[empty-body]
    """Who the adapter is. Must not import its framework."""


@hookspec
def snn_ext_check_release() -> None:
    """Raise `UnsupportedReleaseError` if the installed release of the framework cannot be patched.

    May import the framework: ``snn-ext doctor`` and the compliance suite ask it. Models are not announced by
    it, so `snn_ext_describe` must raise the same where it would fail otherwise.
    """


@hookspec(firstresult=True)
def snn_ext_describe(module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | NormSpec | None:
    """Describe `module` if it is a neuron or batch norm of the framework, else None. Pure and cheap.

    `path` is its dotted name in `root`. A neuron that cannot be patched is described too, with the
    reason in `NeuronSpec.unsupported`.
    """


@hookspec(firstresult=True)
def snn_ext_replace(
    site: Site, methods: tuple[str, ...], features: tuple[int, ...] | None
) -> nn.Module | None:
    """Make ``site.module`` capable of `methods` and return what takes its place.

    Normally the same object after `snn_ext.swap_class`; a new object is allowed. Core then attaches
    the parameters, so the result needs the mixin of each method: "imp" `InitialPotential`, "mpbn"
    `NormalisedMembrane`, "bntt" and "tebn" `NormalisedInput` (neurons) or `TimedNorm` (norms), "clock"
    `Clock`: a neuron that only tells the norm before it which step it is. `features` is the shape of
    one sample at one step, where known.
    """


@hookspec
def snn_ext_watch(module: nn.Module, note: Callable[[tuple[Any, ...]], None]) -> None:
    """While shapes are traced: let `module` call ``note(inputs)`` where its framework runs it without
    calling the module. All attributes are restored after the trace. Not needed where hooks fire."""


@hookspec(firstresult=True)
def snn_ext_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """What calling a neuron, patched or not, with these arguments would compute now, as data: so that
    `snn_ext.figures.record` can tell its membranes. None where `Dynamics` cannot express it. Pure.

    ``x`` is the input as given, a step [B, *] as [1, B, *]; ``v`` the membrane (the very tensor) that it
    goes on from, if any; ``v0`` the start of a sequence that begins. Norms in the neuron are core's to add.
    Asked again after the call, with the input alone, ``v`` is the membrane that came out.
    """


@hookspec
def snn_ext_changed(root: nn.Module, replaced: tuple[nn.Module, ...]) -> None:
    """Sites of `root` were patched or unpatched: drop caches that list its modules."""


@hookspec(firstresult=True)
def snn_ext_reset(root: nn.Module) -> bool | None:
    """Reset the framework's states inside `root`; True if nobody else needs to be asked."""


@hookspec(firstresult=True)
def snn_ext_readout(root: nn.Module, output: Any, want: Want) -> Tensor | None:
    """Scores [T, B, C] from what `root` returned, or None if `root` is not of this framework."""


@hookspec(firstresult=True)
def snn_ext_loss(
    root: nn.Module, objective: Objective, readout: Callable[[Any], Tensor], want: Want
) -> Callable[[Any, Tensor], Tensor] | None:
    """A loss ``(output, target)`` with what the framework's own trainers expect of one, or None."""


@hookspec(firstresult=True)
def snn_ext_cases() -> Sequence[Any] | None:
    """Networks to check the adapter with, as `snn_ext.testing.Case`: then
    ``python -m pytest --pyargs snn_ext.testing`` runs the compliance suite on it wherever it is installed.
    """
