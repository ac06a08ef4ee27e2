"""A neuron over all time steps in plain torch, with a backward pass of its own: no compiler needed.

Composite autograd records every operation of every step. This is one function of few operations, which
runs over the neurons in parts that stay in the cache and keeps 4 bytes per neuron and step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from snn_ext.dynamics import functional
from snn_ext.errors import OptionError
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.inplace import Parameters
from snn_ext.kernels.parts import Inputs, Part, Rule, blocks, steps
from snn_ext.kernels.torch_gradients import Into, Outer, Room, backward, needs_input

__all__ = ["gather", "refuse_double", "room_for_result", "run"]


def run(call: Call, *, smooth: bool = False) -> Result:
    """Run a neuron over a whole sequence.

    Args:
        call: what to run. Decisions by folded thresholds pass no gradient.
        smooth: replace the spike by the surrogate's primitive (for gradient checks only).

    Raises:
        OptionError: in the backward pass, if it is to be differentiated again.
    """
    inputs = gather(call, pending(call, smooth=smooth))
    rule = Rule(call.dynamics, None if call.folded is None else signed(*call.folded), smooth)
    # By folded thresholds nothing is learned: there is no gradient to any of the inputs.
    learns = torch.is_grad_enabled() and call.folded is None
    if learns and any(t is not None and t.requires_grad for t in inputs):
        return Result(*_Multistep.apply(rule, call.store, *inputs))
    with torch.no_grad():
        return _forward(rule, inputs, None, store=call.store)


def signed(threshold: Tensor, sign: Tensor) -> tuple[Tensor, Tensor | None]:
    """Folded thresholds as sign * threshold, and the sign where there are negative ones."""
    if sign.device.type == "cpu" and bool((sign > 0).all()):  # elsewhere, looking would mean waiting
        return threshold, None
    return threshold * sign, sign


def pending(call: Call, *, smooth: bool = False) -> Tensor | None:
    """The spikes of the step before the first, where their reset is still due."""
    d = call.dynamics
    if call.v is None or not call.resume or d.timing != "delayed":
        return None
    if call.folded is None:
        decide = functional.decide_plain(d, smooth=smooth)
    else:
        decide = functional.decide_folded(*call.folded, fires_at_equality=d.fires_at_equality)
    return decide(call.v.to(call.state_dtype))[0]


def gather(call: Call, pending: Tensor | None) -> Inputs:
    """Everything that may have a gradient, made of a call by operations that pass it on; `pending` are the
    spikes of the step before the first, whose delayed reset is still due."""
    d, dtype, device = call.dynamics, call.state_dtype, call.x.device
    v0 = None if call.v0 is None else torch.as_tensor(call.v0, dtype=dtype, device=device)
    if call.v is not None:
        start = call.v.to(dtype) if v0 is None else call.v.to(dtype) + v0
    else:
        start = torch.scalar_tensor(d.rest, dtype=dtype, device=device) if v0 is None else v0
    owed = None
    due = pending if d.timing == "delayed" else None
    if due is not None and d.reset == "hard":
        start = functional.reset(start, due, d)
    elif due is not None and d.reset == "soft":
        owed = d.threshold * (due.detach() if d.detach_reset else due)
    scale, shift = (over_channels(p, call.x) for p in (call.scale, call.shift))
    return Inputs(
        call.x, start.expand(call.x.shape[1:]), owed, scale, shift, *Parameters.of(d, dtype, device)
    )


def over_channels(affine: Tensor | None, x: Tensor) -> Tensor | None:
    """[T, C] or [C] as it broadcasts to [T, B, C, *]."""
    if affine is None:
        return None
    return affine.to(torch.promote_types(x.dtype, torch.float32)).view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))


def _forward(rule: Rule, inputs: Inputs, charged: Tensor | None, *, store: bool) -> Result:
    """Run all parts; charged membranes are left in `charged` where there is room for them."""
    result = room_for_result(inputs, store=store)
    for index in blocks(inputs.x[0]):
        part = Part(rule, inputs, index)
        part.run(
            part.spare() if charged is None else steps(charged, index),
            steps(result.spikes, index),
            result.membrane[index],
            None if result.membranes is None else steps(result.membranes, index),
        )
    return result


def room_for_result(inputs: Inputs, *, store: bool) -> Result:
    """Of the kind, and laid out like the input."""
    x, dtype = inputs.x, inputs.start.dtype
    membranes = torch.empty_like(x, dtype=dtype) if store else None
    return Result(torch.empty_like(x), torch.empty_like(x[0], dtype=dtype), membranes)


class _Multistep(torch.autograd.Function):
    """Keeps the charged membranes; or the input instead, where the backward pass needs it or where it is
    the smaller. Never the output: users change spikes in place."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, store: bool, *tensors: Tensor | None) -> Result:
        inputs = Inputs(*tensors)  # type: ignore[arg-type]
        ctx.rule, ctx.wanted = rule, Inputs(*ctx.needs_input_grad[2:])
        x, dtype = inputs.x, inputs.start.dtype
        again = x.dtype != dtype or needs_input(rule, ctx.wanted)
        charged = None if again else torch.empty_like(x, dtype=dtype)
        result = _forward(rule, inputs, charged, store=store)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(charged, x if again else None, *inputs[1:])
        return result

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double()
        charged, x, *others = ctx.saved_tensors
        inputs = Inputs(charged if x is None else x, *others)
        return None, None, *_backward(ctx.rule, inputs, charged, ctx.wanted, outer)


def refuse_double() -> None:
    """Called in a backward pass that is written by hand."""
    if torch.is_grad_enabled():
        raise OptionError(
            "the gradient of a fused neuron cannot be differentiated again (create_graph=True).",
            why="its backward pass is written by hand and records no graph",
            do="run the model within snn_ext.use_backend('reference')",
        )


def _backward(
    rule: Rule, inputs: Inputs, charged: Tensor | None, wanted: Inputs, outer: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `inputs` that are wanted. Where there are charged membranes, they stand in for x."""
    room = Room.of(inputs, wanted, inputs.x.dtype)
    for index in blocks(inputs.x[0]):
        part = Part(rule, inputs, index)
        h = part.charged() if charged is None else steps(charged, index)
        backward(part, h, h, Outer.of(outer, index), Into.of(room, index, len(h)))
    return room.gradients(rule, inputs)
