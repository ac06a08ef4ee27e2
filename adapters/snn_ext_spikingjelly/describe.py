"""Describe SpikingJelly's neurons as data."""

from __future__ import annotations

import inspect
import types
from dataclasses import replace
from typing import Any

from spikingjelly.activation_based import base, layer, neuron, surrogate
from torch import nn

from snn_ext import Dynamics, Leak, NeuronSpec, NormSpec, Time, original_class
from snn_ext.surrogates import ATan, PiecewiseQuadratic, Rectangle, Sigmoid, Surrogate

__all__ = [
    "calls_steps",
    "current_dynamics",
    "describe",
    "describe_norm",
    "dynamics",
    "equations",
    "merges_time",
    "recorded_dynamics",
]

_PACKAGE = "spikingjelly.activation_based.neuron"
_STEPS = ("single_step_forward", "multi_step_forward")
_ASKS = {"functional_forward", "materialize_states"}
_EQUATIONS = ("materialize_states", "multi_step_functional_forward", "single_step_functional_forward")
_FUSED = (ATan, PiecewiseQuadratic, Sigmoid)  # of those we know; the framework runs others in a loop
_ATAN = ATan()  # made once: torch.compile cannot trace the making
_CALLS = ("forward", "multi_step_forward", "single_step_forward")


def describe(module: nn.Module, root: nn.Module) -> NeuronSpec | None:
    """The spec of a neuron, with the reason where it cannot be patched; None for other modules."""
    if not _is_neuron(module):
        return None
    reason = _no_start(module)
    if reason:
        return NeuronSpec(_time(module, root), threshold=None, unsupported={"*": reason})
    return _spec(module, _time(module, root))


def _spec(module: Any, time: Time) -> NeuronSpec:
    threshold = getattr(module, "v_threshold", None)
    exact = dynamics(module)
    described = exact is not None and _only_adds(module)
    unsupported = {} if described else {"mpbn": "its step is not that of an IF, LIF or PLIF node"}
    bump = _surrogate(getattr(module, "surrogate_function", None))
    return NeuronSpec(
        time=time,
        rest=float(module.get_reset_value("v")),
        threshold=float(threshold) if isinstance(threshold, int | float) else None,
        dynamics=replace(exact, surrogate=bump) if exact and bump and not _wrapped(module) else None,
        own_step={"cuda": "SpikingJelly's own fused kernel"} if isinstance(bump, _FUSED) else {},
        unsupported=unsupported,
    )


def _wrapped(module: nn.Module) -> bool:
    """Whether a user's class does something around the framework's step."""
    return _overrides(original_class(module), _CALLS)


def _only_adds(module: nn.Module) -> bool:
    """Whether everything a user's class puts around the framework's step ends in calling it."""
    mro = original_class(module).__mro__
    for i, cls in enumerate(mro):
        if cls in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
            break
        for name in vars(cls).keys() & set(_CALLS):
            code = getattr(inspect.unwrap(vars(cls)[name]), "__code__", None)
            names = _names(code) if code else set()
            if name not in names or not names & {"super", *(parent.__name__ for parent in mro[i + 1 :])}:
                return False
    return True


def _overrides(kind: type, names: tuple[str, ...]) -> bool:
    """Whether a class below IF, LIF and PLIF defines one of these methods."""
    for cls in kind.__mro__:
        if cls in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode):
            return False
        if not vars(cls).keys().isdisjoint(names):
            return True
    return False


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
    for name in ("forward", *_STEPS):  # both modes: users switch after patching
        if not _asks_for_state(original_class(module).__mro__, name):
            return f"its {name}() sets the membrane itself and never asks for an initial state"
    return None


def _asks_for_state(mro: tuple[type, ...], name: str) -> bool:
    """Whether the method a class with this MRO calls `name` ends in `materialize_states`, by the names
    in its code: it calls that itself, or the parent's method, or a step that does."""
    where = next((i for i, cls in enumerate(mro) if name in vars(cls)), None)
    if where is None:
        return False
    code = getattr(inspect.unwrap(vars(mro[where])[name]), "__code__", None)
    names = _names(code) if code else set()
    if names & _ASKS:
        return True
    if name in names and names & {"super", *(cls.__name__ for cls in mro[where + 1 :])}:
        return _asks_for_state(mro[where + 1 :], name)
    return any(_asks_for_state(mro, step) for step in _STEPS if step in names and step != name)


