"""The arguments of a launch as a C structure: what src/portable.cuh declares, flat."""

from __future__ import annotations

import ctypes

__all__ = ["Arguments", "Parameter"]

_POINTER, _INT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class Parameter(ctypes.Structure):
    """A parameter of neuron n: data[(n / inner) % period], or `value` for all."""

    _fields_ = [("data", _POINTER), ("inner", _INT), ("period", _INT), ("value", _REAL)]


def _steps(*names: str) -> list[tuple[str, type]]:
    """Tensors [T, N], whose steps are `<name>_step` elements apart."""
    return [field for name in names for field in ((name, _POINTER), (f"{name}_step", _INT))]


def _all(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


class Arguments(ctypes.Structure):
    """See src/portable.cuh."""

    _fields_ = [
        *_all(_INT, "steps", "neurons", "threads", "resume"),
        *_steps("x", "spikes", "h", "membranes"),
        *_all(_POINTER, "membrane", "v"),
        ("v0", Parameter),
        ("has_v0", _INT),
        *_all(Parameter, "decay", "gain", "offset", "threshold", "folded", "sign", "scale", "shift"),
        *_all(_INT, "scale_step", "shift_step"),
        *_all(_REAL, "rest", "surrogate_a", "surrogate_b"),
        *_steps("grad_spikes", "grad_membranes"),
        ("grad_membrane", _POINTER),
        *_steps("grad_x"),
        *_all(_POINTER, "grad_v", "grad_decay", "grad_threshold"),
        *_all(_INT, "shared", "unscaled"),
    ]
