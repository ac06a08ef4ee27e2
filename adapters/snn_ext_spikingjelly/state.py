"""The state of SpikingJelly's neurons: float32, counted where somebody asks, and run by the fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from snn_ext import TimestepError
from snn_ext.kernels import Call
from snn_ext.methods.fused import FusedNeuron
from snn_ext.methods.paths import located
from snn_ext.patching.sequence import carried, is_carried, mark_output, steps_behind
from snn_ext_spikingjelly.describe import current_dynamics, recorded_dynamics

__all__ = ["State", "call_of", "goes_on", "in_dtype_of"]


class State(FusedNeuron, base.MemoryModule):  # type: ignore[misc]
    """Keeps the membrane in float32 for half inputs, and the spikes in the dtype of the input.

    Works in `materialize_states`, which every path of the framework goes through: both step modes, the
    fused kernels, `to_functional_forward` and checkpointing. `forward` and hooks are bypassed by some.
    """

    get_reset_value: Callable[[str], Any]
    _memories: dict[str, Any]
    step_mode: str
    store_v_seq: bool
    v_seq: Any
    _ext_counts = False  # steps are counted only where somebody asks
    _ext_t = -1

    def materialize_states(
        self, inputs: tuple[Any, ...], states: tuple[Any, ...], step_mode: str
    ) -> tuple[Any, ...]:
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        if self._ext_counts:
            self._count(states[0] if goes_on(states[0], x) else None, step_mode)
        v, *others = self._framework_states(inputs, states, step_mode, x)
        if goes_on(states[0], x):
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
            return steps_behind(v, self)
        raise TimestepError(
            "the membrane was set by hand, and cannot tell which time step it is from.",
            where=located(self),
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
        super()._apply(fn)  # type: ignore[no-untyped-call]
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
        fused = None if args or kwargs else self._run_fused(x.unsqueeze(0), "s")
        y = in_dtype_of(x, super().single_step_forward(x, *args, **kwargs)) if fused is None else fused[0]
        self._mark(self._memories["v"], self._ext_t + 1)
        return y

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = None if args or kwargs else self._run_fused(x_seq, "m")
        if y is None:
            y = in_dtype_of(x_seq, super().multi_step_forward(x_seq, *args, **kwargs))
        self._mark(self._memories["v"], len(x_seq))
        return y

    def _run_fused(
        self, x: Tensor, step_mode: str, affine: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | None:
        """Spikes [T, B, *] by the kernels; None where the framework's own step is to be taken."""
        dynamics = current_dynamics(self) if self.fuses(x) else None
        if dynamics is None or (self.store_v_seq and step_mode == "s"):
            return None
        v = self._memories["v"]
        on = isinstance(v, Tensor) and v.shape == x.shape[1:]
        if self._ext_counts:
            self._count(v if on else None, step_mode)
        result = self.fused(
            x,
            dynamics,
            v=v.to(x.device, torch.float32) if on else None,
            v0=None if on else self._start(v, x.shape[2:], torch.float32),
            affine=affine,
            store=self.store_v_seq,
        )
        self._memories["v"] = result.membrane
        self.v_seq = result.membranes
        return result.spikes

    def _start(self, v: Any, features: torch.Size, dtype: torch.dtype) -> Tensor | float:
        """The membrane that a sequence starts from; a number in `v` may be the user's choice."""
        return float(v) if isinstance(v, (int, float)) else float(self.get_reset_value("v"))


def call_of(module: Any, x: Tensor) -> Call | None:
    """What a node, patched or not, would compute with this input; None where its step is another."""
    exact = recorded_dynamics(module)
    if exact is None:
        return None
    sequence = x if module.step_mode == "m" else x.unsqueeze(0)
    v = module._memories["v"]
    if goes_on(v, sequence[0]):
        return Call(sequence, exact, v=v)
    first = v if isinstance(v, int | float) else module.get_reset_value("v")
    if isinstance(module, State):
        first = module._start(v, sequence.shape[2:], torch.promote_types(x.dtype, torch.float32))
    return Call(sequence, exact, v0=first)


def goes_on(v: Any, x: Tensor) -> bool:
    """Whether `v` is the state of a sequence that this step belongs to (otherwise it starts anew)."""
    return isinstance(v, Tensor) and v.shape == x.shape


def in_dtype_of(x: Tensor, y: Any) -> Any:
    """y in the floating-point type of x, if both are such."""
    floats = x.is_floating_point() and isinstance(y, Tensor) and y.is_floating_point()
    return y.to(x.dtype) if floats else y
