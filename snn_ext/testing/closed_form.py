"""The derivative of every spike by the membrane its sequence starts from, written out step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_ext.dynamics import functional
from snn_ext.dynamics.description import Dynamics

__all__ = ["spike_derivatives"]


def spike_derivatives(x: Tensor, v0: Tensor, dynamics: Dynamics) -> Tensor:
    """dS[t]/dV0 for every step, sample and neuron, [T, B, *]; no autograd involved.

    With psi the surrogate derivative and theta the threshold, from dV[0] = 1::

        dH[t] = decay * dV[t-1]                 dS[t] = psi(H[t] - theta) * dH[t]
        hard reset   dV[t] = (1 - S[t]) * dH[t] + (rest - H[t]) * dS[t]
        soft reset   dV[t] = dH[t] - theta * dS[t]

    where the last term is missing if the reset is detached. A delayed reset carries H and its
    derivative, and applies the same lines to them at the next step.

    Args:
        x: input [T, B, *].
        v0: initial membrane, broadcastable to [B, *].
        dynamics: the neuron.
    """
    d = dynamics
    v = v0.expand(x.shape[1:])
    dv = torch.ones_like(v)
    s = ds = torch.zeros_like(v)
    result = []
    with torch.no_grad():
        for t, x_t in enumerate(x):
            if d.timing == "delayed" and d.reset == "hard" and t:
                v, dv = _reset(v, dv, s, ds, d)
            h, dh = functional.charge(x_t, v, d), d.decay * dv
            if d.timing == "delayed" and d.reset == "soft" and t:
                h, dh = _reset(h, dh, s, ds, d)
            u = h - d.threshold
            s = (u >= 0 if d.fires_at_equality else u > 0).to(h.dtype)
            ds = d.surrogate.derivative(u) * dh
            v, dv = _reset(h, dh, s, ds, d) if d.timing == "immediate" else (h, dh)
            result.append(ds)
    return torch.stack(result)


def _reset(h: Tensor, dh: Tensor, s: Tensor, ds: Tensor, d: Dynamics) -> tuple[Tensor, Tensor]:
    through = torch.zeros_like(ds) if d.detach_reset else ds
    if d.reset == "hard":
        return h * (1 - s) + d.rest * s, dh * (1 - s) + (d.rest - h) * through
    if d.reset == "soft":
        return h - d.threshold * s, dh - d.threshold * through
    return h, dh
