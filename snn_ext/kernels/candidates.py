"""The backends, in the order in which they are tried, and what each can run."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_ext.kernels import cupy_backend, host_backend, reference_backend, spec
from snn_ext.kernels.arguments import Call, Result

__all__ = ["BACKENDS", "Backend", "order", "special"]


class Backend(NamedTuple):
    """One backend, as the registry sees it."""

    run: Callable[[Call], Result]
    traced: Callable[[Call], Result]
    """The same, within torch.compile."""
    refusal: Callable[[Call, torch.device], str | None]
    """Why it cannot run this call, on tensors of this device."""
    unavailable: Callable[[], str | None]
    """Why it cannot run on this machine; looks around, compiles nothing."""
    probe: Callable[[], str | None]
    """The same, and compiles a kernel."""
    fix: str


def _refusal(kind: str) -> Callable[[Call, torch.device], str | None]:
    def refusal(call: Call, device: torch.device) -> str | None:
        if device.type != kind:
            return f"it is for {kind} tensors, these are on {device.type}"
        reason = spec.refusal(call.dynamics, call.x.dtype)
        if reason is None and torch.is_grad_enabled():
            return spec.refusal_of_gradients(call)
        return reason

    return refusal


def _nothing(*_: object) -> None:
    return None


def _run_torch(call: Call) -> Result:
    module: Any = importlib.import_module("snn_ext.kernels.torch_backend")
    result: Result = module.run(call)
    return result


def _no_torch() -> str | None:
    found = importlib.util.find_spec("snn_ext.kernels.torch_backend")
    return None if found else "it is not part of this installation"


BACKENDS = {
    "cupy": Backend(
        cupy_backend.run,
        cupy_backend.traced,
        _refusal("cuda"),
        cupy_backend.unavailable,
        cupy_backend.probe,
        cupy_backend.FIX,
    ),
    "host": Backend(
        host_backend.run,
        host_backend.traced,
        _refusal("cpu"),
        host_backend.unavailable,
        host_backend.probe,
        host_backend.FIX,
    ),
    "torch": Backend(_run_torch, _run_torch, _nothing, _no_torch, _no_torch, ""),
    "reference": Backend(reference_backend.run, reference_backend.run, _nothing, _nothing, _nothing, ""),
}


def order(device: torch.device) -> tuple[str, ...]:
    """The backends to try on tensors of a device, the fastest first."""
    fused = {"cuda": ("cupy",), "cpu": ("host",)}.get(device.type, ())
    return (*fused, "torch", "reference")


def special(name: str, call: Call) -> str | None:
    """Why only the reference can run a call that torch is tracing or transforming, or None."""
    if name == "reference":
        return None
    if torch._C._are_functorch_transforms_active():
        return "functorch transforms need the equations themselves"
    if type(call.x) is not Tensor and type(call.x) is not torch.nn.Parameter:
        return f"{type(call.x).__name__} inputs need the equations themselves"
    return None
