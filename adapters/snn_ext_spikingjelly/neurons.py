"""What SpikingJelly's neurons become: the same class, with another first membrane, input or decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from snn_ext import TimestepError, UnsupportedSiteError
from snn_ext.functional import step
from snn_ext.methods.clock import Clock
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, NormalisedInput, NormalisedMembrane
from snn_ext.patching.sequence import carried, is_carried, mark_output, steps_behind
from snn_ext_spikingjelly.describe import equations

__all__ = ["mixins"]


class _Float32State(base.MemoryModule):  # type: ignore[misc]
    """Keeps the membrane in float32 for half inputs, and the spikes in the dtype of the input.

    Works in `materialize_states`, which every path of the framework goes through: both step modes, the
    fused kernels, `to_functional_forward` and checkpointing. `forward` and hooks are bypassed by some.
    """

    get_reset_value: Callable[[str], Any]
    _memories: dict[str, Any]
    step_mode: str
    _ext_counts = False  # steps are counted only where somebody asks
    _ext_t = -1

    def materialize_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        if self._ext_counts:
            self._count(states[0] if _goes_on(states[0], x) else None, step_mode)
        v, *others = self._framework_states(inputs, states, step_mode, x)
        if _goes_on(states[0], x):
            v = states[0].to(x.device, self._state_dtype(v, x))
        return (v.to(self._state_dtype(v, x)), *others)

    def _framework_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str, x: Tensor
    ) -> tuple[Any, ...]:
        return super().materialize_states(inputs, states, step_mode)  # type: ignore[no-any-return]

    def _count(self, v: Tensor | None, step_mode: str) -> None:
        """In step mode 's' every call is one step; in 'm' every call is counted from its first step.

        The number of steps travels with the membrane: states may be put aside and back.
        """
        self._ext_t = 0 if v is None or step_mode == "m" else self._steps_behind(v)

    def _steps_behind(self, v: Tensor) -> int:
        if is_carried(v) or self._ext_t < 0:  # or: set by hand after a reset, a start
            return steps_behind(v, type(self).__name__)
        raise TimestepError(
            "the membrane was set by hand, and cannot tell which time step it is from.",
            where=type(self).__name__,
            do="snn_ext.carried(new_v, of=node.v), or reset the node first to start a sequence from it",
        )

    def _mark(self, v: Any, steps: int) -> None:
        if self._ext_counts and isinstance(v, Tensor):
            mark_output(v, steps)

    def reset(self) -> None:
        super().reset()
        if self._ext_counts:
            self._ext_t = -1

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # .to() makes new tensors; the sequence goes on nevertheless. (The framework knows no `recurse`.)
        old = self._memories["v"]
        super()._apply(fn)
        if self._ext_counts and isinstance(old, Tensor) and is_carried(old):
            carried(self._memories["v"], of=old)
        return self

    def _state_dtype(self, v: Tensor, x: Tensor) -> torch.dtype:
        """float32 for half inputs, unless the user chose a precision with `PrecisionConfig`."""
        if getattr(self, "_neuron_precision", None) is not None or self._membrane_norm_in(x.dtype):
            return v.dtype
        return torch.promote_types(x.dtype, torch.float32)

    def _membrane_norm_in(self, dtype: torch.dtype) -> bool:
        """A framework's norm on the membrane refuses float32 when its parameters were cast to half."""
        ours = ("bntt", "tebn", "mpbn")
        norms = [m for name, m in self._modules.items() if m is not None and name not in ours]
        return any(p.dtype == dtype for norm in norms for p in norm.parameters())

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = _in_dtype_of(x, super().single_step_forward(x, *args, **kwargs))
        self._mark(self._memories["v"], self._ext_t + 1)
        return y

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = _in_dtype_of(x_seq, super().multi_step_forward(x_seq, *args, **kwargs))
        self._mark(self._memories["v"], len(x_seq))
        return y


class Functional(_Float32State):
    """For neurons with a functional step: SpikingJelly looks for this method to find out."""

    def functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        outputs, states = super().functional_forward(inputs, states, **kwargs)
        self._mark(states[0], len(inputs[0]) if self.step_mode == "m" else self._ext_t + 1)
        return tuple(_in_dtype_of(inputs[0], y) for y in outputs), states


def _goes_on(v: Any, x: Tensor) -> bool:
    """Whether `v` is the state of a sequence that this step belongs to (otherwise it starts anew)."""
    return isinstance(v, Tensor) and v.shape == x.shape


