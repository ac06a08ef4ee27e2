"""The equations as they are, step by step in plain torch: does everything, and defines what is right."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_ext.dynamics import functional
from snn_ext.errors import OptionError
from snn_ext.kernels.arguments import Call, Result

__all__ = ["run"]


def run(call: Call, *, smooth: bool = False) -> Result:
    """Run a call by `functional.multistep`."""
    d, x = call.dynamics, _affine(call)
    decide = None
    if call.folded is not None:
        decide = functional.decide_folded(*call.folded, fires_at_equality=d.fires_at_equality)
    v, v0 = call.v, call.v0
    start: Tensor | float
    pending = None
    if v is not None:
        v = v.to(call.state_dtype)
        if call.resume and d.timing == "delayed":
            pending, _ = (decide or functional.decide_plain(d, smooth=smooth))(v)
        start = v if v0 is None else v + _step(v0, call)
    else:
        start = d.rest if v0 is None else v0
    out = functional.multistep(x, start, d, pending=pending, decide=decide, smooth=smooth)
    return Result(out.spikes.to(call.x.dtype), out.membrane, out.membranes if call.store else None)


def _step(v0: Tensor | float, call: Call) -> Tensor:
    v = torch.as_tensor(v0, device=call.x.device).to(call.state_dtype)
    try:
        return v.expand(call.x.shape[1:])
    except RuntimeError:
        raise OptionError(
            f"v0 of shape {list(v.shape)} does not broadcast to one step {list(call.x.shape[1:])}.",
            do="pass v0 as a scalar, [C, 1, 1], the feature shape, or [B, *]",
        ) from None


def _affine(call: Call) -> Tensor:
    x = call.x
    if call.scale is None and call.shift is None:
        return x
    x = x.to(call.state_dtype)
    if call.scale is not None:
        x = _channels(call.scale, x) * x
    return x if call.shift is None else x + _channels(call.shift, x)


def _channels(p: Tensor, x: Tensor) -> Tensor:
    """[C] or [T, C] against x [T, B, C, *]."""
    return p.to(x.dtype).view(*p.shape[:-1], 1, p.shape[-1], *[1] * (x.ndim - 3))
