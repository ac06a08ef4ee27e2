"""Which backend runs a call, why the better ones do not, and how the user chooses."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from snn_ext.dynamics.description import Dynamics
from snn_ext.errors import BackendUnavailableError, OptionError
from snn_ext.kernels import candidates
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.candidates import BACKENDS, order

__all__ = [
    "FRAMEWORK",
    "NAMES",
    "BackendStatus",
    "Choice",
    "backends",
    "choose",
    "preferred",
    "run",
    "use_backend",
    "wanted",
]

_LOG = logging.getLogger("snn_ext")
FRAMEWORK = "framework"
NAMES = ("auto", FRAMEWORK, *BACKENDS)
_preferred: contextvars.ContextVar[str | None] = contextvars.ContextVar("snn_ext_preferred", default=None)
_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("snn_ext_backend", default=None)
_logged: set[tuple[str, str]] = set()


class Choice(NamedTuple):
    """What runs a neuron."""

    name: str
    reason: str
    """Why no better backend does, or who asked for it; empty for the best."""


class BackendStatus(NamedTuple):
    """One backend on this machine."""

    name: str
    available: bool
    reason: str
    """Why it is not available; empty if it is."""
    fix: str
    """What makes it available."""
    seconds: float = 0.0
    """Until the first call of a kind of neuron could run: its kernel compiled, or found on disk."""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run neurons on one backend inside a ``with`` block, in this thread.

    Args:
        name: ``"auto"`` (the fastest that works), ``"cupy"``, ``"host"``, ``"torch"`` or ``"reference"``:
            a backend that is asked for by name never gives way to another. ``"framework"``: no kernels,
            patched neurons take their framework's own step.

    Raises:
        OptionError: unknown name.
    """
    token = _asked.set(_known(name, "use_backend"))
    try:
        yield
    finally:
        _asked.reset(token)


@contextlib.contextmanager
def preferred(name: str | None) -> Iterator[None]:
    """Like `use_backend`, for what a model was patched with: `use_backend` goes before it."""
    token = _preferred.set(None if name is None else _known(name, "backend="))
    try:
        yield
    finally:
        _preferred.reset(token)


def wanted() -> str:
    """What the user wants now: the name of a backend, "auto" or "framework"."""
    found: str = _wanted()
    return found


def _known(name: str, where: str) -> str:
    if name not in NAMES:
        raise OptionError(
            f"{where} got {name!r}, which is no backend.", do=f"use one of {', '.join(map(repr, NAMES))}"
        )
    return name


def _wanted() -> str:
    asked = _asked.get() or _preferred.get()
    return asked or _known(os.environ.get("SNN_EXT_BACKEND") or "auto", "SNN_EXT_BACKEND")


def backends() -> list[BackendStatus]:
    """Every backend, and why it cannot run here; compiles a kernel to find out."""
    statuses = []
    for name, backend in BACKENDS.items():
        start = time.perf_counter()
        reason = backend.probe() or ""
        seconds = time.perf_counter() - start
        statuses.append(BackendStatus(name, not reason, reason, backend.fix if reason else "", seconds))
    return statuses


def choose(
    what: Call | Dynamics,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Choice:
    """Which backend would run a call, or a neuron on inputs of a type; runs and compiles nothing.

    Raises:
        BackendUnavailableError: the backend asked for by name cannot.
    """
    if isinstance(what, Dynamics):
        x = torch.empty(1, 1, 1, dtype=dtype, device="meta")
        name, better = _pick(Call(x, what), torch.device(device), planned=True)
    else:
        name, better = _pick(what, what.x.device, planned=False)
    if _wanted() != "auto":
        return Choice(name, "asked for by name")
    return Choice(name, "; ".join(f"{other}: {reason}" for other, reason in better.items()))


def _pick(call: Call, device: torch.device, *, planned: bool) -> tuple[str, dict[str, str]]:
    """The backend for a call, and why the better ones do not run it."""
    wanted = _wanted()
    if wanted == FRAMEWORK:
        return "reference", {}
    if wanted != "auto":
        reason = _reason(wanted, call, device, planned)
        if reason is not None:
            raise _error(wanted, reason, call, device)
        return wanted, {}
    better: dict[str, str] = {}
    for name in order(device):
        reason = _reason(name, call, device, planned)
        if reason is None:
            return name, better
        better[name] = reason
    raise _error("auto", "no backend can", call, device)


def _reason(name: str, call: Call, device: torch.device, planned: bool) -> str | None:
    """Why a backend does not run this, or None."""
    if not planned and (reason := candidates.special(name, call)) is not None:
        return reason
    backend = BACKENDS[name]
    return backend.refusal(call, device) or backend.unavailable()


def _error(name: str, reason: str, call: Call, device: torch.device) -> BackendUnavailableError:
    others = [
        f"{other}: {_reason(other, call, device, planned=True) or 'can'}"
        for other in order(device)
        if other != name
    ]
    fix = BACKENDS[name].fix if name in BACKENDS and BACKENDS[name].unavailable() else ""
    return BackendUnavailableError(
        f"the backend {name!r} was asked for and cannot run this neuron.",
        why="\n       ".join([f"{name}: {reason}", *others]),
        do=f"{fix}; or use_backend('auto')" if fix else "use_backend('auto')",
    )


def run(call: Call) -> Result:
    """Run a neuron over a whole sequence on the backend that was asked for, or on the fastest that works.

    Raises:
        BackendUnavailableError: the backend asked for by name cannot run it.
        OptionError: x has no time or batch dimension, T = 0, or a parameter does not broadcast.
    """
    x = call.x
    if x.ndim < 2 or x.shape[0] == 0:
        raise OptionError(
            f"a neuron needs an input [T, B, *] with T >= 1, got {list(x.shape)}.",
            do="stack the steps first: x = torch.stack(steps)",
        )
    if torch.compiler.is_compiling():
        return _traced(call)
    name, better = _pick(call, x.device, planned=False)
    for other, reason in better.items():
        _log_once(other, reason)
    try:
        return _run(name, call)
    except BackendUnavailableError as error:
        if _wanted() != "auto" or BACKENDS[name].unavailable() is None:
            raise
        _log_once(name, error.why)
    return run(call)  # what failed is unavailable from now on


def _traced(call: Call) -> Result:
    """Within torch.compile: the equations, which it fuses itself, or the operator of a backend."""
    name = _wanted()
    return BACKENDS["reference" if name == "auto" else name].traced(call)


def _log_once(name: str, reason: str) -> None:
    """What this machine lacks is a warning, what a neuron has of its own is not."""
    if (name, reason) not in _logged:
        _logged.add((name, reason))
        level = logging.WARNING if BACKENDS[name].unavailable() else logging.INFO
        _LOG.log(level, "neurons do not run on the backend %r: %s", name, reason)


def _run(name: str, call: Call) -> Result:
    if not torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        return BACKENDS[name].run(call)
    with torch.profiler.record_function(f"snn_ext::neuron[{name}]"):  # no operators of torch are called
        return BACKENDS[name].run(call)
