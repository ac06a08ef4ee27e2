"""What snnTorch's neurons become: the same class, with another first membrane, input or decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from snn_ext import OptionError
from snn_ext.methods.clock import Clock
from snn_ext.methods.paths import located
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, NormalisedInput, NormalisedMembrane
from snn_ext.patching.sequence import fired_by, is_carried, mark_output, steps_behind
from snn_ext_snntorch.state import State

__all__ = ["adopt_state", "mixins"]


class Timed(Clock, State):
    """Counts the steps of its sequence, and tells a norm before it."""

    _ext_counts = True
    _ext_begins = False

    def steps_done(self, batch: int) -> int:
        unused = self.mem.shape == (0,)  # as it was made; an empty batch gives [0, *]
        if self._ext_begins or unused or len(self.mem) != batch:
            return 0
        return steps_behind(self.mem, self)

    def reset_mem(self) -> Any:
        self.forget()
        return super().reset_mem()

    def begin(self) -> None:
        """The root was called from outside: explicit states start anew (checked by `tick`)."""
        self._ext_begins = not self.init_hidden

    def _begin_step(self, mem: Tensor) -> None:
        super()._begin_step(mem)
        self._ext_begins = False
        self.tick(self._ext_t)


class Normalised(NormalisedInput, State):
    """BNTT or TEBN on the input."""

    _ext_counts = True
    _ext_normalised: Tensor | None = None

    def _begin_step(self, mem: Tensor) -> None:
        super()._begin_step(mem)
        self._ext_normalised = None

    def _mark(self, mem: Tensor, fired: Tensor | None = None) -> None:
        super()._mark(mem, fired)
        self._ext_normalised = None  # its graph must not outlive the step

    def _base_state_function(self, input_: Tensor) -> Any:
        return super()._base_state_function(self._normalise(input_))

    def _base_state_reset_zero(self, input_: Tensor) -> Any:
        return super()._base_state_reset_zero(self._normalise(input_))

    def _normalise(self, input_: Tensor) -> Tensor:
        # Some resets to zero charge twice per step; the statistics must see the input once.
        if self._ext_normalised is None:
            self._ext_normalised = self.input_norm.step(self._ext_t, input_)
        return self._ext_normalised


class MPBN(NormalisedMembrane, State):
    """Fires on the normalised membrane, and resets where it *fired*: the framework would look at the
    carried membrane again, which is another decision. So the spikes travel with the membrane."""

    spike_grad: Callable[[Tensor], Tensor]
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
                where=located(self),
                why="under MPBN the pending reset cannot be seen from the membrane",
                do="snn_ext.carried(new_mem, of=mem)",
            )
        return fired


class IMP(InitialPotential, State):
    """Sequences start from V0."""

    def mem_reset(self, mem: Tensor) -> Tensor:
        """At a start the pending reset is that of the membrane *without* V0: a V0 above the threshold
        must not act like a spike that never was."""
        begins = self._ext_inside and not self._ext_stepped and not is_carried(self.mem)
        reset: Tensor = super().mem_reset(mem)
        if begins:
            v0 = self._start(self.mem)
            self.mem = self.mem.to(v0.dtype) + v0
        return reset

    def _start(self, mem: Tensor) -> Tensor:
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
    for name in (
        "_ext_inside",
        "_ext_stepped",
        "_ext_factor",
        "_ext_t",
        "_ext_begins",
        "_ext_normalised",
        "_ext_fired",
    ):
        if hasattr(module, name):  # from the start: running must not make new attributes
            module.__dict__[name] = getattr(module, name)
    mem = module._buffers.get("mem")
    if isinstance(mem, Tensor) and mem.numel() and bool((mem != 0).any()):
        # what the stock neuron would reset by; MPBN cannot see it from the membrane
        mark_output(mem, fired=(mem > module.threshold).to(mem).detach())
