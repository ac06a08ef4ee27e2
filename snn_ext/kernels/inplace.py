"""One step of a neuron in plain torch, written into given memory.

The operations and their order are those of `snn_ext.dynamics.functional`, so that spikes agree to the last
bit. What differs is exact: a spike is 0 or 1, so H - H * S is H * (1 - S).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from snn_ext.dynamics.description import Dynamics, Leak
from snn_ext.kernels.bumps import Bump, in_place

__all__ = ["Equations", "Parameters"]


class Parameters(NamedTuple):
    """The numbers and tensors of a `Dynamics`, all as tensors in the dtype of the membrane."""

    threshold: Tensor
    rate: Tensor
    """decay, or the value of a leak."""
    gain: Tensor

    @classmethod
    def of(cls, d: Dynamics, dtype: torch.dtype, device: torch.device) -> Parameters:
        """Numbers become 0-dimensional tensors: operations with them cost less than with a float."""

        def tensor(value: float | Tensor) -> Tensor:
            if isinstance(value, Tensor):
                return value.to(dtype)
            return torch.scalar_tensor(value, dtype=dtype, device=device)

        if d.leak is not None:
            return cls(tensor(d.threshold), tensor(d.leak.value), tensor(1.0))
        return cls(tensor(d.threshold), tensor(d.decay), tensor(d.gain))


class Equations:
    """Charge, fire and reset.

    Args:
        dynamics: which equations. Of its numbers those are read that are no tensors.
        parameters: its numbers and tensors, broadcastable to the membranes.
        folded: of a folded MPBN, to fire by instead of theta: sign * threshold, and the sign if it is not
            positive everywhere.
        smooth: fire by the surrogate's primitive (for gradient checks only).
    """

    def __init__(
        self,
        dynamics: Dynamics,
        parameters: Parameters,
        *,
        folded: tuple[Tensor, Tensor | None] | None = None,
        smooth: bool = False,
    ) -> None:
        self.d, self.leak, self.rest, self.smooth = dynamics, dynamics.leak, dynamics.rest, smooth
        self.threshold, self.rate, self.gain = parameters
        self.share = None if self.leak is None else _exact_share(self.leak)
        self.offset = self._offset() if self.leak is None and self.rest else None
        self.compared, self.sign = (self.threshold, None) if folded is None else folded
        self.hard, self.soft = dynamics.reset == "hard", dynamics.reset == "soft"
        self.delayed = dynamics.timing == "delayed" and dynamics.reset != "none"
        self.owes = self.delayed and self.soft  # its reset comes after the next charge
        self.resets_now = self.hard or (self.soft and not self.owes)  # before the next charge
        self._bump: Bump | None = None

    def _offset(self) -> Tensor | float:
        decay = self.d.decay
        return (1 - (self.rate if isinstance(decay, Tensor) else decay)) * self.rest

    def charge(self, x: Tensor, v: Tensor, out: Tensor) -> Tensor:
        """H from the input and the membrane before; `out` is neither of them."""
        if self.leak is None:
            return self._charge_plain(x, v, out)
        distance = v - self.rest if self.rest else v
        if self.leak.input:
            torch.sub(x, distance, out=out)
            if self.share is not None:
                return torch.add(v, out, alpha=self.share, out=out)
            return self._lost(out, out).add_(v)
        if self.share == 0.5 and not self.rest:  # V - V / 2 is V / 2
            return torch.add(x, v, alpha=0.5, out=out)
        if self.share is not None:
            return torch.sub(v, distance, alpha=self.share, out=out).add_(x)
        return torch.sub(v, self._lost(distance, out), out=out).add_(x)

    def _lost(self, distance: Tensor, out: Tensor) -> Tensor:
        lose = torch.div if self.leak is not None and self.leak.divide else torch.mul
        return lose(distance, self.rate, out=out)

    def _charge_plain(self, x: Tensor, v: Tensor, out: Tensor) -> Tensor:
        x = x if _is_one(self.d.gain) else self.gain * x
        if _is_one(self.d.decay):
            torch.add(v, x, out=out)
        else:
            torch.mul(v, self.rate, out=out).add_(x)
        return out if self.offset is None else out.add_(self.offset)

    def fire(self, decided: Tensor, out: Tensor) -> Tensor:
        """S as numbers, not as booleans: on a CPU that is the faster comparison."""
        if self.smooth:
            return out.copy_(self.d.surrogate.primitive(decided - self.threshold))
        compare = torch.ge if self.d.fires_at_equality else torch.gt
        if self.sign is not None:
            decided = torch.mul(decided, self.sign, out=out)
        return compare(decided, self.compared, out=out)

    def reset(self, v: Tensor, s: Tensor, out: Tensor) -> Tensor:
        """The membrane after a hard or soft reset by `s`."""
        if self.soft:
            return torch.addcmul(v, self.threshold, s, value=-1, out=out)
        torch.addcmul(v, v, s, value=-1, out=out)
        return out.add_(s, alpha=self.rest) if self.rest else out

    def bump(self, decided: Tensor) -> Tensor:
        """dS/dH, the surrogate's derivative."""
        if self._bump is None:
            self._bump = in_place(self.d.surrogate, decided)
        return self._bump(decided - self.threshold)

    @property
    def slopes(self) -> tuple[Tensor | None, Tensor | None]:
        """dH/dx and dH/dV; None stands for 1, and equal numbers are one tensor."""
        d = self.d
        same = isinstance(d.gain, float) and isinstance(d.decay, float) and d.gain == d.decay
        if self.leak is not None:
            rate = self.rate.reciprocal() if self.leak.divide else self.rate
            return (rate if self.leak.input else None), rate if same else 1 - rate
        gain = None if _is_one(d.gain) else self.gain
        return gain, gain if same else None if _is_one(d.decay) else self.rate

    def rate_slope(self, x: Tensor, v: Tensor) -> Tensor:
        """dH / d`rate`, but for the factor -1 / rate^2 where a leak divides."""
        distance = v - self.rest if self.rest else v
        if self.leak is None:
            return distance
        return x - distance if self.leak.input else -distance


def _is_one(value: float | Tensor) -> bool:
    return not isinstance(value, Tensor) and value == 1


def _exact_share(leak: Leak) -> float | None:
    """What a leak multiplies by where that is a power of two: such a product is exact, so that it may be
    fused with the sum."""
    if isinstance(leak.value, Tensor) or math.frexp(leak.value)[0] != 0.5:
        return None
    return float(leak.rate)
