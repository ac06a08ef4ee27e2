"""A fused kernel as one differentiable function over all steps, for every backend that can launch one."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from snn_ext.dynamics.description import Dynamics
from snn_ext.errors import OptionError
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.launches import Backward, Inputs, Launcher, Plan, backward, forward
from snn_ext.kernels.spec import Variant, equations, numeric, spec

__all__ = ["Needs", "finish", "needs", "prepare", "run", "saved", "twice"]

_Rest = tuple[bool, bool, float | None]
"""Whether to resume and to store, and v0 where it is a number."""
Needs = tuple[bool, ...]
"""Whether a gradient is asked for, of each of the first seven `Inputs`."""


def run(call: Call, launcher: Launcher, *, unrolled: int | None = None, smooth: bool = False) -> Result:
    """Run a call; arguments as for `prepare`."""
    plan, inputs = prepare(call, launcher, unrolled=unrolled, smooth=smooth)
    if torch.is_grad_enabled():
        wanted = needs(inputs)
        if True in wanted:
            given = [t for t in inputs[:7] if t is not None]
            return Result(*_Fused.apply(plan, inputs, wanted, *given))
    out = forward(plan, inputs, keep=False)
    return Result(out.spikes, out.membrane, out.membranes)


def prepare(
    call: Call, launcher: Launcher, *, unrolled: int | None = None, smooth: bool = False
) -> tuple[Plan, Inputs]:
    """A call as its tensors, and the rest.

    Args:
        call: one that `spec.refusal` has nothing against.
        launcher: the backend.
        unrolled: None keeps h for the backward; otherwise it is computed again, see `Spec.unrolled`.
        smooth: spikes are the surrogate's primitive (float64 on the host, for gradient checks).
    """
    d, x, v, v0 = call.dynamics, call.x, call.v, call.v0
    if v is not None and (v.shape != x.shape[1:] or v.dtype != call.state_dtype or v.device != x.device):
        v = _carried(v, call)
    v0_tensor, v0_value = (v0, None) if isinstance(v0, Tensor) else (None, v0)
    affine, folded = call.scale is not None or call.shift is not None, call.folded is not None
    variant = Variant(folded, affine, smooth, unrolled, x.dtype)
    rest = (call.resume, call.store, v0_value)
    given: tuple[Tensor | None, ...]
    if numeric(d) and not torch.compiler.is_compiling():
        plan, given = _plan(launcher, d, variant, rest), (None, None, None, None)
    else:
        plan, given = _plan_of_tensors(launcher, d, variant, rest)
    decay, threshold, gain, offset = given
    return plan, Inputs(
        x,
        v,
        v0_tensor,
        decay,
        threshold,
        call.scale,
        call.shift,
        gain,
        offset,
        *(call.folded or (None, None)),
    )


def _carried(v: Tensor, call: Call) -> Tensor:
    if v.shape != call.x.shape[1:]:
        raise OptionError(
            f"a carried membrane {list(v.shape)} is none of an input {list(call.x.shape)}.",
            do="reset the neuron before inputs of another shape",
        )
    return v.to(call.x.device, call.state_dtype)


def _plan_of_tensors(launcher: Launcher, d: Dynamics, variant: Variant, rest: _Rest) -> tuple[Plan, Any]:
    e = equations(d)
    values = (e.decay, e.threshold, e.gain, e.offset)
    tensors = [value if isinstance(value, Tensor) else None for value in values]
    decay, threshold, gain, offset = (0.0 if isinstance(p, Tensor) else float(p) for p in values)
    learn = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors[:2])
    kernel = spec(d, variant, learn=learn)
    resume, store, v0 = rest
    a, b = e.surrogate
    keeps_h = variant.unrolled is None
    plan = Plan(launcher, kernel, keeps_h, resume, store, v0, decay, threshold, gain, offset, e.rest, a, b)
    return plan, tensors


@functools.lru_cache(maxsize=256)
def _plan(launcher: Launcher, d: Dynamics, variant: Variant, rest: _Rest) -> Plan:
    return _plan_of_tensors(launcher, d, variant, rest)[0]


def needs(inputs: Inputs) -> Needs:
    """Which inputs require a gradient."""
    return tuple([t is not None and t.requires_grad for t in inputs[:7]])


class _Fused(torch.autograd.Function):
    """Keeps h or x, never an output: users change spikes in place."""

    @staticmethod
    def forward(
        ctx: Any, plan: Plan, inputs: Inputs, wanted: Needs, *given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        out = forward(plan, inputs, keep=True)
        ctx.plan, ctx.needs, ctx.dtype = plan, wanted, out.spikes.dtype
        ctx.given = [i for i in range(7) if inputs[i] is not None]
        ctx.v0 = None if inputs.v0 is None else (inputs.v0.shape, inputs.v0.dtype)
        ctx.save_for_backward(out.h, *saved(plan, inputs, wanted))
        ctx.set_materialize_grads(False)
        return out.spikes, out.membrane, out.membranes

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return None, None, None, *_backward(ctx, grads)
        with torch.no_grad():
            results = _backward(ctx, grads)
        sources = [t for t in (*ctx.saved_tensors, *grads) if t is not None]
        return None, None, None, *(g if g is None else once(g, *sources) for g in results)


def _backward(ctx: Any, grads: Any) -> list[Tensor | None]:
    h, *tensors = ctx.saved_tensors
    inputs, wanted = Inputs(*tensors), ctx.needs
    _, v, v0, decay, threshold, scale, shift = wanted
    out = backward(
        ctx.plan,
        inputs,
        h,
        grads,
        (v or v0, decay, threshold),
        ctx.dtype,
        unscaled=scale or shift,
        v0=None if v or not v0 else ctx.v0[0],
    )
    results = finish(inputs, out, wanted, ctx.v0)
    return [results[i] for i in ctx.given]


def saved(plan: Plan, inputs: Inputs, wanted: Needs) -> Inputs:
    """The inputs that the backward reads."""
    if not plan.keeps_h:
        return inputs
    _, _, _, decay, threshold, scale, shift = wanted
    learn = decay or threshold
    x = scale or shift or (learn and "INPUT" in plan.kernel.charge)
    v = learn or (plan.resume and plan.kernel.delayed)
    return Inputs(inputs.x if x else None, inputs.v if v else None, inputs.v0 if learn else None, *inputs[3:])


def finish(
    inputs: Inputs, out: Backward, wanted: Needs, v0: tuple[torch.Size, torch.dtype] | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the first seven inputs from those per neuron."""
    grad_x, (x, v, start, decay, threshold, scale, shift) = out.x, wanted
    grad_scale = _channels(grad_x, inputs.x, inputs.scale) if scale else None
    grad_shift = _channels(grad_x, None, inputs.shift) if shift else None
    if x and (scale or shift) and inputs.scale is not None:
        p = inputs.scale
        grad_x = (grad_x * p.view(*p.shape[:-1], 1, p.shape[-1], *[1] * (grad_x.ndim - 3))).to(grad_x.dtype)
    return (
        grad_x if x else None,
        out.v if v else None,
        _total(out.v, *v0) if start and v0 else None,
        _like(out.decay, inputs.decay) if decay else None,
        _like(out.threshold, inputs.threshold) if threshold else None,
        grad_scale,
        grad_shift,
    )


