"""Which kernel a neuron needs: what is fixed when a kernel is compiled, and why none fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snn_ext.dynamics.description import Dynamics
from snn_ext.dynamics.surrogates import (
    ATan,
    FastSigmoid,
    PiecewiseQuadratic,
    Rectangle,
    Sigmoid,
    Surrogate,
)
from snn_ext.kernels.arguments import Call

__all__ = ["Equations", "Spec", "Variant", "equations", "numeric", "refusal", "refusal_of_gradients", "spec"]

_IO = {
    torch.float32: "float",
    torch.float16: "snn::Half",
    torch.bfloat16: "snn::BFloat",
    torch.float64: "double",
}
_SURROGATES: dict[type[Surrogate], str] = {
    ATan: "ATAN",
    Sigmoid: "SIGMOID",
    PiecewiseQuadratic: "PIECEWISE_QUADRATIC",
    FastSigmoid: "FAST_SIGMOID",
    Rectangle: "RECTANGLE",
}


@dataclass(frozen=True)
class Spec:
    """What a kernel is compiled for; the template arguments of src/neuron.cuh, in their order."""

    charge: str = "PLAIN"
    reset: str = "HARD"
    delayed: bool = False
    equality: bool = True
    detach: bool = False
    surrogate: str = "ATAN"
    folded: bool = False
    affine: bool = False
    learn: bool = False
    smooth: bool = False
    unrolled: int = 0
    io: str = "float"

    @property
    def template(self) -> str:
        """The C++ template arguments."""
        return ",".join(_argument(f.name, getattr(self, f.name)) for f in fields(self))

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs."""
        return next(dtype for dtype, name in _IO.items() if name == self.io)

    @classmethod
    def parse(cls, template: str) -> Spec:
        """The inverse of `template`."""
        kinds: dict[str, Callable[[str], Any]] = {
            "bool": lambda text: text == "true",
            "int": int,
            "str": lambda text: text if text in _IO.values() else text.removeprefix("snn::"),
        }
        return cls(*(kinds[str(f.type)](t) for f, t in zip(fields(cls), template.split(","), strict=True)))


def _argument(field: str, value: Any) -> str:
    if isinstance(value, str) and field != "io":
        return f"snn::{value}"
    return str(value).lower() if isinstance(value, bool) else str(value)


class Equations(NamedTuple):
    """The numbers of a neuron, as the kernels read them: h = decay * v + gain * x + offset, or a leak."""

    decay: float | Tensor  # or the value of the leak
    threshold: float | Tensor
    gain: float | Tensor
    offset: float | Tensor
    rest: float
    surrogate: tuple[float, float]  # a and b of src/surrogates.cuh


def refusal(dynamics: Dynamics, dtype: torch.dtype) -> str | None:
    """Why no fused kernel computes this neuron on inputs of this type, or None."""
    d = dynamics
    if type(d.surrogate) not in _SURROGATES:
        return f"the kernels do not know the surrogate {type(d.surrogate).__name__}"
    if dtype not in _IO:
        return f"the kernels do not know {dtype}"
    if d.leak is None and isinstance(d.gain, Tensor) and d.gain.requires_grad:
        return "the kernels have no gradient for the gain"
    decay = d.decay if d.leak is None else d.leak.value
    state = torch.promote_types(dtype, torch.float32)
    for name, p in (("decay", decay), ("gain", d.gain), ("threshold", d.threshold)):
        if isinstance(p, Tensor) and p.ndim and torch.promote_types(p.dtype, state) != state:
            return f"a {name} of {p.dtype} makes the membrane {p.dtype} too"
    return None


def refusal_of_gradients(call: Call) -> str | None:
    """Why no fused kernel differentiates this call, or None; where gradients are recorded."""
    d = call.dynamics
    if call.folded is None and not (call.resume and call.v is not None):
        return None
    tensors = (call.x, call.v, call.v0, d.decay, d.threshold, call.scale, call.shift)
    if not any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        return None
    if call.folded is not None:
        return "the kernels have no gradient for a folded MPBN"
    if d.timing == "delayed" and not d.detach_reset:
        return "the kernels have no gradient for the decision on a carried membrane"
    return None


class Variant(NamedTuple):
    """What a call adds to its dynamics."""

    folded: bool
    affine: bool
    smooth: bool
    unrolled: int | None  # None: h is kept for the backward
    dtype: torch.dtype


def spec(d: Dynamics, variant: Variant, *, learn: bool = False) -> Spec:
    """The kernel for dynamics that `refusal` has nothing against."""
    never = d.reset == "none"
    return Spec(
        charge=_charge(d),
        reset=d.reset.upper(),
        delayed=d.timing == "delayed" and not never,
        equality=d.fires_at_equality,
        detach=d.detach_reset or never,
        surrogate=_SURROGATES[type(d.surrogate)],
        folded=variant.folded,
        affine=variant.affine,
        learn=learn,
        smooth=variant.smooth,
        unrolled=variant.unrolled or 0,
        io=_IO[variant.dtype],
    )


def numeric(d: Dynamics) -> bool:
    """Whether no number of the neuron is a tensor."""
    decay = d.decay if d.leak is None else d.leak.value
    return not (isinstance(decay, Tensor) or isinstance(d.threshold, Tensor) or isinstance(d.gain, Tensor))


def _charge(d: Dynamics) -> str:
    if d.leak is None:
        return "PLAIN"
    divides = d.leak.divide and not _power_of_two(d.leak.value)
    return f"LEAK_{'INPUT_' if d.leak.input else ''}{'DIVIDE' if divides else 'MULTIPLY'}"


def _power_of_two(value: float | Tensor) -> bool:
    """Division by it is multiplication by its inverse, to the last bit."""
    return not isinstance(value, Tensor) and math.frexp(value)[0] == 0.5


def equations(dynamics: Dynamics) -> Equations:
    """The numbers of a neuron."""
    d = dynamics
    decay, gain = d.decay, d.gain
    offset: float | Tensor = 0.0
    if d.leak is not None:
        decay, gain = d.leak.value, 1.0
        if d.leak.divide and _power_of_two(decay):
            decay = 1.0 / decay
    elif d.rest:
        with torch.no_grad():
            offset = (1 - decay) * d.rest
    return Equations(decay, d.threshold, gain, offset, float(d.rest), _constants(d.surrogate))


def _constants(surrogate: Surrogate) -> tuple[float, float]:
    alpha = surrogate.alpha
    if isinstance(surrogate, ATan):
        return alpha / 2, math.pi / 2 * alpha
    if isinstance(surrogate, PiecewiseQuadratic):
        return alpha, alpha**2
    if isinstance(surrogate, Rectangle):
        return alpha, 0.5 / alpha
    return alpha, 0.0
