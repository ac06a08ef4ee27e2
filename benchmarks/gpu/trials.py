"""Calls that between them use every specialisation of the kernels: the list of the kernel tests, and more.

The tests' calls are tiny; a device also has to be right with many blocks, with several neurons per thread
and with other numbers of steps, which are other kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snn_ext.kernels import Call
from tests.kernels import cases, composite

__all__ = ["Trial", "moved", "trials"]

STEPS = (1, 4, 8, 16, 33)  # 4, 4, 2 and 1 neurons per thread with h in registers, and h kept
HALVES = (torch.float32, torch.bfloat16, torch.float32, torch.float16)


@dataclass(frozen=True)
class Trial:
    """One call, on the CPU."""

    family: str
    call: Call
    learns: bool = True

    @property
    def name(self) -> str:
        """For messages: what the call has, and its input."""
        c, d = self.call, self.call.dynamics
        has = [n for n in ("v", "v0", "folded", "scale", "shift") if getattr(c, n) is not None]
        x = f"{str(c.x.dtype).removeprefix('torch.')} {list(c.x.shape)}"
        return " ".join([self.family, f"({type(d.surrogate).__name__})", x, *has])


def trials(batch: int) -> list[Trial]:
    """All of them, with `batch` samples in the larger ones; shuffled, so that any part is a fair sample."""
    found = []
    for family, neurons in cases.FAMILIES.items():
        calls = cases.calls(neurons)
        found += [Trial(family, call) for call in calls]
        # An odd number of samples now and then: sizes that are no multiple of anything.
        found += [
            Trial(family, resized(c, STEPS[i % 5], batch + i % 2, HALVES[i % 4]))
            for i, c in enumerate(calls[::2])
        ]
        found += [Trial(family, moved(c, dtype=torch.float64)) for c in calls[::8]]
        found += [Trial(family, folded(c), learns=False) for c in calls[1::5]]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order]


def moved(call: Call, device: str = "cpu", dtype: torch.dtype | None = None) -> Call:
    """The call with tensors elsewhere, or with inputs of another type (all tensors, for float64)."""
    state = torch.float64 if dtype is torch.float64 else None

    def move(name: str, t: Tensor) -> Tensor:
        kind = dtype if name == "x" else state
        return t.detach().to(device, kind or t.dtype).clone().requires_grad_(t.requires_grad)

    new = composite.with_leaves(call, {k: move(k, t) for k, t in composite.leaves(call).items()})
    if call.folded is None:
        return new
    threshold, sign = (t.to(device, state or t.dtype) for t in call.folded)
    return replace(new, folded=(threshold, sign))


def resized(call: Call, steps: int, batch: int, dtype: torch.dtype) -> Call:
    """The call with another number of steps and samples, with values drawn from those it has."""
    generator = torch.Generator().manual_seed(steps)
    sizes = {"x": (steps, batch), "v": (batch,)}
    for name in ("scale", "shift"):
        sizes[name] = (steps,) if getattr(call, name) is not None and getattr(call, name).ndim == 2 else ()
    sizes["v0"] = (batch,) if isinstance(call.v0, Tensor) and call.v0.ndim == call.x.ndim - 1 else ()

    def draw(name: str, t: Tensor) -> Tensor:
        size = sizes.get(name, ())
        if not size:
            return t
        values = t.detach().flatten()
        shape = (*size, *t.shape[len(size) :])
        places = torch.randint(values.numel(), shape, generator=generator)
        return values[places].to(dtype if name == "x" else t.dtype).requires_grad_(t.requires_grad)

    return composite.with_leaves(call, {k: draw(k, t) for k, t in composite.leaves(call).items()})


def folded(call: Call) -> Call:
    """The call with the signed thresholds of a folded MPBN, per channel."""
    channels = call.x.shape[2]
    shape = (channels, *[1] * (call.x.ndim - 3))
    threshold = torch.linspace(0.25, 1.25, channels).mul(4).round().div(4).view(shape)
    sign = torch.ones(channels).index_fill_(0, torch.tensor([0]), -1.0).view(shape)
    return replace(call, folded=(threshold, sign))
