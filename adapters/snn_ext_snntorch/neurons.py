"""What snnTorch's neurons become: the same class, with another first membrane, input or decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_ext import OptionError
from snn_ext.methods.clock import Clock
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, NormalisedInput, NormalisedMembrane
from snn_ext.patching.sequence import (
    carried,
    fired_by,
    is_carried,
    mark_output,
    steps_behind,
    tensors_in,
)

__all__ = ["adopt_state", "mixins"]


class _Marked(snn.SpikingNeuron):  # type: ignore[misc]
    """Marks every membrane it returns, so that the start of a sequence can be told.

    snnTorch has no event for it: resets make new tensors, users make zeros. So an *unmarked* membrane
    is a start (see `snn_ext.carried`).
    """

    mem: Tensor
    _ext_counts = False  # steps are counted only where somebody asks: torch.compile would guard on the number
    _ext_inside = False
    _ext_stepped = False  # a user's forward may take several steps
    _ext_t: int = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        before = self.mem
        self._ext_inside, self._ext_stepped = True, False
        try:
            output = super().forward(*args, **kwargs)
        except BaseException:
            self.mem = before  # an interrupted first step must not leave V0 behind
            raise
        finally:
            self._ext_inside = False
        self._mark(self.mem)
        # A subclass may return another membrane than the one it keeps.
        for tensor in tensors_in(output):
            if tensor is not self.mem:
                carried(tensor, of=self.mem)
        return output

    def _mark(self, mem: Tensor, fired: Tensor | None = None) -> None:
        if self._ext_counts:
            mark_output(mem, self._ext_t + 1, fired=fired)
        else:
            mark_output(mem, fired=fired)

    def mem_reset(self, mem: Tensor) -> Tensor:
        """Every step calls this once, after the states got their shape and before the charge."""
        if self._ext_counts and self._ext_inside:
            self._ext_t = self._ext_t + 1 if self._ext_stepped else steps_behind(mem, type(self).__name__)
        self._ext_stepped = True
        return super().mem_reset(mem)  # type: ignore[no-any-return]

    def _starts(self, mem: Tensor) -> bool:
        """Whether a sequence begins with this step; asked before the framework's `mem_reset`."""
        return self._ext_inside and not self._ext_stepped and not is_carried(mem)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .to() and .half() make new buffers; the sequence goes on nevertheless.
        old = self.mem
        super()._apply(fn, recurse)
        if is_carried(old):
            carried(self.mem, of=old)
        return self


class Timed(Clock, _Marked):
    """Counts the steps of its sequence, and tells a norm before it."""

    _ext_counts = True
    _ext_begins = False

    def steps_done(self, batch: int) -> int:
        unused = self.mem.shape == (0,)  # as it was made; an empty batch gives [0, *]
        if self._ext_begins or unused or len(self.mem) != batch:
            return 0
        return steps_behind(self.mem, type(self).__name__)

    def reset_mem(self) -> Any:
        self.forget()
        return super().reset_mem()

    def begin(self) -> None:
        """The root was called from outside: explicit states start anew (checked by `tick`)."""
        self._ext_begins = not self.init_hidden

    def mem_reset(self, mem: Tensor) -> Tensor:
        reset: Tensor = super().mem_reset(mem)
        if self._ext_inside:
            self._ext_begins = False
            self.tick(self._ext_t)
        return reset


class Normalised(NormalisedInput, _Marked):
    """BNTT or TEBN on the input."""

    _ext_counts = True
    _ext_normalised: Tensor | None = None

    def mem_reset(self, mem: Tensor) -> Tensor:
        self._ext_normalised = None
        return super().mem_reset(mem)

    def _base_state_function(self, input_: Tensor) -> Any:
        return super()._base_state_function(self._normalise(input_))

    def _base_state_reset_zero(self, input_: Tensor) -> Any:
        return super()._base_state_reset_zero(self._normalise(input_))

    def _normalise(self, input_: Tensor) -> Tensor:
        # Some resets to zero charge twice per step; the statistics must see the input once.
        if self._ext_normalised is None:
            self._ext_normalised = self.input_norm.step(self._ext_t, input_)
        return self._ext_normalised


