"""Describe snnTorch's neurons as data."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_ext import Dynamics, NeuronSpec, NormSpec, OptionError, Time, original_class
from snn_ext.surrogates import ATan, FastSigmoid, Sigmoid, Surrogate

__all__ = ["describe", "describe_norm", "equations", "equations_with"]

_ATAN = ATan()
_SUPPORTED = (snn.Leaky, snn.Synaptic, snn.Lapicque, snn.RLeaky, snn.RSynaptic)
# By name: not every release has all of them.
_REFUSED = {
    "DeltaLeaky": "its state is a pair of membranes, and it spikes on their difference",
    "Alpha": "its membrane is recomputed from its currents at every step: V0 would have no effect",
    "SLSTM": "its membrane is the hidden state of an LSTM cell",
    "SConv2dLSTM": "its membrane is the hidden state of an LSTM cell",
    "StateLeaky": "it convolves whole sequences, without a reset and without an initial membrane",
    "LinearLeaky": "it convolves whole sequences, without a reset and without an initial membrane",
    "LeakyParallel": "it is a recurrent layer with inputs of its own, without an initial membrane",
    "AssociativeLeaky": "it is a state-space model without a membrane",
}


def describe(module: nn.Module) -> NeuronSpec | None:
    """The spec of a neuron, with the reason where it cannot be patched; None for other modules."""
    for name, reason in _REFUSED.items():
        kind = getattr(snn, name, None)
        if kind is not None and isinstance(module, kind):
            return NeuronSpec(Time.PER_CALL, threshold=None, unsupported={"*": reason})
    if not isinstance(module, snn.SpikingNeuron):
        return None
    if not isinstance(module, _SUPPORTED) or not isinstance(module._buffers.get("mem"), Tensor):
        reason = "this adapter does not know how its membrane is reset"
        return NeuronSpec(Time.PER_CALL, threshold=None, unsupported={"*": reason})
    if _own_forward(module):
        reason = "its forward never calls the framework's own, so that V0 could not enter"
        return NeuronSpec(Time.PER_CALL, threshold=None, unsupported={"*": reason})
    threshold = module.threshold.detach().clone()
    return NeuronSpec(
        time=Time.PER_CALL,
        threshold=threshold if threshold.ndim or threshold.is_meta else float(threshold),
        dynamics=None if threshold.is_meta else _dynamics(module),
        own_step=_VALUELESS if threshold.is_meta else _own_step(module),
        unsupported=_unsupported(module),
    )


def describe_norm(module: Any) -> NormSpec:
    """torch's batch norms, called once per step in an snnTorch network."""
    kind = original_class(module)
    plain = kind.__module__.startswith("torch.")
    reason = {} if plain else {"*": f"{kind.__name__} is not one of torch's own batch norms"}
    return NormSpec(Time.PER_CALL, module.num_features, unsupported=reason)


def _own_forward(module: nn.Module) -> bool:
    """Whether a user's class takes the step itself, instead of calling the framework's forward."""
    for cls in original_class(module).__mro__:
        if cls in _SUPPORTED:
            return False
        code = getattr(vars(cls).get("forward"), "__code__", None)
        if code is not None and "forward" not in code.co_names:
            return True
    return False


_CHARGES = ("_base_state_function", "_base_state_reset_zero", "_base_sub", "_base_zero", "_base_int")
_STEP = ("forward", "fire", "mem_reset", *_CHARGES)


def _overridden(module: nn.Module) -> tuple[str, ...]:
    """Parts of the framework's step that a user's class replaces."""
    return _replaced(original_class(module))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=256)
def _replaced(kind: type) -> tuple[str, ...]:
    base = next(cls for cls in _SUPPORTED if issubclass(kind, cls))
    return tuple(name for name in _STEP if getattr(kind, name, None) is not getattr(base, name, None))


def _unsupported(module: Any) -> dict[str, str]:
    """Methods that this neuron cannot take, and why."""
    reasons = {"mpbn": _no_membrane_norm(module)}
    charges = [name for name in _overridden(module) if name in _CHARGES]
    if charges:
        missed = f"its class overrides {', '.join(charges)} of snnTorch's step: a norm could miss its input"
        reasons |= {"bntt": missed, "tebn": missed}
    return {method: reason for method, reason in reasons.items() if reason}


