"""What snnTorch's neurons become: the same class, with another first membrane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_ext.neurons import InitialPotential
from snn_ext.patching.sequence import carried, is_carried

__all__ = ["IMP", "adopt_state"]


class IMP(InitialPotential, snn.SpikingNeuron):  # type: ignore[misc]
    """Starts a sequence from V0 whenever the membrane it is given is not one of its own outputs.

    snnTorch has no event for the start of a sequence: resets make new tensors, users make zeros. So
    every output membrane is marked (see `snn_ext.carried`), and an unmarked one is a start.
    """

    mem: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._recognise_detached((*args, *kwargs.values()))
        output = super().forward(*args, **kwargs)
        carried(self.mem)
        return output

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

    def _recognise_detached(self, given: tuple[Any, ...]) -> None:
        """``mem.detach()`` between steps is a new tensor on the memory of our last output, which
        `self.mem` keeps alive, so that no other tensor can have that address."""
        if torch.compiler.is_compiling() or not self.mem.numel() or not is_carried(self.mem):
            return
        address = self.mem.untyped_storage().data_ptr()
        for state in given:
            if isinstance(state, Tensor) and state.untyped_storage().data_ptr() == address:
                carried(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .to() and .half() make new buffers; the sequence goes on nevertheless.
        marked = is_carried(self.mem)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if marked:
            carried(self.mem)
        return self


def adopt_state(module: nn.Module) -> None:
    """Patched in the middle of a sequence: a membrane that is not all zero is carried on."""
    mem = module._buffers.get("mem")
    if isinstance(mem, Tensor) and mem.numel() and bool((mem != 0).any()):
        carried(mem)