class MPBN(NormalisedMembrane, _Marked):
    """Fires on the normalised membrane, and resets where it *fired*: the framework would look at the
    carried membrane again, which is another decision. So the spikes travel with the membrane."""

    spike_grad: Callable[[Tensor], Tensor]
    graded_spikes_factor: Tensor
    threshold: Tensor
    _ext_fired: Tensor | None = None

    def firing_rule(self) -> FiringRule:
        return FiringRule(self.threshold, self.spike_grad, fires_at_equality=False)

    def fire(self, mem: Tensor) -> Tensor:
        spikes, self.mem = self.membrane_decision()(mem)
        spikes = spikes.to(self.spike_grad(mem.new_empty(0)).dtype)  # a folded decision has that of mem
        self._ext_fired = spikes.detach()
        return spikes * self.graded_spikes_factor

    def _mark(self, mem: Tensor, fired: Tensor | None = None) -> None:
        super()._mark(mem, self._ext_fired)
        self._ext_fired = None

    def mem_reset(self, mem: Tensor) -> Tensor:
        super().mem_reset(mem)
        dtype = torch.promote_types(mem.dtype, torch.float32)
        if mem.dtype is not dtype:  # at a start: the framework's zeros have the dtype of the input
            self.mem = mem.to(dtype)
        # a start, or reset in the step it fired in
        if not is_carried(mem) or not getattr(self, "reset_delay", True):
            return torch.zeros_like(mem, dtype=dtype)
        fired = fired_by(mem)
        if fired is None:
            raise OptionError(
                "the membrane was marked as carried over, but not which spikes it fired.",
                where=type(self).__name__,
                why="under MPBN the pending reset cannot be seen from the membrane",
                do="snn_ext.carried(new_mem, of=mem)",
            )
        return fired


class IMP(InitialPotential, _Marked):
    """Sequences start from V0."""

    def mem_reset(self, mem: Tensor) -> Tensor:
        """At a start the pending reset is that of the membrane *without* V0: a V0 above the threshold
        must not act like a spike that never was."""
        starts = self._starts(self.mem)
        reset: Tensor = super().mem_reset(mem)
        if starts:
            v0 = self._first_membrane(self.mem)
            self.mem = self.mem.to(v0.dtype) + v0
        return reset

    def _first_membrane(self, mem: Tensor) -> Tensor:
        # One sample without a batch dimension is legal in snnTorch.
        single = self._imp_option.shape != "layer" and mem.ndim == self.imp.ndim
        features = mem.shape if single else mem.shape[1:]
        return self.initial_membrane(features, torch.promote_types(mem.dtype, torch.float32))


_MIXINS: dict[str, type] = {
    "imp": IMP,
    "mpbn": MPBN,
    "bntt": Normalised,
    "tebn": Normalised,
    "clock": Timed,
}


def mixins(methods: tuple[str, ...]) -> tuple[type, ...]:
    """The classes that give a neuron these methods, outermost first."""
    return tuple(cls for name, cls in _MIXINS.items() if name in methods)


def adopt_state(module: Any) -> None:
    """Patched in the middle of a sequence: a membrane that is not all zero is carried on."""
    for name in ("_ext_inside", "_ext_stepped", "_ext_t", "_ext_begins", "_ext_normalised", "_ext_fired"):
        if hasattr(module, name):  # from the start: running must not make new attributes
            module.__dict__[name] = getattr(module, name)
    mem = module._buffers.get("mem")
    if isinstance(mem, Tensor) and mem.numel() and bool((mem != 0).any()):
        # what the stock neuron would reset by; MPBN cannot see it from the membrane
        mark_output(mem, fired=(mem > module.threshold).to(mem).detach())
