"""Batch norms on membranes, usable with or without a framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snn_ext.dynamics import functional
from snn_ext.dynamics.functional import Decide
from snn_ext.errors import FoldError, ShapeMismatchError
from snn_ext.kernels.mpbn import MembraneNorm
from snn_ext.methods.batch_norms import BatchNorm, check_values, count, described, is_silent
from snn_ext.methods.options import MPBN
from snn_ext.methods.paths import located
from snn_ext.methods.sync import is_synchronised

__all__ = [
    "FiringRule",
    "FoldedMembraneNorm",
    "MembraneBatchNorm",
    "NormalisedMembrane",
    "membrane_batch_norm",
]


class MembraneBatchNorm(nn.Module):
    """Normalises membranes, over the batch (and space) of one step at a time.

    Args:
        features: shape of one sample at one step, [C, *]; only C matters for ``per="channel"``.
        per: ``"channel"`` ([C] statistics, over batch and space) or ``"element"`` ([C, *], over the
            batch).
        carry: see `MPBN`; kept here because folding depends on it.
        eps, momentum, affine: of the batch norm.

    Shapes: [B, C, *] -> the same, one step; [T, B, C, *] -> the same, every step with statistics of its
    own (the rank of `features` tells the two apart).
    """

    def __init__(
        self,
        features: Sequence[int],
        *,
        per: Literal["channel", "element"] = "channel",
        carry: Literal["raw", "normalised"] = "raw",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.per, self.carry = tuple(features), per, carry
        count = math.prod(features) if per == "element" else features[0]
        self.bn = BatchNorm(count, eps, momentum, affine)

    def forward(self, h: Tensor) -> Tensor:
        if h.ndim == len(self.features) + 2:
            return torch.stack([self(h_t) for h_t in h.unbind(0)])
        self._check(h)
        if self.per == "channel":
            return self.bn(h)  # type: ignore[no-any-return]
        return self.bn(h.flatten(1)).view_as(h)  # type: ignore[no-any-return]

    def _check(self, h: Tensor) -> None:
        wanted = self.features if self.per == "element" else self.features[:1]
        if h.ndim != len(self.features) + 1 or tuple(h.shape[1 : 1 + len(wanted)]) != wanted:
            raise ShapeMismatchError(
                f"MembraneBatchNorm was made for features {list(self.features)} per {self.per},"
                f" got [B, C, *] = {list(h.shape)}.",
                where=located(self),
                do="patch with an example_input of this size; per channel only C is fixed",
            )

    @property
    def fusible(self) -> bool:
        """Whether a kernel may take its place: nobody listens, and no other process is asked."""
        silent = is_silent(self) and is_silent(self.bn)
        return silent and not (self.training and is_synchronised(self.bn))

    def for_steps(self, x: Tensor) -> MembraneNorm:
        """What the kernel that normalises the membranes of [T, B, C, *] has to know; counts T batches."""
        self._check(x[0])
        bn = self.bn
        check_values(bn, x[0] if self.per == "channel" else x[0].flatten(1))
        mean, var, weight, bias, eps, batch = described(bn, bn.bias)
        factors = [count(bn) for _ in range(len(x))]
        return MembraneNorm(
            mean, var, weight, bias, eps, factors, batch=batch, carry=self.carry, per=self.per
        )

    @property
    def _stat_shape(self) -> tuple[int, ...]:
        return self.features if self.per == "element" else (self.features[0], *[1] * (len(self.features) - 1))

    def fold(self, threshold: float | Tensor, *, fires_at_equality: bool) -> FoldedMembraneNorm:
        """The same decisions as a threshold and a sign, from the running statistics.

        Raises:
            FoldError: in training mode, without running statistics, with ``carry="normalised"``, or if
                the neuron has a threshold per element and the norm statistics per channel.
        """
        bn = self.bn
        if self.training:
            raise FoldError("a norm in training mode cannot be folded.", do="call model.eval() first")
        if self.carry != "raw":
            raise FoldError(
                "MPBN(carry='normalised') cannot be folded.",
                why="the normalised membrane is carried on, so the norm acts on every later step too",
                do="train with MPBN(carry='raw'), the authors' variant",
            )
        if bn.running_mean is None or bn.running_var is None:
            raise FoldError(
                "a norm without running statistics cannot be folded.",
                do="keep it as it is, or train a norm that tracks its statistics",
            )
        folded, sign = functional.fold_threshold(
            self._flat(threshold),
            bn.running_mean,
            bn.running_var,
            bn.weight,
            bn.bias,
            eps=bn.eps,
            fires_at_equality=fires_at_equality,
        )
        return FoldedMembraneNorm(folded.view(self._stat_shape), sign.view(self._stat_shape))

    def blank_fold(self) -> FoldedMembraneNorm:
        """What `fold` returns, without values: for checkpoints to be loaded into."""
        like = next(iter([*self.parameters(), *self.buffers()]), torch.zeros(()))
        blank = like.new_zeros(self._stat_shape, dtype=like.dtype)
        return FoldedMembraneNorm(blank, blank)

    def _flat(self, threshold: float | Tensor) -> float | Tensor:
        """A threshold per channel or element in the shape of the statistics, [C] or [C * ...]."""
        if not isinstance(threshold, Tensor) or threshold.ndim == 0:
            return threshold
        try:
            return threshold.detach().expand(self._stat_shape).reshape(-1)
        except RuntimeError:
            raise FoldError(
                f"a threshold of shape {list(threshold.shape)} is finer than the norm per {self.per}.",
                do="use MPBN(features='element') for a threshold per neuron",
            ) from None

    def extra_repr(self) -> str:
        return f"features={list(self.features)}, per={self.per!r}, carry={self.carry!r}"


class FoldedMembraneNorm(nn.Module):
    """What `MembraneBatchNorm.fold` returns: buffers `threshold` and `sign`, [C, 1, ...] or [C, *]."""

    threshold: Tensor
    sign: Tensor

    def __init__(self, threshold: Tensor, sign: Tensor) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.detach().clone())
        self.register_buffer("sign", sign.detach().clone())

    def check(self, h: Tensor) -> None:
        """Raises ShapeMismatchError if [B, C, *] has other features than the norm had."""
        shape = tuple(self.threshold.shape)
        if len(shape) != h.ndim - 1 or any(n not in (1, m) for n, m in zip(shape, h.shape[1:], strict=True)):
            raise ShapeMismatchError(
                f"the folded norm has thresholds of shape {list(shape)}, got [B, C, *] = {list(h.shape)}.",
                where=located(self),
                do="run it on inputs of the size it was patched for",
            )


@dataclass(frozen=True)
class FiringRule:
    """How a neuron fires: ``spike(H - threshold)``.

    Args:
        threshold: scalar, or broadcastable to the features.
        spike: surrogate function of the distance to the threshold.
        fires_at_equality: what `spike` does at zero.
    """

    threshold: float | Tensor
    spike: Callable[[Tensor], Tensor]
    fires_at_equality: bool


class NormalisedMembrane(nn.Module):
    """Mixin: a neuron that decides on ``self.mpbn(H)`` instead of H. Adapters provide `firing_rule`."""

    mpbn: MembraneBatchNorm | FoldedMembraneNorm

    def firing_rule(self) -> FiringRule:
        """The neuron's own rule, as it is now."""
        raise NotImplementedError

    def membrane_decision(self) -> Decide:
        """How spikes follow from the charged membrane.

        Raises:
            FoldError: a folded neuron in training mode.
        """
        norm, rule = self.mpbn, self.firing_rule()
        if isinstance(norm, MembraneBatchNorm):
            return functional.decide_normalised(norm, rule.threshold, rule.spike, carry=norm.carry)
        if self.training:
            raise FoldError(
                "a folded neuron cannot be trained.",
                where=located(self),
                do="call model.eval(), or train before fold",
            )
        folded = functional.decide_folded(norm.threshold, norm.sign, fires_at_equality=rule.fires_at_equality)

        def decide(h: Tensor) -> tuple[Tensor, Tensor]:
            norm.check(h)
            return folded(h)

        return decide

    def blank_fold(self) -> FoldedMembraneNorm:
        """A fold without values, for checkpoints to be loaded into."""
        return self.mpbn.blank_fold() if isinstance(self.mpbn, MembraneBatchNorm) else self.mpbn

    def folded(self) -> FoldedMembraneNorm:
        """`MembraneBatchNorm.fold` with this neuron's threshold."""
        rule = self.firing_rule()
        if not isinstance(self.mpbn, MembraneBatchNorm):
            raise FoldError("this neuron is folded already.", do="use it as it is")
        if self.training:
            raise FoldError("a neuron in training mode cannot be folded.", do="call model.eval() first")
        return self.mpbn.fold(rule.threshold, fires_at_equality=rule.fires_at_equality)


def membrane_batch_norm(option: MPBN, features: Sequence[int]) -> MembraneBatchNorm:
    """The module that an option asks for."""
    return MembraneBatchNorm(
        features,
        per=option.features,
        carry=option.carry,
        eps=option.eps,
        momentum=option.momentum,
        affine=option.affine,
    )
