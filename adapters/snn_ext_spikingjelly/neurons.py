"""What SpikingJelly's neurons become: the same class, with another first membrane, input or decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from snn_ext import UnsupportedSiteError
from snn_ext.functional import step
from snn_ext.methods.clock import Clock
from snn_ext.methods.paths import located
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, FoldedTime, NormalisedInput, NormalisedMembrane
from snn_ext_spikingjelly.describe import equations
from snn_ext_spikingjelly.state import State, goes_on, in_dtype_of

__all__ = ["mixins"]


class Functional(State):
    """For neurons with a functional step: SpikingJelly looks for this method to find out."""

    def functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        outputs, states = super().functional_forward(inputs, states, **kwargs)
        self._mark(states[0], len(inputs[0]) if self.step_mode == "m" else self._ext_t + 1)
        return tuple(in_dtype_of(inputs[0], y) for y in outputs), states


class IMP(InitialPotential, State):
    """Sequences start from V0; the step stays the framework's own."""

    def _framework_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str, x: Tensor
    ) -> tuple[Any, ...]:
        v = states[0]
        if goes_on(v, x):
            return super()._framework_states(inputs, states, step_mode, x)
        # Add to the framework's own zeros instead of expanding V0: the state stays dense, in the
        # memory format of the input, as the fused kernels and operation counters expect it.
        zeros, *others = super()._framework_states(inputs, (0.0, *states[1:]), step_mode, x)
        dtype = self._state_dtype(zeros, x)
        return (zeros.to(dtype) + self._start(v, x.shape[1:], dtype), *others)

    def _start(self, v: Any, features: torch.Size, dtype: torch.dtype) -> Tensor | float:
        # A tuple, as in all code that torch.compile traces: in torch 2.6 it cannot trace int | float.
        if isinstance(v, (int, float)) and v != self.get_reset_value("v"):
            return float(v)
        return self.initial_membrane(features, dtype)


class MPBN(NormalisedMembrane, State):
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
                "a neuron changed since it was patched.",
                where=located(self),
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


class Normalised(NormalisedInput, State):
    """BNTT or TEBN on the input. Whole sequences are normalised at once, steps one by one."""

    _ext_counts = True
    _ext_done = False

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = None if args or kwargs else self._run_folded(x_seq)
        if y is not None:
            return y
        # store_v_seq runs single steps from here
        x_seq = self.input_norm.sequence(x_seq)
        return self._without_norm(super().multi_step_forward, x_seq, *args, **kwargs)

    def _run_folded(self, x_seq: Tensor) -> Tensor | None:
        """The kernel applies a folded norm itself; None where it cannot."""
        norm = self.input_norm
        affine = norm.in_kernel(x_seq) if isinstance(norm, FoldedTime) else None
        y = None if affine is None else self._run_fused(x_seq, "m", affine)
        if y is not None:
            self._mark(self._memories["v"], len(x_seq))
        return y

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self._ext_done:  # not below: a user's class may have a step of its own
            v = self._memories["v"]
            x = self.input_norm.step(self._steps_behind(v) if goes_on(v, x) else 0, x)
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


class Timed(Clock, State):
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
