"""Who takes the steps of a patched neuron: snn-ext's kernels, or its framework; and why."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import nn

from snn_ext import kernels
from snn_ext.dynamics.description import NeuronSpec
from snn_ext.errors import OptionError, UnsupportedSiteError
from snn_ext.patching.sites import Site

__all__ = ["NOBODY", "Stepper", "device_of", "parse_backend", "stepper"]


class Stepper(NamedTuple):
    """What runs a neuron: the name of a backend or "framework", and why not a better one."""

    name: str
    reason: str


NOBODY = Stepper("", "")


def parse_backend(backend: str | None) -> str | None:
    """The argument of `patch`.

    Raises:
        OptionError: no backend of that name.
    """
    if backend is None or backend in kernels.NAMES:
        return backend
    known = ", ".join(map(repr, kernels.NAMES))
    raise OptionError(f"backend={backend!r} is not known.", do=f"use one of {known}")


def stepper(site: Site, methods: tuple[str, ...], device: torch.device, backend: str | None) -> Stepper:
    """What will run a neuron site with these methods, on inputs in float32.

    Raises:
        BackendUnavailableError: a backend that was asked for by name cannot run here.
        UnsupportedSiteError: a backend was asked for, and no kernel knows this neuron.
    """
    spec = site.spec
    if not isinstance(spec, NeuronSpec) or not methods:
        return NOBODY
    if backend == kernels.FRAMEWORK:
        return Stepper(kernels.FRAMEWORK, "asked for")
    keys = (*methods, "*") if backend else (*methods, "*", device.type)
    reasons = [spec.own_step[key] for key in keys if key in spec.own_step]
    if spec.dynamics is None:
        reasons.append("its equations are not among those that the kernels compute")
    if reasons and backend not in (None, "auto"):
        raise UnsupportedSiteError(
            f"backend={backend!r} cannot run {site.kind}.",
            where=str(site),
            why=reasons[0],
            do="leave this site out with exclude=, or drop backend=",
        )
    if reasons or spec.dynamics is None:
        return Stepper(kernels.FRAMEWORK, reasons[0])
    with kernels.preferred(backend):
        return Stepper(*kernels.choose(spec.dynamics, device=device))


def device_of(*modules: nn.Module) -> torch.device:
    """Where the first parameter or buffer is."""
    tensors = itertools.chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules)
    return next((t.device for t in tensors), torch.get_default_device())
