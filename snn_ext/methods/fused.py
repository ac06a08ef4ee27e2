"""Whole steps and sequences by the fused kernels, inside neurons of a framework."""

from __future__ import annotations

from torch import Tensor, nn

from snn_ext import kernels
from snn_ext.dynamics.description import Dynamics
from snn_ext.methods.norms import FoldedMembraneNorm, MembraneBatchNorm, NormalisedMembrane

__all__ = ["FusedNeuron"]


class FusedNeuron(nn.Module):
    """Mixin: a neuron whose step snn-ext's kernels can take, because its equations are known.

    Adapters ask `fuses` first, and take the framework's own step where the answer is no.
    """

    _ext_backend: str | None = None  # None: the framework's own step

    def fuses(self, x: Tensor) -> bool:
        """Whether the kernels take a step with this input, [T, B, *] or [B, *]."""
        return self._ext_backend is not None and kernels.takes(x)

    def fused(
        self,
        x: Tensor,
        dynamics: Dynamics,
        *,
        v: Tensor | None = None,
        v0: Tensor | float | None = None,
        resume: bool = False,
        store: bool = False,
    ) -> kernels.Result:
        """Run [T, B, *]; the arguments are those of `snn_ext.kernels.Call`."""
        norm = self.mpbn if isinstance(self, NormalisedMembrane) else None
        folded = None
        if isinstance(norm, FoldedMembraneNorm):
            norm.check(x[0])
            folded = (norm.threshold, norm.sign)
        call = kernels.Call(x, dynamics, v=v, v0=v0, resume=resume, folded=folded, store=store)
        if isinstance(norm, MembraneBatchNorm):
            return kernels.run_normalised(call, norm.statistics(), carry=norm.carry)
        return kernels.run(call, backend=self._ext_backend or "auto")
