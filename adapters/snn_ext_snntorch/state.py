"""The state of snnTorch's neurons: marked, counted where somebody asks, and run by the fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from snn_ext.kernels import Call
from snn_ext.methods.fused import FusedNeuron
from snn_ext.patching.sequence import carried, is_carried, mark_output, steps_behind, tensors_in
from snn_ext_snntorch.describe import equations, equations_with

__all__ = ["State", "call_of"]


class State(FusedNeuron, snn.SpikingNeuron):  # type: ignore[misc]
    """Marks every membrane it returns, so that the start of a sequence can be told.

    snnTorch has no event for it: resets make new tensors, users make zeros. So an *unmarked* membrane
    is a start (see `snn_ext.carried`).
    """

    mem: Tensor
    graded_spikes_factor: Tensor
    init_hidden: bool
    output: bool
    _ext_counts = False  # steps are counted only where somebody asks: torch.compile would guard on the number
    _ext_inside = False
    _ext_stepped = False  # a user's forward may take several steps
    _ext_t: int = 0
    _ext_factor: tuple[int, int, bool] = (0, 0, True)  # what the factor of graded spikes was seen to be

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self._fused_forward(*args, **kwargs) if self._ext_backend else None
        return self._own_forward(*args, **kwargs) if output is None else output

    def _own_forward(self, *args: Any, **kwargs: Any) -> Any:
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
        if self._ext_inside:
            self._begin_step(mem)
            self._ext_stepped = True
        return super().mem_reset(mem)  # type: ignore[no-any-return]

    def _begin_step(self, mem: Tensor) -> None:
        if self._ext_counts:
            self._ext_t = self._ext_t + 1 if self._ext_stepped else steps_behind(mem, self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # .to() and .half() make new buffers; the sequence goes on nevertheless.
        old = self.mem
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if is_carried(old):
            carried(self.mem, of=old)
        return self

    # --- the same step by the fused kernels, where the class is the framework's own ---

    def _fused_forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """What forward returns, or None where the framework's own step is to be taken."""
        stateful = self.init_hidden and mem is not None  # the framework's TypeError
        dynamics = None if stateful or not self.fuses(input_) else equations(self)
        state = self.mem if mem is None else mem
        if dynamics is None or not isinstance(state, Tensor) or state.device != input_.device:
            return None
        if state.shape != input_.shape:
            state = torch.zeros_like(input_, dtype=torch.float32)
        v0 = None if is_carried(state) else self._start(state)
        if self._ext_counts:
            self._ext_stepped = False
            self._begin_step(state)
        x = self._normalise(input_).float().unsqueeze(0)
        # A start of the user's own may be above the threshold: the framework would reset it, V0 not.
        result = self.fused(x, dynamics, v=state, v0=v0, resume=True)
        self._buffers["mem"] = result.membrane
        self._mark(result.membrane)
        spikes = result.spikes[0] if self._ungraded() else result.spikes[0] * self.graded_spikes_factor
        return spikes if self.init_hidden and not self.output else (spikes, result.membrane)

    def _start(self, mem: Tensor) -> Tensor | None:
        """What is added to `mem`, with which a sequence begins."""
        return None

    def _normalise(self, input_: Tensor) -> Tensor:
        return input_

    def _ungraded(self) -> bool:
        """Whether the factor of graded spikes is 1; looked at once per value."""
        factor = getattr(self, "graded_spikes_factor", None)
        if factor is None:
            return True
        if factor.requires_grad:
            return False
        seen = (id(factor), factor._version)
        if self._ext_factor[:2] != seen:
            self._ext_factor = (*seen, bool((factor == 1).all()))
        return self._ext_factor[2]


def call_of(module: Any, x: Tensor, mem: Tensor | None = None) -> Call | None:
    """What a neuron, patched or not, would compute with this input; None where its step is another."""
    exact = equations_with(module) if isinstance(module, snn.Leaky | snn.Lapicque) else None
    state = module.mem if mem is None else mem
    if exact is None or not isinstance(state, Tensor):
        return None
    if state.shape != x.shape:
        state = torch.zeros_like(x)
    patched = isinstance(module, State) and not is_carried(state)
    return Call(x.unsqueeze(0), exact, v=state, v0=module._start(state) if patched else None, resume=True)
