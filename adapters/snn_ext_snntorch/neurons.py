"""What snnTorch's neurons become: the same class, with another first membrane or firing decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_ext import OptionError
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, NormalisedMembrane
from snn_ext.patching.sequence import carried, fired_by, is_carried, remember_fired

__all__ = ["MIXINS", "adopt_state"]


class _MarkedState(snn.SpikingNeuron):  # type: ignore[misc]
    """Marks every membrane it returns, so that the start of a sequence can be told.

    snnTorch has no event for it: resets make new tensors, users make zeros. So an *unmarked* membrane
    is a start (see `snn_ext.carried`).
    """

    mem: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._recognise_detached((*args, *kwargs.values()))
        output = super().forward(*args, **kwargs)
        carried(self.mem)
        return output

    def _recognise_detached(self, given: tuple[Any, ...]) -> None:
        """``mem.detach()`` between steps is a new tensor on the memory of our last output, which
        `self.mem` keeps alive, so that no other tensor can have that address."""
        if torch.compiler.is_compiling() or not self.mem.numel() or not is_carried(self.mem):
            return
        address = self.mem.untyped_storage().data_ptr()
        for state in given:
            if isinstance(state, Tensor) and state.untyped_storage().data_ptr() == address:
                carried(state, of=self.mem)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .to() and .half() make new buffers; the sequence goes on nevertheless.
        old = self.mem
        super()._apply(fn, recurse)
        if is_carried(old):
            carried(self.mem, of=old)
        return self


class IMP(InitialPotential, _MarkedState):
    """Sequences start from V0."""

    def mem_reset(self, mem: Tensor) -> Tensor:
        """Called by every step after the states got their shape and before the charge.

        At a start the pending reset is that of the membrane *without* V0: a V0 above the threshold
        must not act like a spike that never was.
        """
        reset: Tensor = super().mem_reset(mem)
        if not is_carried(self.mem):
            self.mem = self.mem + self._first_membrane(self.mem)
        return reset

    def _first_membrane(self, mem: Tensor) -> Tensor:
        # One sample without a batch dimension is legal in snnTorch.
        shape = self._imp_option.shape
        single = shape in ("neuron", "channel") and mem.ndim == self.imp.ndim
        features = mem.shape if single else mem.shape[1:]
        return self.initial_membrane(features, torch.promote_types(mem.dtype, torch.float32))


class MPBN(NormalisedMembrane, _MarkedState):
    """Fires on the normalised membrane, and resets where it *fired*: the framework would look at the
    carried membrane again, which is another decision. So the spikes travel with the membrane."""

    spike_grad: Callable[[Tensor], Tensor]
    graded_spikes_factor: Tensor
    threshold: Tensor
    reset_delay: bool = True

    def firing_rule(self) -> FiringRule:
        return FiringRule(self.threshold, self.spike_grad, fires_at_equality=False)

    def fire(self, mem: Tensor) -> Tensor:
        spikes, self.mem = self.membrane_decision()(mem)
        remember_fired(self.mem, spikes.detach())
        return spikes * self.graded_spikes_factor

    def mem_reset(self, mem: Tensor) -> Tensor:
        if not is_carried(mem) or not self.reset_delay:  # a start, or reset in the step it fired in
            return torch.zeros_like(mem)
        fired = fired_by(mem)
        if fired is None:
            raise OptionError(
                "the membrane was marked as carried over, but not which spikes it fired.",
                where=type(self).__name__,
                why="under MPBN the pending reset cannot be seen from the membrane",
                do="snn_ext.carried(new_mem, of=mem)",
            )
        return fired


class IMPMPBN(IMP, MPBN):
    """Both."""


MIXINS: dict[frozenset[str], type] = {
    frozenset({"imp"}): IMP,
    frozenset({"mpbn"}): MPBN,
    frozenset({"imp", "mpbn"}): IMPMPBN,
}


def adopt_state(module: nn.Module) -> None:
    """Patched in the middle of a sequence: a membrane that is not all zero is carried on."""
    mem = module._buffers.get("mem")
    if isinstance(mem, Tensor) and mem.numel() and bool((mem != 0).any()):
        carried(mem)
