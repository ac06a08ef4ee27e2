"""A spiking neuron described as data: what adapters say about a module, and what the equations read."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from snn_ext.dynamics.surrogates import ATan, Surrogate
from snn_ext.errors import OptionError

__all__ = ["Dynamics", "Leak", "NeuronSpec", "NormSpec", "Time"]


class Time(enum.Enum):
    """Where time is in the tensors that a module sees."""

    LEADING = "leading"
    """One call per sequence, tensors [T, B, *]."""
    MERGED = "merged"
    """One call per sequence, time folded into the batch: [T*B, *]."""
    PER_CALL = "per call"
    """One call per time step, tensors [B, *]; the module keeps its state between calls."""

    def features(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample at one step, given the shape of a whole input."""
        return tuple(shape[2:] if self is Time.LEADING else shape[1:])


@dataclass(frozen=True)
class Leak:
    """A charge written as a leak towards rest, in the order of operations in which it is computed::

        input=True    H[t] = V + (x - (V - rest)) / tau         (divide=True, value = tau)
                      H[t] = V + (x - (V - rest)) * rate        (divide=False, value = rate)
        input=False   H[t] = V - (V - rest) / tau + x           (or * rate)

    In real numbers that is a `Dynamics` with decay = 1 - rate and gain = rate or 1; in floating point
    a framework that computes it like this is met to the last bit only by computing it like this too.
    """

    value: float | Tensor
    divide: bool = True
    input: bool = True

    @property
    def rate(self) -> float | Tensor:
        """The share of the distance to rest that is lost per step."""
        return 1.0 / self.value if self.divide else self.value


@dataclass(frozen=True)
class Dynamics:
    """The equations of a leaky or perfect integrate-and-fire neuron.

    With membrane V, input x, threshold theta and comparison ``>`` or ``>=`` (`fires_at_equality`)::

        charge   H[t] = decay * V[t-1] + gain * x[t] + (1 - decay) * rest
        fire     S[t] = 1[H[t] > theta]
        reset    hard: V[t] = H[t] * (1 - S[t]) + rest * S[t]
                 soft: V[t] = H[t] - theta * S[t]
                 none: V[t] = H[t]

    ``timing="delayed"`` (snnTorch) carries H itself and applies the reset of step t - 1 while
    charging step t, with R[t] = 1[H[t-1] > theta]: hard resets before the decay,
    ``H[t] = decay * (H[t-1] * (1 - R) + rest * R) + gain * x``; soft after it,
    ``H[t] = decay * H[t-1] + gain * x - theta * R``. The membrane a sequence starts from was not
    charged by an input, so it never causes a reset, whatever its value.

    Args:
        decay: lambda, the share of the membrane kept per step; 1 for IF. Float or tensor
            broadcastable to the features (learnable: pass the parameter).
        gain: factor of the input.
        leak: the charge in another order of operations; decay and gain then follow from it.
        threshold: theta, in membrane units. Float or tensor.
        rest: potential the membrane decays to and a hard reset returns to.
        reset: ``"hard"``, ``"soft"`` or ``"none"``.
        timing: ``"immediate"`` (same step) or ``"delayed"`` (next step).
        fires_at_equality: True for ``>=``, False for ``>``.
        detach_reset: no gradient flows through S (or R) in the reset.
        surrogate: derivative used for S in the backward pass.

    Raises:
        OptionError: unknown `reset` or `timing`.
    """

    decay: float | Tensor = 1.0
    gain: float | Tensor = 1.0
    leak: Leak | None = field(default=None, kw_only=True)
    threshold: float | Tensor = 1.0
    rest: float = 0.0
    reset: Literal["hard", "soft", "none"] = "hard"
    timing: Literal["immediate", "delayed"] = "immediate"
    fires_at_equality: bool = True
    detach_reset: bool = False
    surrogate: Surrogate = field(default_factory=ATan)

    def __post_init__(self) -> None:
        if self.leak is not None:
            object.__setattr__(self, "decay", 1.0 - self.leak.rate)
            object.__setattr__(self, "gain", self.leak.rate if self.leak.input else 1.0)
        for name, allowed in (
            ("reset", ("hard", "soft", "none")),
            ("timing", ("immediate", "delayed")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise OptionError(
                    f"Dynamics({name}={value!r}) is not a known {name}.",
                    do=f"use one of {', '.join(map(repr, allowed))}",
                )


@dataclass(frozen=True)
class _Spec:
    """What neurons and norms have in common; see the subclasses."""

    time: Time
    unsupported: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def refusal(self, method: str) -> str | None:
        """Why `method` cannot be put into this site, or None if it can."""
        return self.unsupported.get(method) or self.unsupported.get("*")


@dataclass(frozen=True)
class NormSpec(_Spec):
    """What an adapter says about one batch norm that BNTT or TEBN can be put into.

    Args:
        time: layout of the tensors the module sees.
        num_features: C.
        counts: called step by step, it knows its step by itself; otherwise the neuron after it must tell.
        unsupported: method name -> reason why it cannot work here (key ``"*"``: no method can).
    """

    num_features: int
    counts: bool = False


@dataclass(frozen=True)
class NeuronSpec(_Spec):
    """What an adapter says about one neuron module; pure data, nothing is changed by describing.

    Args:
        time: layout of the tensors the module sees.
        rest: membrane the framework starts every sequence from; the neutral V0.
        threshold: firing threshold in membrane units, for ``IMP(init="half")``; None if it has none.
        dynamics: the exact equations, or None where `Dynamics` cannot express them. Methods that only
            delegate to the framework's own step (IMP) do without.
        own_step: where the framework's own step is taken instead of snn-ext's kernels: a method name, a
            device type (float32 only), or ``"*"`` -> the reason.
        unsupported: method name -> reason why it cannot work here (key ``"*"``: no method can).
    """

    rest: float = 0.0
    threshold: float | Tensor | None = 1.0
    dynamics: Dynamics | None = None
    own_step: Mapping[str, str] = field(default_factory=dict)
