"""Shapes and memory orders: one step, a thousand, no sample, odd sizes, strided and channels_last inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snn_ext import Dynamics, Leak, OptionError
from snn_ext.kernels import fused, host_backend, registry
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.layout import Layout
from tests.kernels import harness

LIF = Dynamics(leak=Leak(2.0))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 3),
        (1000, 1, 7),
        (300, 1, 1500),
        (4, 0, 3),
        (3, 5),
        (2, 1, 1, 1),
        (3, 2, 4097),
        (2, 3, 1031, 1),
        (5, 2, 0),
    ],
    ids=str,
)
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).mul(2).requires_grad_()
    call = Call(x, LIF, v0=torch.rand(shape[1:]).requires_grad_(), store=True)
    harness.check(call, harness.runs(call))


def test_a_thousand_steps_with_learnable_decay() -> None:
    decay = torch.tensor(0.3, requires_grad=True)
    d = Dynamics(leak=Leak(decay, divide=False), detach_reset=True)
    call = Call(torch.randn(1000, 3, 5, requires_grad=True), d)
    harness.check(call, harness.runs(call))


def test_threads_change_nothing() -> None:
    """Two threads where torch may use two, above a size at which they pay."""
    x = (torch.randn(4, 3, 20_000) * 2).requires_grad_()
    call = Call(x, LIF, v0=torch.rand(20_000, requires_grad=True))
    ways = {name: run for name, run in harness.runs(call).items() if name.startswith("host")}
    torch.set_num_threads(2)  # one again before the next test
    harness.check(call, ways)


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


ORDERS = {
    "contiguous": lambda x: x,
    "channels last": channels_last,
    "every second step": lambda x: torch.stack([x, x + 1], 1).flatten(0, 1)[::2],
    "channels last, every second step": lambda x: (
        torch.stack([x.movedim(2, -1), x.movedim(2, -1)], 1).flatten(0, 1)[::2].movedim(-1, 2)
    ),
    "one step, shown again": lambda x: x[:1].expand_as(x),
    "batch first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "a slice of channels": lambda x: torch.cat([x, x], 2)[:, :, 1:4],
    "transposed space": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "one sample shown again": lambda x: x[:, :1].expand_as(x),
}
DENSE = {"contiguous", "channels last", "every second step", "channels last, every second step",
         "one step, shown again", "transposed space"}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", ["channels", "neurons", "samples", "rows", "outer"])
def test_memory_orders(order: str, size: str) -> None:
    x = ORDERS[order](torch.randn(4, 2, 3, 4, 5) * 2).requires_grad_()
    shapes = {
        "channels": (3, 1, 1),
        "neurons": (3, 4, 5),
        "samples": (2, 1, 1, 1),
        "rows": (4, 1),
        "outer": (3, 1, 5),
    }
    shape = shapes[size]
    threshold = (torch.rand(shape) + 0.5).requires_grad_()
    d = Dynamics(leak=Leak(torch.rand(shape).add(1.5).requires_grad_()), threshold=threshold)
    affine = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    v0 = torch.randn(shape, requires_grad=True)
    v = channels_last(torch.randn(1, 2, 3, 4, 5))[0].requires_grad_()
    call = Call(x, d, v=v, v0=v0, scale=affine[0], shift=affine[1], store=True)
    harness.check(call, harness.runs(call))


@pytest.mark.parametrize("order", ORDERS)
def test_dense_steps_are_not_copied(order: str) -> None:
    x = ORDERS[order](torch.randn(4, 2, 3, 4, 5))
    assert (Layout.of(x).sequence(x, x.dtype) is x) == (order in DENSE)


def test_outputs_keep_the_memory_order() -> None:
    x = channels_last(torch.randn(4, 2, 3, 4, 5)).requires_grad_()
    result = fused.run(Call(x, LIF, store=True), harness.HOST)
    assert result.spikes.stride() == x.stride() == result.membranes.stride()  # type: ignore[union-attr]
    assert result.membrane.stride() == x.stride()[1:]
    (grad,) = torch.autograd.grad(result.spikes, x, torch.randn_like(x))
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_come_in_any_order(dtype: torch.dtype) -> None:
    """An expanded gradient (from a sum), one in another memory order, and one of another dtype."""
    x = channels_last(torch.randn(4, 2, 3, 4, 5, dtype=dtype)).requires_grad_()
    for outer in (torch.ones((), dtype=dtype).expand(x.shape), torch.randn(x.shape, dtype=dtype)):
        grads = []
        for run in (lambda c: fused.run(c, harness.HOST), harness.reference_backend.run):
            grads.append(torch.autograd.grad(run(Call(x, LIF)).spikes, x, outer)[0])
        assert harness.error(*grads) <= harness.TOLERANCE[dtype]


def test_membranes_of_any_dtype_are_taken() -> None:
    """SpikingJelly keeps half-width membranes."""
    x = torch.randn(3, 2, 4, dtype=torch.bfloat16)
    v = torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True)
    result = fused.run(Call(x, LIF, v=v), harness.HOST)
    assert result.membrane.dtype is torch.float32
    (grad,) = torch.autograd.grad(result.membrane.sum(), v)
    assert grad.dtype is torch.bfloat16


@pytest.mark.parametrize(
    "call",
    [
        Call(torch.zeros(3), LIF),
        Call(torch.zeros(0, 2, 3), LIF),
        Call(torch.zeros(2, 2, 3), LIF, v0=torch.zeros(4)),
        Call(torch.zeros(2, 2, 3), LIF, v0=torch.zeros(5, 2, 3)),
        Call(torch.zeros(2, 2, 3), Dynamics(threshold=torch.ones(2))),
        Call(torch.zeros(2, 2, 3), LIF, v=torch.zeros(7, 3)),
        Call(torch.zeros(2, 2, 3), LIF, scale=torch.ones(4)),
        Call(torch.zeros(2, 2, 3), LIF, shift=torch.ones(3, 3)),
        Call(torch.zeros(2, 2), LIF, shift=torch.ones(2)),
        Call(torch.zeros(2, 2, 3), LIF, folded=(torch.ones(2), torch.ones(3))),
    ],
    ids=[
        "no batch",
        "no step",
        "v0",
        "v0 of another batch",
        "threshold",
        "v",
        "scale",
        "steps",
        "no C",
        "fold",
    ],
)
def test_bad_shapes_teach(call: Call) -> None:
    with pytest.raises(OptionError, match=r"\n  do: "):
        registry.run(call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_h_or_x_is_kept_for_the_backward(dtype: torch.dtype) -> None:
    """4 bytes per neuron and step in float32, 2 in half-width types."""
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.nbytes
        return t

    x = torch.randn(8, 4, 64, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        host_backend.run(Call(x, LIF))
    assert sum(kept.values()) == x.numel() * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spikes_may_be_changed_in_place(dtype: torch.dtype) -> None:
    """As SEW networks do; the input goes with it where nobody else holds it."""
    x = torch.randn(3, 2, 5, dtype=dtype, requires_grad=True)
    spikes = host_backend.run(Call(x * 1, LIF)).spikes
    spikes.add_(1)
    spikes.sum().backward()
    assert x.grad is not None
