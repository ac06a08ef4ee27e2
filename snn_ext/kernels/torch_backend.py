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
from snn_ext.kernels.torch_gradients import Into, Outer, Room, backward

__all__ = ["first_membrane", "over_channels", "refuse_double", "run"]


def run(call: Call, *, smooth: bool = False) -> Result:
    """Run a neuron over a whole sequence.

    Args:
        call: what to run. Decisions by folded thresholds pass no gradient.
        smooth: replace the spike by the surrogate's primitive (for gradient checks only).

    Raises:
        OptionError: in the backward pass, if it is to be differentiated again.
    """
    start, owed = first_membrane(call, smooth=smooth)
    scale, shift = (over_channels(p, call.x) for p in (call.scale, call.shift))
    threshold, rate, gain = Parameters.of(call.dynamics, call.state_dtype)
    inputs = Inputs(call.x, start, owed, scale, shift, threshold, rate, gain)
    rule = Rule(call.dynamics, call.folded, smooth)
    # By folded thresholds nothing is learned: there is no gradient to any of the inputs.
    learns = torch.is_grad_enabled() and call.folded is None
    if learns and any(t is not None and t.requires_grad for t in inputs):
        return Result(*_Multistep.apply(rule, call.store, *inputs))
    with torch.no_grad():
        return _forward(rule, inputs, None, store=call.store)


def first_membrane(call: Call, *, smooth: bool = False) -> tuple[Tensor, Tensor | None]:
    """The membrane [B, *] that the first step charges, and what a delayed soft reset that is still due
    takes from the result (with autograd)."""
    d, dtype, device = call.dynamics, call.state_dtype, call.x.device
    v0 = None if call.v0 is None else torch.as_tensor(call.v0, dtype=dtype, device=device)
    if call.v is None:
        start = torch.scalar_tensor(d.rest, dtype=dtype, device=device) if v0 is None else v0
        return start.expand(call.x.shape[1:]), None
    v = call.v.to(dtype)
    start = (v if v0 is None else v + v0).expand(call.x.shape[1:])
    if not call.resume or d.timing != "delayed" or d.reset == "none":
        return start, None
    if call.folded is None:
        decide = functional.decide_plain(d, smooth=smooth)
    else:
        decide = functional.decide_folded(*call.folded, fires_at_equality=d.fires_at_equality)
    s, _ = decide(v)
    if d.reset == "hard":
        return functional.reset(start, s, d), None
    return start, d.threshold * (s.detach() if d.detach_reset else s)


def over_channels(affine: Tensor | None, x: Tensor) -> Tensor | None:
    """[T, C] or [C] as it broadcasts to [T, B, C, *]."""
    if affine is None:
        return None
    return affine.to(torch.promote_types(x.dtype, torch.float32)).view(-1, 1, x.shape[2], *[1] * (x.ndim - 3))


def _forward(rule: Rule, inputs: Inputs, charged: Tensor | None, *, store: bool) -> Result:
    """Run all parts; charged membranes are left in `charged` where there is room for them."""
    x, dtype = inputs.x, inputs.start.dtype
    spikes, membrane = torch.empty_like(x), torch.empty_like(x[0], dtype=dtype)
    membranes = torch.empty_like(x, dtype=dtype) if store else None
    for index in blocks(x[0]):
        last = membrane[index]
        Part(rule, inputs, index).run(
            [torch.empty_like(last), torch.empty_like(last)] if charged is None else steps(charged, index),
            steps(spikes, index),
            last,
            None if membranes is None else steps(membranes, index),
        )
    return Result(spikes, membrane, membranes)


class _Multistep(torch.autograd.Function):
    """Keeps the charged membranes; or the input instead, where the backward pass needs it or where it is
    the smaller. Never the output: users change spikes in place."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, store: bool, *tensors: Tensor | None) -> Result:
        inputs = Inputs(*tensors)  # type: ignore[arg-type]
        ctx.rule, ctx.wanted = rule, Inputs(*ctx.needs_input_grad[2:])
        x, dtype = inputs.x, inputs.start.dtype
        leaks_input = rule.dynamics.leak is not None and rule.dynamics.leak.input
        again = x.dtype != dtype or ctx.wanted.scale or ctx.wanted.gain or (ctx.wanted.rate and leaks_input)
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
    room = _room(inputs, wanted)
    for index in blocks(inputs.x[0]):
        part = Part(rule, inputs, index)
        h = part.charged() if charged is None else steps(charged, index)
        backward(part, h, Outer.of(outer, index), Into.of(room, index, len(h)))
    leak = rule.dynamics.leak
    if room.rate is not None and leak is not None and leak.divide:
        room.rate.div_(-inputs.rate.square())
    pairs = zip(room, inputs, strict=True)
    return [None if g is None or p is None else g.sum_to_size(p.shape) for g, p in pairs]


def _room(inputs: Inputs, wanted: Inputs) -> Room:
    """Room for the gradients that are wanted."""

    def zeros(like: Tensor | None, want: Tensor | None) -> Tensor | None:
        return torch.zeros_like(like) if want and like is not None else None

    x, start = inputs.x, inputs.start
    return Room(
        x=torch.empty_like(x) if wanted.x else None,
        start=torch.empty_like(start) if wanted.start else None,
        owed=torch.empty_like(start) if wanted.owed else None,
        scale=zeros(inputs.scale, wanted.scale),
        shift=zeros(inputs.shift, wanted.shift),
        threshold=zeros(start, wanted.threshold),
        rate=zeros(start, wanted.rate),
        gain=zeros(start, wanted.gain),
    )
