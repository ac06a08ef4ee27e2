"""The fused neuron as operators of torch: what torch.compile, export and dispatch traces see.

Eager calls go past them (`fused.run`): the dispatcher would cost a small layer more than its kernel.

Arguments are `Sequence`, not `list`: torch 2.6 makes schemas of operators from `typing`'s names only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snn_ext.kernels import fused
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.launches import Backward, Inputs, Launcher, Plan, backward, forward
from snn_ext.kernels.spec import Spec

__all__ = ["register", "run"]

_LAUNCHERS: dict[str, Launcher] = {}


def register(launcher: Launcher) -> None:
    """Make a launcher known under its name."""
    _LAUNCHERS[launcher.name] = launcher


def run(call: Call, launcher: Launcher, *, unrolled: int | None = None, smooth: bool = False) -> Result:
    """Run a call through the operators; arguments as for `fused.prepare`."""
    plan, inputs = fused.prepare(call, launcher, unrolled=unrolled, smooth=smooth)
    keep = torch.is_grad_enabled() and True in fused.needs(inputs)
    spikes, membrane, membranes, _ = torch.ops.snn_ext.neuron_forward(*inputs, *_encode(plan), keep)
    return Result(spikes, membrane, membranes if call.store else None)


def _encode(plan: Plan) -> tuple[str, str, list[bool], list[float]]:
    """A plan in the types that operators take."""
    flags = [plan.keeps_h, plan.resume, plan.store, plan.v0 is not None]
    numbers = [plan.v0 or 0.0, plan.decay, plan.threshold, plan.gain, plan.offset, plan.rest, plan.a, plan.b]
    return plan.launcher.name, plan.kernel.template, flags, numbers


def _decode(launcher: str, kernel: str, flags: Sequence[bool], numbers: Sequence[float]) -> Plan:
    keeps_h, resume, store, has_v0 = flags
    v0, *others = numbers
    return Plan(_LAUNCHERS[launcher], _spec(kernel), keeps_h, resume, store, v0 if has_v0 else None, *others)


@functools.cache
def _spec(template: str) -> Spec:
    return Spec.parse(template)


@torch.library.custom_op("snn_ext::neuron_forward", mutates_args=())
def neuron_forward(
    x: Tensor,
    v: Tensor | None,
    v0: Tensor | None,
    decay: Tensor | None,
    threshold: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    folded: Tensor | None,
    sign: Tensor | None,
    launcher: str,
    kernel: str,
    flags: Sequence[bool],
    numbers: Sequence[float],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spikes, last membrane, membranes and charged membranes (empty where not asked for)."""
    tensors = (v, v0, decay, threshold, scale, shift, gain, offset, folded, sign)
    plan = _decode(launcher, kernel, flags, numbers)
    out = forward(plan, Inputs(x.contiguous(), *tensors), keep=keep)
    return tuple(out.spikes.new_empty(0, dtype=out.membrane.dtype) if t is None else t for t in out)  # type: ignore[return-value]


@neuron_forward.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, (keeps_h, _, store, _), _, keep = others
    state = torch.float64 if x.dtype is torch.float64 else torch.float32
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape[1:], dtype=state),
        x.new_empty(x.shape if store else (0,), dtype=state),
        x.new_empty(x.shape if keep and keeps_h else (0,), dtype=state),
    )


@torch.library.custom_op("snn_ext::neuron_backward", mutates_args=())
def neuron_backward(
    grad_spikes: Tensor | None,
    grad_membrane: Tensor | None,
    grad_membranes: Tensor | None,
    h: Tensor | None,
    x: Tensor | None,
    v: Tensor | None,
    v0: Tensor | None,
    decay: Tensor | None,
    threshold: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gain: Tensor | None,
    offset: Tensor | None,
    folded: Tensor | None,
    sign: Tensor | None,
    launcher: str,
    kernel: str,
    flags: Sequence[bool],
    numbers: Sequence[float],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, first membrane, decay and threshold, per neuron (empty where not wanted)."""
    plan = _decode(launcher, kernel, flags, numbers)
    tensors = (v, v0, decay, threshold, scale, shift, gain, offset, folded, sign)
    of_v, of_decay, of_threshold, unscaled = wanted
    out = backward(
        plan,
        Inputs(None if x is None else x.contiguous(), *tensors),
        h,
        (grad_spikes, grad_membrane, grad_membranes),
        (of_v, of_decay, of_threshold),
        plan.kernel.dtype,
        unscaled=unscaled,
    )
    return tuple(out.x.new_empty(0) if t is None else t for t in out)  # type: ignore[return-value]


@neuron_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = inputs[4] if inputs[3] is None else inputs[3]
    dtype, (*sums, _) = _spec(inputs[16]).dtype, inputs[-1]
    state = torch.float64 if dtype is torch.float64 else torch.float32
    per_neuron = [
        like.new_empty(like.shape[1:], dtype=state) if w else like.new_empty(0, dtype=dtype) for w in sums
    ]
    return like.new_empty(like.shape, dtype=dtype), *per_neuron


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given, (*plan, _) = Inputs(*inputs[:11]), inputs[11:]
    ctx.plan, ctx.needs = plan, ctx.needs_input_grad[:7]
    kept = fused.saved(_decode(*plan), given, ctx.needs)
    ctx.v0 = None if given.v0 is None else (given.v0.shape, given.v0.dtype)
    ctx.save_for_backward(output[3], *kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    h, *tensors = ctx.saved_tensors
    inputs, (_, v, v0, decay, threshold, scale, shift) = Inputs(*tensors), ctx.needs
    flags = ctx.plan[2]
    grad_spikes, grad_membrane, grad_membranes, _ = grads
    out = torch.ops.snn_ext.neuron_backward(
        grad_spikes,
        grad_membrane,
        grad_membranes if flags[2] else None,
        h if flags[0] else None,
        *inputs,
        *ctx.plan,
        [v or v0, decay, threshold, scale or shift],
    )
    found = Backward(*out)
    return (*fused.finish(inputs, found, ctx.needs, ctx.v0), *[None] * 9)


def _never_again(ctx: Any, *grads: Any) -> Any:
    raise fused.twice()


neuron_forward.register_autograd(_backward, setup_context=_setup)
neuron_backward.register_autograd(_never_again)
