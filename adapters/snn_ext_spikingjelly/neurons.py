"""What SpikingJelly's neurons become: the same class, with another first membrane or firing decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from snn_ext import UnsupportedSiteError, functional
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, NormalisedMembrane
from snn_ext_spikingjelly.describe import dynamics

__all__ = ["MIXINS"]


class _Float32State(base.MemoryModule):  # type: ignore[misc]
    """Keeps the membrane in float32 for half inputs, and the spikes in the dtype of the input.

    Works in `materialize_states`, which every path of the framework goes through: both step modes, the
    fused kernels, `to_functional_forward` and checkpointing. `forward` and hooks are bypassed by some.
    """

    get_reset_value: Callable[[str], Any]

    def materialize_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        v, *others = self._framework_states(inputs, states, step_mode, x)
        if isinstance(states[0], Tensor) and states[0].shape == x.shape:
            v = states[0].to(x.device, self._state_dtype(v, x))
        return (v.to(self._state_dtype(v, x)), *others)

    def _framework_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str, x: Tensor
    ) -> tuple[Any, ...]:
        return super().materialize_states(inputs, states, step_mode)  # type: ignore[no-any-return]

    def _state_dtype(self, v: Tensor, x: Tensor) -> torch.dtype:
        """float32 for half inputs, unless the user chose a precision with `PrecisionConfig`."""
        if getattr(self, "_neuron_precision", None) is not None:
            return v.dtype
        return torch.promote_types(x.dtype, torch.float32)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _in_dtype_of(x, super().single_step_forward(x, *args, **kwargs))

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _in_dtype_of(x_seq, super().multi_step_forward(x_seq, *args, **kwargs))

    def functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        outputs, states = super().functional_forward(inputs, states, **kwargs)
        return tuple(_in_dtype_of(inputs[0], y) for y in outputs), states


def _in_dtype_of(x: Tensor, y: Any) -> Any:
    return y.to(x.dtype) if isinstance(y, Tensor) and y.is_floating_point() else y


class IMP(InitialPotential, _Float32State):
    """Sequences start from V0; the step stays the framework's own."""

    def _framework_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str, x: Tensor
    ) -> tuple[Any, ...]:
        v = states[0]
        carried = isinstance(v, Tensor) and v.shape == x.shape
        chosen = isinstance(v, int | float) and v != self.get_reset_value("v")
        if carried or chosen:  # in the middle of a sequence, or a start value set by the user
            return super()._framework_states(inputs, states, step_mode, x)
        # Add to the framework's own zeros instead of expanding V0: the state stays dense, in the
        # memory format of the input, as the fused kernels and operation counters expect it.
        zeros, *others = super()._framework_states(inputs, (0.0, *states[1:]), step_mode, x)
        dtype = self._state_dtype(zeros, x)
        return (zeros.to(dtype) + self.initial_membrane(x.shape[1:], dtype), *others)


class MPBN(NormalisedMembrane, _Float32State):
    """Decides on the normalised membrane; the step is that of `Dynamics`, with the node's surrogate."""

    surrogate_function: Callable[[Tensor], Tensor]
    v_threshold: float

    def firing_rule(self) -> FiringRule:
        return FiringRule(self.v_threshold, self.surrogate_function, fires_at_equality=True)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        equations = dynamics(self)
        if equations is None:
            raise UnsupportedSiteError(
                f"{type(self).__name__} changed since it was patched.",
                why="its threshold is not a float any more, so its step cannot be described",
                do="set v_threshold to a float; a learnable one is not supported",
            )
        spikes, v = functional.step(inputs[0], states[0], equations, decide=self.membrane_decision())
        return (spikes,), (v, *states[1:])

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        spikes = []
        for x in inputs[0].unbind(0):
            (s,), states = self.single_step_functional_forward((x,), states, **kwargs)
            spikes.append(s)
        return (torch.stack(spikes),), states


class IMPMPBN(IMP, MPBN):
    """Both."""


MIXINS: dict[frozenset[str], type] = {
    frozenset({"imp"}): IMP,
    frozenset({"mpbn"}): MPBN,
    frozenset({"imp", "mpbn"}): IMPMPBN,
}
