"""What SpikingJelly's neurons become: the same class, with another first membrane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from snn_ext.neurons import InitialPotential

__all__ = ["IMP"]


class IMP(InitialPotential, base.MemoryModule):  # type: ignore[misc]
    """Supplies V0 through `materialize_states`, which every path of the framework goes through:
    both step modes, the fused kernels, `to_functional_forward` and checkpointing. `forward` and
    hooks are bypassed by some of them."""

    get_reset_value: Callable[[str], Any]

    def materialize_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        v = states[0]
        carried = isinstance(v, Tensor) and v.shape == x.shape
        chosen = isinstance(v, int | float) and v != self.get_reset_value("v")
        if carried or chosen:  # in the middle of a sequence, or a start value set by the user
            v, *others = super().materialize_states(inputs, states, step_mode)
            if carried:
                v = states[0].to(x.device, self._state_dtype(v, x))
            return (v.to(self._state_dtype(v, x)), *others)
        # Add to the framework's own zeros instead of expanding V0: the state stays dense, in the
        # memory format of the input, as the fused kernels and operation counters expect it.
        zeros, *others = super().materialize_states(inputs, (0.0, *states[1:]), step_mode)
        dtype = self._state_dtype(zeros, x)
        return (zeros.to(dtype) + self.initial_membrane(x.shape[1:], dtype), *others)

    def _state_dtype(self, v: Tensor, x: Tensor) -> torch.dtype:
        """float32 for half inputs, unless the user chose a precision with `PrecisionConfig`."""
        if getattr(self, "_neuron_precision", None) is not None:
            return v.dtype
        return torch.promote_types(x.dtype, torch.float32)

    # A float32 state must not turn half precision spikes into float32 ones.

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