_VALUELESS = {"*": "on the meta device its constants have no values that could be described"}


def _own_step(module: Any) -> dict[str, str]:
    """Where the kernels do not take the step."""
    reasons = {"mpbn": "its delayed reset needs the spikes that were fired, step by step"}
    if isinstance(module, snn.Lapicque) and (module.time_step != 1 or bool((module.R != 1).any())):
        reasons["*"] = "it scales its input in an order that the kernels do not keep to the last bit"
    return reasons


def _no_membrane_norm(module: Any) -> str | None:
    """Why MPBN cannot take over the firing decision."""
    if not isinstance(module, snn.Leaky | snn.Lapicque):
        return "MPBN is defined for neurons with one membrane: Leaky and Lapicque"
    if _overridden(module):
        return f"its class overrides {', '.join(_overridden(module))} of snnTorch's step"
    if module.inhibition or module.state_quant:
        return "inhibition and state_quant change the firing decision themselves"
    return None


def _dynamics(module: Any) -> Dynamics | None:
    """`equations` without gradients, and None where something else acts on the step."""
    graded = bool((module.graded_spikes_factor != 1).any())
    if graded or float(module.reset_mechanism_val) > 2:
        return None
    found = equations(module)
    if found is None:
        return None
    return replace(
        found, decay=_value(found.decay), gain=_value(found.gain), threshold=_value(found.threshold)
    )


def _value(p: float | Tensor) -> float | Tensor:
    return p.detach() if isinstance(p, Tensor) else p


def equations(module: Any) -> Dynamics | None:
    """What Leaky, and Lapicque without reset to zero, compute as they are now, learnable parts with their
    gradients; None for others. All but the factor of graded spikes."""
    bump = _surrogate(module.spike_grad)
    return None if bump is None else equations_with(module, bump)


def equations_with(module: Any, bump: Surrogate = _ATAN) -> Dynamics | None:
    """`equations` with a surrogate that is given, where it is not the neuron's own that matters."""
    plain = not (module.inhibition or module.state_quant)
    if not plain or not getattr(module, "reset_delay", True):
        return None
    # What runs was chosen when the neuron was built; `reset_mechanism` may have changed since.
    charge = getattr(module.state_function, "__func__", None)
    if charge is None or _overridden(module):
        return None
    resets = {"_base_sub": "soft", "_base_zero": "hard", "_base_int": "none"}
    if charge in (snn.Leaky._base_sub, snn.Leaky._base_zero, snn.Leaky._base_int):
        beta = _number(module.beta)
        decay = beta.clamp(0, 1) if isinstance(beta, Tensor) else min(max(beta, 0.0), 1.0)
        gain: float | Tensor = 1.0
    elif charge in (snn.Lapicque._base_sub, snn.Lapicque._base_int):
        step = module.time_step / (module.R * module.C)
        decay, gain = _number(1 - step), _number(step * module.R)
    else:
        return None
    return Dynamics(
        decay=decay,
        gain=gain,
        threshold=_number(module.threshold),
        reset=resets[charge.__name__],  # type: ignore[arg-type]
        timing="delayed",
        fires_at_equality=False,
        detach_reset=True,
        surrogate=bump,
    )


def _number(p: Tensor) -> float | Tensor:
    """A number where that is all it is: kernels take it faster. (A device would have to be waited for.)"""
    plain = p.ndim == 0 and not p.requires_grad and p.device.type == "cpu" and p.dtype is torch.float32
    return p.item() if plain else p


@functools.lru_cache(maxsize=256)
def _surrogate(function: Any) -> Surrogate | None:
    """snnTorch's surrogates are closures; their names and captured values tell which they are."""
    qualified = getattr(function, "__qualname__", "")
    if getattr(function, "__module__", "") != "snntorch.surrogate":
        return None
    kinds: dict[str, tuple[type[Surrogate], str]] = {
        "atan.<locals>.inner": (ATan, "alpha"),
        "fast_sigmoid.<locals>.inner": (FastSigmoid, "slope"),
        "sigmoid.<locals>.inner": (Sigmoid, "slope"),
    }
    if qualified not in kinds:
        return None
    kind, name = kinds[qualified]
    try:
        return kind(float(inspect.getclosurevars(function).nonlocals[name]))
    except OptionError:  # flat or negative: legal in snnTorch, but not one of ours
        return None
