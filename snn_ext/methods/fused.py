"""Whole steps and sequences by the fused kernels, inside neurons of a framework."""

from __future__ import annotations

from torch import Tensor, nn

from snn_ext import kernels
from snn_ext.dynamics.description import Dynamics
from snn_ext.methods.norms import FoldedMembraneNorm, MembraneBatchNorm

__all__ = ["FusedNeuron"]


class FusedNeuron(nn.Module):
    """Mixin: a neuron whose step snn-ext's kernels can take, because its equations are known.

    Adapters ask `fuses` first, and take the framework's own step where the answer is no.
    """

    _ext_backend: str | None = None  # None: the framework's own step

    def fuses(self, x: Tensor) -> bool:
        """Whether the kernels take a step with this input, [T, B, *] or [B, *]."""
        return (
            self._ext_backend is not None
            and kernels.takes(x)
            and self._fuses_norm()
            and kernels.wanted() != kernels.FRAMEWORK
        )

    def _fuses_norm(self) -> bool:
        norm = self._modules.get("mpbn")
        if isinstance(norm, MembraneBatchNorm):
            return norm.fusible
        return norm is None or (isinstance(norm, FoldedMembraneNorm) and not self.training)

    def fused(
        self,
        x: Tensor,
        dynamics: Dynamics,
        *,
        v: Tensor | None = None,
        v0: Tensor | float | None = None,
        resume: bool = False,
        affine: tuple[Tensor, Tensor] | None = None,
        store: bool = False,
    ) -> kernels.Result:
        """Run [T, B, *]; the arguments are those of `snn_ext.kernels.Call`, `affine` its scale and shift."""
        norm, folded = self._modules.get("mpbn"), None
        if isinstance(norm, FoldedMembraneNorm):
            norm.check(x[0])
            folded = (norm.threshold, norm.sign)
        scale, shift = affine or (None, None)
        call = kernels.Call(x, dynamics, v, v0, resume, folded, scale, shift, store)
        if isinstance(norm, MembraneBatchNorm):
            return kernels.run_normalised(call, norm.for_steps(x))
        if self._ext_backend == "auto":
            return kernels.run(call)
        with kernels.preferred(self._ext_backend):
            return kernels.run(call)