def _in_dtype_of(x: Tensor, y: Any) -> Any:
    floats = x.is_floating_point() and isinstance(y, Tensor) and y.is_floating_point()
    return y.to(x.dtype) if floats else y


class IMP(InitialPotential, _Float32State):
    """Sequences start from V0; the step stays the framework's own."""

    def _framework_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str, x: Tensor
    ) -> tuple[Any, ...]:
        v = states[0]
        if _goes_on(v, x):
            return super()._framework_states(inputs, states, step_mode, x)
        # Add to the framework's own zeros instead of expanding V0: the state stays dense, in the
        # memory format of the input, as the fused kernels and operation counters expect it.
        zeros, *others = super()._framework_states(inputs, (0.0, *states[1:]), step_mode, x)
        dtype = self._state_dtype(zeros, x)
        chosen = isinstance(v, int | float) and v != self.get_reset_value("v")  # set by the user
        start = v if chosen else self.initial_membrane(x.shape[1:], dtype)
        return (zeros.to(dtype) + start, *others)


class MPBN(NormalisedMembrane, _Float32State):
    """Decides on the normalised membrane; the step is that of `Dynamics`, with the node's surrogate."""

    surrogate_function: Callable[[Tensor], Tensor]
    v_threshold: float

    def firing_rule(self) -> FiringRule:
        return FiringRule(self.v_threshold, self.surrogate_function, fires_at_equality=True)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        if not isinstance(self.v_threshold, float):
            raise UnsupportedSiteError(
                f"{type(self).__name__} changed since it was patched.",
                why="its threshold is not a float any more, so its step cannot be described",
                do="set v_threshold to a float; a learnable one is not supported",
            )
        spikes, v = step(inputs[0], states[0], equations(self), decide=self.membrane_decision())
        return (spikes,), (v, *states[1:])

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        spikes = []
        for x in inputs[0].unbind(0):
            (s,), states = self.single_step_functional_forward((x,), states, **kwargs)
            spikes.append(s)
        return (torch.stack(spikes),), states


class Normalised(NormalisedInput, _Float32State):
    """BNTT or TEBN on the input. Whole sequences are normalised at once, steps one by one."""

    _ext_counts = True
    _ext_done = False

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        # store_v_seq runs single steps from here
        x_seq = self.input_norm.sequence(x_seq)
        return self._without_norm(super().multi_step_forward, x_seq, *args, **kwargs)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self._ext_done:  # not below: a user's class may have a step of its own
            v = self._memories["v"]
            x = self.input_norm.step(self._steps_behind(v) if _goes_on(v, x) else 0, x)
        return self._without_norm(super().single_step_forward, x, *args, **kwargs)

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> Any:
        if not self._ext_done:
            inputs = (self.input_norm.sequence(inputs[0]), *inputs[1:])
        return self._without_norm(super().multi_step_functional_forward, inputs, states, **kwargs)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> Any:
        if not self._ext_done:
            inputs = (self.input_norm.step(self._ext_t, inputs[0]), *inputs[1:])
        return super().single_step_functional_forward(inputs, states, **kwargs)

    def _without_norm(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before, self._ext_done = self._ext_done, True
        try:
            return run(*args, **kwargs)
        finally:
            self._ext_done = before


class Timed(Clock, _Float32State):
    """Counts the steps of its sequence in step mode 's', and tells a norm before it."""

    _ext_counts = True

    def steps_done(self, batch: int) -> int:
        v = self._memories["v"]
        return self._steps_behind(v) if isinstance(v, Tensor) and len(v) == batch else 0

    def reset(self) -> None:
        super().reset()
        self.forget()

    def _count(self, v: Tensor | None, step_mode: str) -> None:
        super()._count(v, step_mode)
        if step_mode == "s":
            self.tick(self._ext_t)


_MIXINS: dict[str, type] = {
    "imp": IMP,
    "bntt": Normalised,
    "tebn": Normalised,
    "mpbn": MPBN,
    "clock": Timed,
}


_FUNCTIONAL = ("functional_forward", "single_step_functional_forward", "multi_step_functional_forward")


def mixins(methods: tuple[str, ...], base_class: type) -> tuple[type, ...]:
    """The classes that give a neuron these methods, outermost first: the norm of the input comes before
    the step with the norm of the membrane."""
    chosen = [cls for name, cls in _MIXINS.items() if name in methods]
    functional = any(getattr(base_class, n) is not getattr(base.MemoryModule, n) for n in _FUNCTIONAL)
    return (*chosen, Functional) if functional else tuple(chosen)
