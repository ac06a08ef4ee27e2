"""What a `Call` means in the words of `dynamics.functional`, and how backends are compared with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from snn_ext import functional
from snn_ext.dynamics.description import Dynamics, Leak
from snn_ext.kernels.arguments import Call, Result

Run = Callable[[Call], Result]


def composite(
    call: Call,
    *,
    decide: functional.Decide | None = None,
    pending: Tensor | None = None,
    smooth: bool = False,
) -> Result:
    """The call by `functional.multistep`, with autograd's own gradients."""
    d, x = call.dynamics, call.x.to(call.state_dtype)
    if call.scale is not None:
        x = over_channels(call.scale, x) * x
    if call.shift is not None:
        x = x + over_channels(call.shift, x)
    if call.folded is not None:
        decide = functional.decide_folded(*call.folded, fires_at_equality=d.fires_at_equality)
    if call.v is None:  # as a tensor: a number would be rounded to float32 first
        start = torch.as_tensor(d.rest if call.v0 is None else call.v0, dtype=x.dtype)
    else:
        start = call.v if call.v0 is None else call.v + call.v0
    if pending is None and call.v is not None and call.resume:
        pending = (decide or functional.decide_plain(d, smooth=smooth))(call.v)[0]
    s, v, vs = functional.multistep(x, start, d, pending=pending, decide=decide, smooth=smooth)
    return Result(s.to(call.x.dtype), v, vs if call.store else None)


def over_channels(affine: Tensor, x: Tensor) -> Tensor:
    return affine.view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))


def leaves(call: Call) -> dict[str, Tensor]:
    """Every tensor of a call that may be learned."""
    d = call.dynamics
    named = {
        "x": call.x,
        "v": call.v,
        "v0": call.v0,
        "scale": call.scale,
        "shift": call.shift,
        "threshold": d.threshold,
        "rate": d.leak.value if d.leak else d.decay,
        "gain": None if d.leak else d.gain,
    }
    return {k: t for k, t in named.items() if isinstance(t, Tensor)}


def with_leaves(call: Call, new: dict[str, Tensor]) -> Call:
    """The same call with other tensors."""
    d, inputs = call.dynamics, {k: v for k, v in new.items() if k in ("x", "v", "v0", "scale", "shift")}
    changed: dict[str, Any] = {"threshold": new.get("threshold", d.threshold)}
    if d.leak:
        changed["leak"] = replace(d.leak, value=new.get("rate", d.leak.value))
    else:
        changed |= {"decay": new.get("rate", d.decay), "gain": new.get("gain", d.gain)}
    return replace(call, dynamics=replace(d, **changed), **inputs)


def learning(call: Call, names: Sequence[str] | None = None) -> tuple[Call, dict[str, Tensor]]:
    """A copy whose tensors (of these names) require gradients, and those tensors."""
    wanted = {k: t for k, t in leaves(call).items() if names is None or k in names}
    new = {k: t.detach().clone().requires_grad_() for k, t in wanted.items()}
    return with_leaves(call, new), new


def gradients(call: Call, run: Run, learned: Iterable[Tensor] = ()) -> tuple[Result, dict[str, Tensor]]:
    """Everything `run` returns, and the gradients of a fixed random projection of it, with respect to all
    tensors of the call and to the `learned` ones."""
    call, tensors = learning(call)
    tensors |= {f"learned {n}": t for n, t in enumerate(learned)}
    result = run(call)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for output in result:
        if output is not None:
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            loss = loss + (output.double() * weights).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()), materialize_grads=True)
    return result, dict(zip(tensors, grads, strict=True))


def assert_same(ours: Result, truth: Result) -> None:
    """Bit for bit."""
    for name, got, wanted in zip(truth._fields, ours, truth, strict=True):
        assert (got is None) == (wanted is None), name
        if got is not None and wanted is not None:
            assert got.dtype == wanted.dtype, name
            assert torch.equal(got, wanted), f"{name} differ"


def assert_close(ours: dict[str, Tensor], truth: dict[str, Tensor], relative: float) -> None:
    """Relative to the largest gradient of each tensor. A parameter's gradient is a sum of many terms, which
    may cancel: it may have the error of the terms."""
    assert ours.keys() == truth.keys()
    largest = {name: t.double().abs().max() if t.numel() else torch.zeros(()) for name, t in truth.items()}
    for name, wanted in truth.items():
        scale = largest[name] if name in ("x", "v") else 4 * torch.maximum(largest[name], largest["x"])
        error = (ours[name].double() - wanted.double()).abs()
        assert bool((error <= relative * scale).all()), f"d{name}: {error.max():.2e} of {scale:.2e}"


def check(call: Call, run: Run, truth: Run = composite, *, relative: float | None = None) -> None:
    """Outputs bit for bit, gradients of everything to rounding."""
    if relative is None:
        relative = 1e-10 if call.x.dtype is torch.float64 else 2e-6
    result, grads = gradients(call, run)
    wanted, wanted_grads = gradients(call, truth)
    assert_same(result, wanted)
    assert_close(grads, wanted_grads, relative)


def dyadic(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Quarters: sums of them are exact, and hit a threshold of 1 exactly."""
    return torch.randint(-2, 7, shape).to(dtype) / 4


FORMS: dict[str, Callable[[], Dynamics]] = {
    "if": lambda: Dynamics(),
    "plain": lambda: Dynamics(0.5, 0.75, rest=0.25),
    "odd": lambda: Dynamics(0.9, 1.0, threshold=0.7, rest=-0.1),
    "leak/2": lambda: Dynamics(leak=Leak(2.0)),
    "leak/3": lambda: Dynamics(leak=Leak(3.0), rest=0.1),
    "leak*": lambda: Dynamics(leak=Leak(0.3, divide=False)),
    "state/2": lambda: Dynamics(leak=Leak(2.0, input=False), rest=0.25),
    "half": lambda: Dynamics(leak=Leak(2.0, input=False)),
    "state/3": lambda: Dynamics(leak=Leak(3.0, input=False)),
    "state*": lambda: Dynamics(leak=Leak(0.25, divide=False, input=False)),
}
