"""Memory order of the tensors of a launch: kernels see [T, N], whatever the order of a step's dimensions.

Neurons are numbered as they lie in memory, so that a channels_last sequence runs without a copy.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from snn_ext.errors import OptionError
from snn_ext.kernels.abi import Parameter

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Shape of a step [B, *], its dense strides, and its dimensions from the slowest to the fastest."""

    shape: torch.Size
    strides: tuple[int, ...]
    order: tuple[int, ...] | None  # None: as they are numbered
    neurons: int  # of one step

    @classmethod
    def of(cls, x: Tensor) -> Layout:
        """The memory order of the steps of x [T, B, *]; contiguous where they are not dense."""
        if not x.is_contiguous():
            shape, strides = x.shape[1:], x.stride()[1:]
            order = sorted(range(len(shape)), key=lambda d: (shape[d] == 1, -strides[d]))
            moved = [d for d in order if shape[d] != 1]
            if moved != sorted(moved) and all(
                strides[d] == s
                for d, s in zip(order, _dense([shape[d] for d in order]), strict=True)
                if shape[d] != 1
            ):
                return _ordered(shape, tuple(order))
        return _contiguous(x.shape[1:])

    @property
    def sample(self) -> Layout:
        """The same for one sample."""
        shape = torch.Size([1, *self.shape[1:]])
        return _contiguous(shape) if self.order is None else _ordered(shape, self.order)

    def samples(self, shape: torch.Size, least: int) -> bool:
        """Whether samples lie one after the other, `least` neurons or more each, and a parameter of this
        shape has a value for each of them.
        """
        features = self.shape[1:]
        outside = self.order is None or self.order[0] == 0
        each = shape[-len(features) :] == features and math.prod(shape) == math.prod(features)
        return outside and each and math.prod(features) >= least

    def empty(self, like: Tensor, steps: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised step, or a sequence of them."""
        if self.order is None:
            if steps is not None and like.is_contiguous():
                return torch.empty_like(like, dtype=dtype)  # faster than by shape
            shape = self.shape if steps is None else (steps, *self.shape)
            return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
        strides = self.strides if steps is None else (self.neurons, *self.strides)
        shape = self.shape if steps is None else (steps, *self.shape)
        return torch.empty_strided(shape, strides, dtype=dtype or like.dtype, device=like.device)

    def sequence(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x [T, B, *] in this order, itself where it is already; its steps may lie anywhere."""
        if x.dtype == dtype and self._holds(x.shape[1:], x.stride()[1:], x):
            return x
        return self.empty(x, x.shape[0], dtype).copy_(x)

    def step(self, v: Tensor, dtype: torch.dtype) -> Tensor:
        """A step [B, *] in this order, itself where it is already."""
        if v.dtype == dtype and self._holds(v.shape, v.stride(), v):
            return v
        return self.empty(v, None, dtype).copy_(v)

    def _holds(self, shape: tuple[int, ...], strides: tuple[int, ...], t: Tensor) -> bool:
        if self.order is None and t.is_contiguous():
            return True
        # Strides of dimensions of size 1 do not matter.
        return all(a == b for a, b, n in zip(strides, self.strides, shape, strict=True) if n != 1)

    def parameter(self, p: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Parameter, Tensor]:
        """How the kernel finds the value of p, broadcastable to [B, *], for each neuron; and what to keep
        alive meanwhile.

        Raises:
            OptionError: p does not broadcast.
        """
        if p.dtype != dtype or p.device != device:
            p = p.detach().to(device, dtype)
        if p.numel() == 1 and p.ndim <= len(self.shape):
            return Parameter(p.data_ptr(), 1, 1, 0.0), p
        if self.order is None and p.shape == self.shape[1:] and p.is_contiguous():  # the usual one, fast
            return Parameter(p.data_ptr(), 1, p.numel(), 0.0), p
        p = p.detach()
        shape = (1,) * (len(self.shape) - p.ndim) + tuple(p.shape)
        if len(shape) != len(self.shape) or any(
            n not in (1, m) for n, m in zip(shape, self.shape, strict=True)
        ):
            raise OptionError(
                f"a parameter of shape {list(p.shape)} does not broadcast to one step {list(self.shape)}.",
                do="pass a scalar, [C, 1, 1], the feature shape, or [B, *]",
            )
        return self._periodic(p.reshape(shape))

    def _periodic(self, p: Tensor) -> tuple[Parameter, Tensor]:
        order = self.order or range(len(self.shape))
        full = [self.shape[d] for d in order]
        p = p.permute(tuple(order))
        varying = [i for i, n in enumerate(p.shape) if n != 1]
        if not varying:  # empty, or one value after all
            return Parameter(p.data_ptr(), 1, 1, 0.0), p
        first, last = varying[0], varying[-1] + 1
        block = p.expand(*p.shape[:first], *full[first:last], *p.shape[last:]).contiguous()
        return Parameter(block.data_ptr(), math.prod(full[last:]), math.prod(full[first:last]), 0.0), block


def _dense(shape: torch.Size | list[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


@functools.lru_cache(maxsize=256)
def _contiguous(shape: torch.Size) -> Layout:
    return Layout(shape, _dense(shape), None, math.prod(shape))


@functools.lru_cache(maxsize=256)
def _ordered(shape: torch.Size, order: tuple[int, ...]) -> Layout:
    by_dim = dict(zip(order, _dense([shape[d] for d in order]), strict=True))
    return Layout(shape, tuple(by_dim[d] for d in range(len(shape))), order, math.prod(shape))