def _names(code: types.CodeType) -> set[str]:
    """Names used by code and by the comprehensions in it (which older Pythons compile apart)."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def _online(module: nn.Module) -> bool:
    return any(cls.__module__ == f"{_PACKAGE}.online_learning" for cls in type(module).__mro__)


def describe_norm(module: Any, root: nn.Module) -> NormSpec:
    """The spec of a batch norm: the framework's own, torch's inside its containers, or torch's in a model
    that runs step by step."""
    kind, time = original_class(module), _time(module, root)
    own = kind in (layer.BatchNorm1d, layer.BatchNorm2d, layer.BatchNorm3d)
    stepped = any(calls_steps(container) for container in _around(module, root))
    reason = None
    if not own and not kind.__module__.startswith("torch."):
        reason = f"{kind.__name__} is not a plain batch norm"
    elif any(type(container).__name__.startswith("TLast") for container in _around(module, root)):
        reason = "time is the last dimension in the container around it"
    elif stepped and time is Time.MERGED:
        reason = "one container around it folds time into the batch, another calls it step by step"
    elif stepped or (not own and time is not Time.MERGED):
        time = Time.PER_CALL
        if not stepped and any(
            getattr(m, "step_mode", "s") == "m" for m in root.modules() if isinstance(m, base.MemoryModule)
        ):
            reason = (
                "it is torch's own in a multi-step model: whether it sees steps or [T*B, ...] is not known"
            )
    unsupported = {"*": reason} if reason else {}
    return NormSpec(time, module.num_features, counts=stepped, unsupported=unsupported)


def _around(module: nn.Module, root: nn.Module) -> list[nn.Module]:
    """The framework's containers that hold a module; not along one path: a shared module has several."""
    kinds = (*_MERGING, *_STEPPING, layer.StepModeContainer)
    return [c for c in root.modules() if isinstance(c, kinds) and any(m is module for m in c.modules())]


def _time(module: nn.Module, root: nn.Module) -> Time:
    return Time.MERGED if any(map(merges_time, _around(module, root))) else _mode(module)


_MERGING = (layer.SeqToANNContainer, layer.TLastSeqToANNContainer)
_STEPPING = (layer.MultiStepContainer, layer.TLastMultiStepContainer)


def merges_time(container: nn.Module) -> bool:
    """Whether modules in this container see [T*B, ...]."""
    if isinstance(container, layer.StepModeContainer):
        return container.step_mode == "m" and not container.stateful
    return isinstance(container, _MERGING)


def calls_steps(container: nn.Module) -> bool:
    """Whether modules in this container are called T times for one call of it."""
    if isinstance(container, layer.StepModeContainer):
        return container.step_mode == "m" and bool(container.stateful)
    return isinstance(container, _STEPPING)


def _mode(module: nn.Module) -> Time:
    return Time.LEADING if getattr(module, "step_mode", "m") == "m" else Time.PER_CALL


def dynamics(module: Any) -> Dynamics | None:
    """`equations` of IF, LIF and PLIF nodes; None for others and for subclasses with their own step."""
    kind = original_class(module)
    step = getattr(kind, "single_step_functional_forward", None)
    if _overrides(kind, _EQUATIONS) or step not in _STEPS_OF or not isinstance(module.v_threshold, float):
        return None
    return equations(module)


def equations(module: Any, surrogate: Surrogate = _ATAN) -> Dynamics:
    """What an IF, LIF or PLIF node computes as it is now, in the framework's own order of operations (equal
    to the last bit), a learnable decay with its gradient; `surrogate` where it is not the node that fires."""
    return Dynamics(
        leak=_leak(module),
        threshold=module.v_threshold,
        rest=module.v_reset or 0.0,
        reset="soft" if module.v_reset is None else "hard",
        fires_at_equality=True,
        detach_reset=module.detach_reset,
        surrogate=surrogate,
    )


def recorded_dynamics(module: Any) -> Dynamics | None:
    """`equations` of a node whose calls are nothing but its steps; its surrogate may be any."""
    return None if _wrapped(module) else dynamics(module)


def current_dynamics(module: Any) -> Dynamics | None:
    """`equations` with the surrogate of now, for a node whose class is known to have them; None where the
    kernels would not compute the same."""
    bump = _surrogate(module.surrogate_function)
    plain = bump is not None and isinstance(module.v_threshold, float) and module._neuron_precision is None
    return equations(module, bump) if plain and bump is not None else None


_STEPS_OF = {
    kind.single_step_functional_forward for kind in (neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode)
}


def _leak(module: Any) -> Leak | None:
    if isinstance(module, neuron.LIFNode):
        return Leak(module.tau, input=module.decay_input)
    if isinstance(module, neuron.ParametricLIFNode):
        return Leak(module.w.sigmoid(), divide=False, input=module.decay_input)
    return None


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
