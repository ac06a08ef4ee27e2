"""From tensors to one launch: allocation, memory order and arguments; no gradients.

Runs once or twice for every neuron layer and batch, so that what does not change is kept.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from snn_ext.errors import OptionError
from snn_ext.kernels.abi import Arguments, Parameter
from snn_ext.kernels.layout import Layout
from snn_ext.kernels.spec import Spec

__all__ = ["Backward", "Forward", "Grads", "Inputs", "Launcher", "Plan", "backward", "forward"]


class Launcher(Protocol):
    """What a backend provides."""

    name: str
    tile: int
    """Neurons of a tile, for which gradients of v0 come summed over the batch; 0: they never do."""

    def launch(self, kernel: Spec, direction: str, arguments: Arguments, device: torch.device) -> None:
        """Run the "forward" or "backward" kernel of a specialisation."""

    def __hash__(self) -> int:
        """By identity: plans are kept per launcher."""


class Inputs(NamedTuple):
    """The tensors of a call; None where a number, or nothing, is given. The first seven have gradients."""

    x: Tensor | None
    v: Tensor | None
    v0: Tensor | None
    decay: Tensor | None
    threshold: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    gain: Tensor | None
    offset: Tensor | None
    folded: Tensor | None
    sign: Tensor | None


class Plan(NamedTuple):
    """Everything else about a call; holds no tensor, so that it can be kept for the backward."""

    launcher: Launcher
    kernel: Spec
    keeps_h: bool  # for the backward; otherwise h is computed again from x
    resume: bool
    store: bool
    v0: float | None
    decay: float  # the numbers, where no tensor is given
    threshold: float
    gain: float
    offset: float
    rest: float
    a: float
    b: float


class Forward(NamedTuple):
    """What a forward launch gives."""

    spikes: Tensor
    membrane: Tensor
    membranes: Tensor | None
    h: Tensor | None


class Backward(NamedTuple):
    """What a backward launch gives, per neuron."""

    x: Tensor
    """[T, B, *]"""
    v: Tensor | None
    """[B, *]; the same for v and v0. [1, *] where it is summed."""
    decay: Tensor | None
    threshold: Tensor | None


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of spikes, membrane and membranes."""


def forward(plan: Plan, inputs: Inputs, *, keep: bool) -> Forward:
    """Run all steps; `keep` the charged membranes for the backward, if the plan does."""
    x = inputs.x
    if x is None:
        raise TypeError("a forward launch needs x")
    layout, steps = Layout.of(x), x.shape[0]
    launch = _Launch(plan, layout, steps, x.device, x.dtype)
    a, state = launch.arguments, launch.state
    launch.inputs(inputs)
    spikes, membrane = layout.empty(x, steps), layout.empty(x, None, state)
    a.spikes, a.membrane = spikes.data_ptr(), membrane.data_ptr()
    membranes = h = None
    if plan.store:
        membranes = layout.empty(x, steps, state)
        a.membranes = membranes.data_ptr()
    if keep and plan.keeps_h:
        h = layout.empty(x, steps, state)
        a.h = h.data_ptr()
    plan.launcher.launch(plan.kernel, "forward", a, x.device)
    return Forward(spikes, membrane, membranes, h)


def backward(
    plan: Plan,
    inputs: Inputs,
    h: Tensor | None,
    grads: Grads,
    wanted: tuple[bool, bool, bool],
    dtype: torch.dtype,
    *,
    unscaled: bool = False,
    v0: torch.Size | None = None,
) -> Backward:
    """Run all steps back.

    Args:
        plan: of the forward.
        inputs: of the forward; without x where h is given and no sum needs it.
        h: charged membranes [T, B, *], or None to compute them again.
        grads: of spikes, membrane and membranes.
        wanted: whether the gradients of the first membrane, the decay and the threshold are.
        dtype: of x.
        unscaled: leave the factor `scale` out of the gradient of x.
        v0: shape of the first membrane, if the sum over the batch would do.
    """
    like = h if h is not None else inputs.x
    if like is None:
        raise TypeError("a backward launch needs h or x")
    layout, steps = Layout.of(like), like.shape[0]
    launch = _Launch(plan, layout, steps, like.device, dtype)
    a, state = launch.arguments, launch.state
    launch.inputs(inputs)
    if h is not None:
        a.h = h.data_ptr()
    a.unscaled = unscaled
    grad_spikes, grad_membrane, grad_membranes = grads
    if grad_spikes is not None:
        a.grad_spikes, a.grad_spikes_step = launch.sequence(grad_spikes, dtype)
    if grad_membrane is not None:
        a.grad_membrane = launch.step(grad_membrane)
    if grad_membranes is not None:
        a.grad_membranes, a.grad_membranes_step = launch.sequence(grad_membranes, state)
    grad_x = layout.empty(like, steps, dtype)
    a.grad_x = grad_x.data_ptr()
    of_v, tile = layout, plan.launcher.tile
    if tile and v0 is not None and layout.samples(v0, tile * a.threads):
        of_v = layout.sample
        a.shared = of_v.neurons
    layouts = (of_v, layout, layout)
    sums = [d.empty(like, None, state) if w else None for d, w in zip(layouts, wanted, strict=True)]
    for name, total in zip(("grad_v", "grad_decay", "grad_threshold"), sums, strict=True):
        if total is not None:
            setattr(a, name, total.data_ptr())
    plan.launcher.launch(plan.kernel, "backward", a, like.device)
    return Backward(grad_x, *sums)


