"""Which tensors a compiled kernel may be given: only what really lies in memory, seen by nobody else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["takes"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_PLAIN = (Tensor, nn.Parameter)


def takes(x: Tensor) -> bool:
    """Whether x is a plain tensor of a kernel's type, and nobody traces, transforms or counts operations.

    Under torch.compile, torch.func, forward-mode gradients, fake tensors and dispatch modes (operation
    counters among them), neurons run as what those tools understand: plain torch.
    """
    return (
        type(x) in _PLAIN
        and x.dtype in _DTYPES
        and x.layout is torch.strided
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
