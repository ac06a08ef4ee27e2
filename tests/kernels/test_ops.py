"""The operators: opcheck, torch.compile without a graph break, dispatch traces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snn_ext import Dynamics, Leak
from snn_ext.kernels import fused, ops, registry
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.host_backend import HOST
from snn_ext.kernels.spec import Spec
from tests.kernels import cases, harness

LIF = Dynamics(leak=Leak(2.0))


def calls() -> dict[str, Call]:
    """Calls with every kind of argument."""
    rate = torch.tensor(0.4, requires_grad=True)
    leaky = Dynamics(
        decay=0.9,
        threshold=torch.rand(3, 1, requires_grad=True),
        reset="soft",
        timing="delayed",
        detach_reset=True,
    )
    x, v = torch.randn(4, 2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    v0 = torch.randn(3, 5, requires_grad=True)
    affine = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
    return {
        "plain": Call(x, LIF),
        "half": Call(x.detach().half().requires_grad_(), LIF, v0=v0, store=True),
        "plif": Call(x, Dynamics(leak=Leak(rate, divide=False)), v=v, store=True),
        "leaky": Call(x, leaky, v=v, v0=v0, resume=True),
        "affine": Call(x, LIF, scale=affine[0], shift=affine[1]),
        "strided": Call(x.detach()[::2].requires_grad_(), LIF),
        "no gradient": Call(x.detach(), LIF, folded=(torch.rand(3, 5), torch.ones(3, 5))),
        "no sample": Call(torch.randn(4, 0, 3, 5, requires_grad=True), LIF, v0=v0),
    }


@pytest.mark.parametrize("unrolled", [None, 0], ids=["h kept", "h again"])
@pytest.mark.parametrize("name", calls())
def test_opcheck(name: str, unrolled: int | None) -> None:
    call = calls()[name]
    plan, inputs = fused.prepare(call, HOST, unrolled=unrolled)
    keep = any(fused.needs(inputs))
    torch.library.opcheck(torch.ops.snn_ext.neuron_forward, (*inputs, *ops._encode(plan), keep))


@pytest.mark.parametrize("name", ["plain", "half", "plif", "affine"])
def test_opcheck_of_the_backward(name: str) -> None:
    call = calls()[name]
    plan, inputs = fused.prepare(call, HOST)
    out = fused.forward(plan, inputs, keep=True)
    wanted = fused.needs(inputs)
    kept = fused.saved(plan, inputs, wanted)
    tensors = [None if t is None else t.detach() for t in kept]
    grads = [torch.randn_like(t) for t in (out.spikes, out.membrane)]
    sums = [wanted[1] or wanted[2], *wanted[3:5], wanted[5]]
    arguments = (*grads, None, out.h, *tensors, *ops._encode(plan), sums)
    torch.library.opcheck(torch.ops.snn_ext.neuron_backward, arguments)


@pytest.mark.parametrize("name", calls())
def test_operators_do_what_functions_do(name: str) -> None:
    call = calls()[name]
    for unrolled in (None, 0):
        harness.check(call, {"operator": lambda c, u=unrolled: ops.run(c, HOST, unrolled=u)})  # type: ignore[misc]


def test_templates_are_parsed_back() -> None:
    for d in (*cases.spikingjelly("plif", "soft"), *cases.snntorch("hard")):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            call = Call(torch.zeros(1, 1, 1, dtype=dtype), d)
            kernel = fused.prepare(call, HOST, unrolled=5)[0].kernel
            assert Spec.parse(kernel.template) == kernel
            assert kernel.dtype is dtype


@pytest.mark.parametrize("name", ["auto", "host"])
def test_compiles_without_a_graph_break(name: str) -> None:
    """Auto hands the equations to the compiler, a backend asked for by name its operator."""
    graphs: list[str] = []

    def look(graph: Any, _: object) -> Any:
        graphs.append(graph.code)
        return graph

    def step(x: Tensor, v0: Tensor) -> Tensor:
        return registry.run(Call(x, LIF, v0=v0)).spikes

    compiled = torch.compile(step, fullgraph=True, backend=look)
    x, v0 = torch.randn(4, 2, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    outer = torch.randn(4, 2, 3)
    expected = step(x, v0)
    true = torch.autograd.grad(expected, [x, v0], outer)
    with registry.use_backend(name):
        spikes = compiled(x, v0)
        found = torch.autograd.grad(spikes, [x, v0], outer)
    assert torch.equal(spikes, expected)
    for g, t in zip(found, true, strict=True):
        torch.testing.assert_close(g, t)
    assert len(graphs) == 1
    assert ("neuron_forward" in graphs[0]) == (name == "host")
    compiled(x, v0)  # back to auto: another graph, not the one of the host
    assert ("neuron_forward" in graphs[-1]) == (name != "auto" and len(graphs) == 1)


@pytest.mark.parametrize("keyword", [{}, {"dynamic": True}], ids=["static", "dynamic"])
def test_aot_autograd_sees_through_the_operator(keyword: dict[str, Any]) -> None:
    def loss(x: Tensor) -> Tensor:
        result = registry.run(Call(x, LIF, store=True))
        return result.spikes.sum() + result.membranes.square().sum()  # type: ignore[union-attr]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", **keyword)
    with registry.use_backend("host"):
        for batch in (2, 3):
            x = torch.randn(4, batch, 3, requires_grad=True)
            true, found = (torch.autograd.grad(f(x), x)[0] for f in (loss, compiled))
            assert torch.equal(found, true)


def test_a_dispatch_trace_sees_the_kernel() -> None:
    seen: list[str] = []

    class Trace(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(4, 2, 3, requires_grad=True)
    with Trace():
        registry.run(Call(x, LIF)).spikes.sum().backward()
    assert "snn_ext.neuron_forward.default" in seen
    assert "snn_ext.neuron_backward.default" in seen


@pytest.mark.parametrize("name", ["neuron_forward", "neuron_backward"])
def test_arguments_are_of_types_that_torch_2_6_knows(name: str) -> None:
    """It evaluates annotations among the names of `typing`, and takes no list[...]."""
    arguments = {**getattr(ops, name)._init_fn.__annotations__}
    arguments.pop("return")
    assert "Sequence[bool]" in arguments.values()
    assert not [text for text in arguments.values() if "list" in text]