@functools.lru_cache(maxsize=1024)
def _numbers(plan: Plan, steps: int, n: int) -> Arguments:
    """The arguments as far as they are numbers; what we allocate has its steps n apart."""
    a, p = Arguments(steps, n, 1, plan.resume), plan
    for name in ("spikes", "h", "membranes", "grad_x"):
        setattr(a, f"{name}_step", n)
    for name in ("decay", "threshold", "gain", "offset"):
        setattr(a, name, _number(getattr(p, name)))
    a.v0, a.has_v0 = _number(p.v0 or 0.0), p.v0 is not None
    a.sign = a.scale = _number(1.0)
    a.folded = a.shift = _number(0.0)
    a.rest, a.surrogate_a, a.surrogate_b = p.rest, p.a, p.b
    return a


def _number(value: float) -> Parameter:
    return Parameter(None, 1, 1, value)


class _Launch:
    """Arguments, and the tensors they point to, which must live as long."""

    def __init__(self, plan: Plan, layout: Layout, steps: int, device: torch.device, io: torch.dtype) -> None:
        self.layout, self.device, self.io = layout, device, io
        self.state = torch.float64 if io is torch.float64 else torch.float32
        self.alive: list[Tensor] = []
        self.arguments = Arguments.from_buffer_copy(_numbers(plan, steps, layout.neurons))
        self.arguments.threads = torch.get_num_threads()

    def inputs(self, inputs: Inputs) -> None:
        a = self.arguments
        x, v, v0, decay, threshold, scale, shift, gain, offset, folded, sign = inputs
        if x is not None:
            a.x, a.x_step = self.sequence(x, self.io)
        if v is not None:
            a.v = self.step(v)
        if v0 is not None:
            a.v0, a.has_v0 = self.parameter(v0), True
        if decay is not None:
            a.decay = self.parameter(decay)
        if threshold is not None:
            a.threshold = self.parameter(threshold)
        if scale is not None:
            a.scale, a.scale_step = self.channels(scale)
        if shift is not None:
            a.shift, a.shift_step = self.channels(shift)
        if gain is not None:
            a.gain = self.parameter(gain)
        if offset is not None:
            a.offset = self.parameter(offset)
        if folded is not None and sign is not None:
            a.folded, a.sign = self.parameter(folded), self.parameter(sign)

    def sequence(self, sequence: Tensor, dtype: torch.dtype) -> tuple[int, int]:
        kept = self.layout.sequence(sequence, dtype)
        self.alive.append(kept)
        return kept.data_ptr(), kept.stride(0)

    def step(self, tensor: Tensor) -> int:
        kept = self.layout.step(tensor, self.state)
        self.alive.append(kept)
        return kept.data_ptr()

    def parameter(self, tensor: Tensor) -> Parameter:
        found, kept = self.layout.parameter(tensor, self.state, self.device)
        self.alive.append(kept)
        return found

    def channels(self, value: Tensor) -> tuple[Parameter, int]:
        """A parameter [C], or [T, C] and the distance between its steps."""
        steps, wanted = self.arguments.steps, self.layout.shape[1:2]
        if value.ndim not in (1, 2) or value.shape[-1:] != wanted or value.shape[:-1] not in ((), (steps,)):
            raise OptionError(
                f"an affine of shape {list(value.shape)} does not fit an input"
                f" [T, B, *] = {[steps, *self.layout.shape]}.",
                do="pass [C] or [T, C]",
            )
        value = value.detach().to(self.device, self.state).contiguous()
        self.alive.append(value)
        first = value if value.ndim == 1 else value[0]
        found, _ = self.layout.parameter(
            first.view(-1, *[1] * (len(self.layout.shape) - 2)), self.state, self.device
        )
        return found, value.shape[1] if value.ndim == 2 else 0