def _total(grad: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """A gradient per neuron, summed over what the parameter is broadcast over."""
    if grad is None:
        return None
    total = grad.view(shape) if grad.numel() == math.prod(shape) else grad.sum_to_size(shape)
    return total.to(dtype)


def _like(grad: Tensor | None, p: Tensor | None) -> Tensor | None:
    return None if p is None else _total(grad, p.shape, p.dtype)


def _channels(grad: Tensor, factor: Tensor | None, p: Tensor | None) -> Tensor | None:
    """The sum of grad (times a factor) for a parameter [C] or [T, C]."""
    if p is None:
        return None
    state = torch.promote_types(grad.dtype, torch.float32)
    product = grad if factor is None else grad.to(state) * factor.to(state)
    over = [d for d in range(grad.ndim) if d != 2 and (d != 0 or p.ndim == 1)]
    return product.sum(over, dtype=state).to(p.dtype)


def once(grad: Tensor, *sources: Tensor) -> Tensor:
    """A gradient that cannot be differentiated again.

    x may not be among the sources (h is kept in its stead), so that the gradient requires a gradient by
    itself: a second backward pass must fail, not leave it out.
    """
    return _Once.apply(grad.requires_grad_(), *sources)  # type: ignore[no-any-return]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise twice()


def twice() -> OptionError:
    """The error of a second derivative."""
    return OptionError(
        "the gradient of a fused neuron cannot be differentiated again.",
        why="its backward pass is a kernel of its own, which records no graph",
        do="run the forward pass within snn_ext.use_backend('reference')",
    )
