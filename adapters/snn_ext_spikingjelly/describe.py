"""Describe SpikingJelly's neurons as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spikingjelly.activation_based import base, layer, neuron, surrogate
from torch import nn

from snn_ext import Dynamics, NeuronSpec, Time, original_class
from snn_ext.surrogates import ATan, PiecewiseQuadratic, Rectangle, Sigmoid, Surrogate
from snn_ext_spikingjelly.compat import missing_feature

__all__ = ["describe", "dynamics"]

_PACKAGE = "spikingjelly.activation_based.neuron"
# Whoever runs a step without one of these never asks for an initial state.
_DELEGATES = {
    "forward",
    "functional_forward",
    "materialize_states",
    "multi_step_forward",
    "single_step_forward",
    "super",
}


def describe(module: nn.Module, path: str, root: nn.Module) -> NeuronSpec | None:
    """The spec of a neuron, with the reason where it cannot be patched; None for other modules."""
    if not _is_neuron(module):
        return None
    reason = missing_feature() or _no_start(module)
    if reason:
        return NeuronSpec(_time(module, path, root), threshold=None, unsupported={"*": reason})
    return _spec(module, _time(module, path, root))


def _spec(module: Any, time: Time) -> NeuronSpec:
    threshold = getattr(module, "v_threshold", None)
    equations = dynamics(module)
    unsupported = {} if equations else {"mpbn": "its step is not that of an IF, LIF or PLIF node"}
    bump = _surrogate(getattr(module, "surrogate_function", None))
    return NeuronSpec(
        time=time,
        rest=float(module.get_reset_value("v")),
        threshold=float(threshold) if isinstance(threshold, int | float) else None,
        dynamics=replace(equations, surrogate=bump) if equations and bump else None,
        unsupported=unsupported,
    )


def _is_neuron(module: nn.Module) -> bool:
    if isinstance(module, base.MemoryModule) and "v" in module._memories:
        return True
    return any(cls.__module__.startswith(_PACKAGE) for cls in type(module).__mro__)


def _no_start(module: Any) -> str | None:
    """Why V0 would have no effect or no gradient in this neuron."""
    memories = list(getattr(module, "_memories", {}))
    if not memories or memories[0] != "v":
        return "it keeps no membrane potential v between steps"
    if not isinstance(module.get_reset_value("v"), int | float):
        return "its reset value is not a number"
    if _online(module):
        return "it detaches the membrane at every step in training, so V0 would get no gradient"
    step = {"s": "single_step_forward", "m": "multi_step_forward"}[module.step_mode]
    for name in ("forward", step):
        function = getattr(type(module), name)
        code = getattr(function, "__code__", None)
        if code is not None and _DELEGATES.isdisjoint(code.co_names):
            return f"its {name}() sets the membrane itself and never asks for an initial state"
    return None


def _online(module: nn.Module) -> bool:
    kinds = [getattr(neuron, name, None) for name in ("OTTTLIFNode", "SLTTLIFNode")]
    return isinstance(module, tuple(kind for kind in kinds if kind))


def _time(module: nn.Module, path: str, root: nn.Module) -> Time:
    above = root
    for name in path.split(".")[:-1] if path else []:
        if isinstance(above, layer.SeqToANNContainer):
            return Time.MERGED
        above = getattr(above, name)
    if isinstance(above, layer.SeqToANNContainer):
        return Time.MERGED
    return Time.LEADING if getattr(module, "step_mode", "m") == "m" else Time.PER_CALL


def dynamics(module: Any) -> Dynamics | None:
    """The exact equations of IF, LIF and PLIF nodes as they are now, a learnable decay with its
    gradient, and all but the surrogate; None for others and for subclasses with a step of their own."""
    decay_and_gain = _decay_and_gain(module)
    if decay_and_gain is None or not isinstance(module.v_threshold, float):
        return None
    return Dynamics(
        decay=decay_and_gain[0],
        gain=decay_and_gain[1],
        threshold=module.v_threshold,
        rest=module.v_reset or 0.0,
        reset="soft" if module.v_reset is None else "hard",
        fires_at_equality=True,
        detach_reset=module.detach_reset,
    )


def _decay_and_gain(module: Any) -> tuple[Any, Any] | None:
    kind = original_class(module)
    step = getattr(kind, "single_step_functional_forward", None)
    if step is neuron.IFNode.single_step_functional_forward:
        return 1.0, 1.0
    if step is neuron.LIFNode.single_step_functional_forward:
        leak = 1.0 / module.tau
    elif step is neuron.ParametricLIFNode.single_step_functional_forward:
        leak = module.w.sigmoid()
    else:
        return None
    return 1.0 - leak, leak if module.decay_input else 1.0


def _surrogate(function: Any) -> Surrogate | None:
    known: dict[type, type[Surrogate]] = {
        surrogate.ATan: ATan,
        surrogate.Sigmoid: Sigmoid,
        surrogate.PiecewiseQuadratic: PiecewiseQuadratic,
        surrogate.Rect: Rectangle,
    }
    kind = known.get(type(function))
    alpha = getattr(function, "alpha", None)
    if kind is None or not function.spiking or not isinstance(alpha, int | float):
        return None
    return kind(float(alpha))
