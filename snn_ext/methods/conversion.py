"""Norms over time for existing batch norms and neurons: what is attached, and the mixins that use it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.errors import FoldError
from snn_ext.methods.batch_norms import BatchNorm
from snn_ext.methods.clock import ClockedNorm
from snn_ext.methods.paths import located
from snn_ext.methods.temporal import (
    BatchNormThroughTime,
    Slot,
    TemporalEffectiveBatchNorm,
    at_step,
    check_exact,
    joint_per_call,
    scaled,
    through_time,
    without_bias,
)

__all__ = ["FoldedTime", "LaterSlots", "NormalisedInput", "TemporalScale", "TimedNorm"]


class _Takeover:
    """Settings of the original norm that a conversion changes, and gives back."""

    def __init__(self, norm: _BatchNorm, eps: float, momentum: float | None) -> None:
        trained = norm.bias is not None and norm.bias.requires_grad
        self.before = (norm.eps, norm.momentum, trained)
        self.after = (eps, momentum)


class LaterSlots(nn.ModuleList):
    """BNTT on an existing batch norm, which stays slot 0: the norms of steps 2 to T, copies of it.

    Without a bias that of slot 0 is frozen and left out: its key stays, and no parameter is without a
    gradient under DDP.
    """

    def __init__(
        self, norm: _BatchNorm, timesteps: int, *, bias: bool, eps: float, momentum: float | None
    ) -> None:
        super().__init__(_twin(norm, bias, eps, momentum) for _ in range(timesteps - 1))
        self.bias, self.settings = bias, _Takeover(norm, eps, momentum)

    def take_over(self, norm: _BatchNorm) -> None:
        """Make `norm` slot 0."""
        norm.eps, norm.momentum = self.settings.after
        if norm.bias is not None and not self.bias:
            norm.bias.requires_grad_(False)

    def give_back(self, norm: _BatchNorm) -> None:
        """Undo `take_over`."""
        norm.eps, norm.momentum, trained = self.settings.before
        if norm.bias is not None:
            norm.bias.requires_grad_(trained)


def _twin(norm: _BatchNorm, bias: bool, eps: float, momentum: float | None) -> BatchNorm:
    twin = BatchNorm(norm.num_features, eps, momentum, norm.affine, norm.track_running_stats)
    twin = without_bias(twin, bias and norm.bias is not None)
    # not state_dict(): that of a module inside a cycle never ends
    tensors = {**norm._parameters, **norm._buffers}
    own = {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}
    floating = [value.dtype for value in own.values() if value.is_floating_point()]
    twin = twin.to(floating[0]) if floating else twin
    new = twin.state_dict()
    if not any(tensor.is_meta for tensor in new.values()):
        twin.load_state_dict({k: own[k] for k in new})
    for name, parameter in twin.named_parameters():  # a frozen affine is frozen at every step
        parameter.requires_grad_(norm.get_parameter(name).requires_grad)
    return twin


class TemporalScale(nn.Module):
    """TEBN on an existing batch norm: the scale p [T], 1 at the start."""

    def __init__(
        self,
        norm: _BatchNorm,
        timesteps: int,
        *,
        stats: Literal["joint", "step"],
        eps: float,
        momentum: float | None,
    ) -> None:
        super().__init__()
        self.stats, self.settings = stats, _Takeover(norm, eps, momentum)
        self.scale = nn.Parameter(torch.ones(timesteps))

    def take_over(self, norm: _BatchNorm) -> None:
        """Give `norm` the settings asked for."""
        norm.eps, norm.momentum = self.settings.after

    def give_back(self, norm: _BatchNorm) -> None:
        """Undo `take_over`."""
        norm.eps, norm.momentum, _ = self.settings.before


class FoldedTime(nn.Module):
    """BNTT or TEBN folded for inference: y[t] = scale[t] * x[t] + shift[t], buffers [T, C]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("shift", shift.detach().clone())

    def sequence(self, x: Tensor) -> Tensor:
        """A whole sequence [T, B, C, *]."""
        return torch.stack([self.step(t, x_t) for t, x_t in enumerate(x.unbind(0))])

    def in_kernel(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scale and shift [T, C] for a kernel that is given [T, B, C, *] as it is, instead of `sequence`.

        None where that would round differently: a kernel computes in float32, `sequence` in half.
        """
        self._check(len(x) - 1)
        if x.dtype is not torch.float32 or x.ndim < 3 or x.shape[2] != self.scale.shape[1]:
            return None
        return self.scale[: len(x)], self.shift[: len(x)]

    def step(self, t: int, x: Tensor) -> Tensor:
        """One step [B, C, *] by its 0-based number."""
        self._check(t)
        shape = [-1, *[1] * (x.ndim - 2)]
        return x * self.scale[t].view(shape).to(x.dtype) + self.shift[t].view(shape).to(x.dtype)

    def _check(self, t: int) -> None:
        at_step(t, len(self.scale), self)
        if self.training:
            raise FoldError(
                "a folded norm cannot be trained.",
                where=located(self),
                do="call model.eval(), or train before fold",
            )


class TimedNorm(ClockedNorm):
    """Mixin: an existing batch norm turned into BNTT (``self.bntt``) or TEBN (``self.tebn``).

    The norm itself stays in use: slot 0 of BNTT, the joint norm of TEBN.
    """

    def sequence(self, x: Tensor) -> Tensor:
        """A whole sequence [T, B, C, *]."""
        if self._folded is not None:
            return self._folded.sequence(x)
        later, tebn = self._attached()
        if later is not None:
            return through_time(x, [self._first, *map(Slot.of, later)], self)
        if tebn.stats == "step":
            return scaled(through_time(x, [self._own] * len(tebn.scale), self), tebn.scale)
        check_exact(len(x), len(tebn.scale), self, training=self.training)
        y = self._own(x.flatten(0, 1))
        return scaled(y.view(x.shape), tebn.scale)

    def step(self, t: int, x: Tensor) -> Tensor:
        """One step [B, C, *] by its 0-based number."""
        if self._folded is not None:
            return self._folded.step(t, x)
        later, tebn = self._attached()
        at_step(t, len(later) + 1 if later is not None else len(tebn.scale), self)
        if later is not None:
            return self._first(x) if t == 0 else later[t - 1](x)
        if self.training and tebn.stats == "joint":
            raise joint_per_call(self)
        return self._own(x) * tebn.scale[t].to(x.dtype)

    @property
    def _folded(self) -> FoldedTime | None:
        part = self._modules.get("bntt") or self._modules.get("tebn")
        return part if isinstance(part, FoldedTime) else None

    def _attached(self) -> tuple[LaterSlots | None, TemporalScale]:
        return self._modules.get("bntt"), self._modules.get("tebn")  # type: ignore[return-value]

    @property
    def _own(self) -> Slot:
        return Slot(self, self.bias, is_called=False)  # type: ignore[arg-type]

    @property
    def _first(self) -> Slot:
        later = self._modules["bntt"]
        return self._own if isinstance(later, LaterSlots) and later.bias else self._own._replace(bias=None)


class NormalisedInput(nn.Module):
    """Mixin: a neuron whose input goes through ``self.bntt`` or ``self.tebn`` first."""

    @property
    def input_norm(self) -> BatchNormThroughTime | TemporalEffectiveBatchNorm | FoldedTime:
        """The norm; its `sequence` and `step` take whole sequences and single steps."""
        return self._modules.get("bntt") or self._modules["tebn"]  # type: ignore[return-value]
