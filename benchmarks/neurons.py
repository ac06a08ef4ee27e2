"""One layer of neurons: snn-ext's kernels against SpikingJelly, snnTorch and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import snntorch as snn
import torch
from harness import Case, main
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor

from snn_ext import Dynamics, Leak
from snn_ext.functional import multistep
from snn_ext.kernels import Call
from snn_ext.kernels.candidates import BACKENDS
from snn_ext.surrogates import ATan, FastSigmoid

Step = Callable[[Tensor], Tensor]
Way = Callable[[], Any]

LIF = Dynamics(leak=Leak(2.0), surrogate=ATan())
LEAKY = Dynamics(
    decay=0.9, reset="soft", timing="delayed", fires_at_equality=False, detach_reset=True, surrogate=ATan()
)


def train(step: Step, x: Tensor, gradient: Tensor) -> Way:
    """Forward and backward. The gradient is dense: an expanded one costs every kernel extra."""

    def way() -> None:
        x.grad = None
        step(x).backward(gradient)

    return way


def ours(backend: str, dynamics: Dynamics, v0: Tensor | None = None) -> Step:
    backend_run = BACKENDS[backend].run

    def step(x: Tensor) -> Tensor:
        if v0 is not None:
            v0.grad = None
        return backend_run(Call(x, dynamics, v0=v0)).spikes

    return step


def spikingjelly(node: Any) -> Step:
    node.step_mode = "m"

    def step(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)  # type: ignore[no-any-return]

    return step


def snntorch(node: Any) -> Step:
    def step(x: Tensor) -> Tensor:
        mem, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            spk, mem = node(x_t, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    return step


def setup(steps: int, count: int, kind: str, dtype: torch.dtype = torch.float32) -> Mapping[str, Way]:
    """All ways to run `kind` over [T, 1, N]: the same inputs, forward and backward."""
    x = torch.randn(steps, 1, count).add_(0.5).to(dtype).requires_grad_()
    gradient = torch.randn(steps, 1, count).to(dtype)
    dynamics = LIF if kind == "LIF" else LEAKY
    peer = (
        spikingjelly(neuron.LIFNode(surrogate_function=surrogate.ATan()))
        if kind == "LIF"
        else snntorch(snn.Leaky(beta=0.9))
    )
    v0 = torch.zeros(count, requires_grad=True)
    steps_of: dict[str, Step] = {
        "SpikingJelly" if kind == "LIF" else "snnTorch": peer,
        "snn-ext host": ours("host", dynamics),
        "snn-ext host + IMP": ours("host", dynamics, v0),
        "snn-ext torch": ours("torch", dynamics),
        "snn-ext reference": lambda x: multistep(x, 0.0, dynamics).spikes,
    }
    return {name: train(step, x, gradient) for name, step in steps_of.items()}


def compiled(steps: int, count: int) -> Mapping[str, Way]:
    """torch.compile of the reference, and of SpikingJelly's own node (seconds of compiling per T)."""
    x = torch.randn(steps, 1, count).requires_grad_()
    gradient = torch.randn(steps, 1, count)
    node = spikingjelly(neuron.LIFNode(surrogate_function=surrogate.ATan()))
    program = torch.compile(lambda x: multistep(x, 0.0, LIF).spikes)
    steps_of = {"SpikingJelly": node, "snn-ext host": ours("host", LIF), "torch.compile": program}
    return {name: train(step, x, gradient) for name, step in steps_of.items()}


def rectangle(steps: int, count: int) -> Mapping[str, Way]:
    """A surrogate that SpikingJelly does not fuse."""
    from snn_ext.surrogates import Rectangle

    x = torch.randn(steps, 1, count).requires_grad_()
    gradient = torch.randn(steps, 1, count)
    dynamics = Dynamics(leak=Leak(2.0), surrogate=Rectangle())
    steps_of = {
        "SpikingJelly": spikingjelly(neuron.LIFNode(surrogate_function=surrogate.Rect())),
        "snn-ext host": ours("host", dynamics),
        "snn-ext torch": ours("torch", dynamics),
    }
    return {name: train(step, x, gradient) for name, step in steps_of.items()}


def fast_sigmoid(steps: int, count: int) -> Mapping[str, Way]:
    """snnTorch's other usual surrogate."""
    x = torch.randn(steps, 1, count).requires_grad_()
    gradient = torch.randn(steps, 1, count)
    dynamics = Dynamics(
        decay=0.9,
        reset="soft",
        timing="delayed",
        fires_at_equality=False,
        detach_reset=True,
        surrogate=FastSigmoid(),
    )
    steps_of = {
        "snnTorch": snntorch(snn.Leaky(beta=0.9, spike_grad=snn.surrogate.fast_sigmoid())),
        "snn-ext host": ours("host", dynamics),
    }
    return {name: train(step, x, gradient) for name, step in steps_of.items()}


def cases(quick: bool) -> list[Case]:
    """Every case; the goals are those of docs/kernels.md."""
    sizes = [12] if quick else [12, 16, 20]
    rounds = 3 if quick else 15
    host = {12: 8.0, 16: 8.0, 20: 5.0}
    leaky = {12: 8.0, 16: 8.0, 20: 4.0}
    result = [
        Case(
            f"LIF T=4 N=2^{n}",
            functools.partial(setup, 4, 2**n, "LIF"),
            "SpikingJelly",
            4 * 2**n,
            {"snn-ext host": host[n], "snn-ext torch": 2.2},
            rounds,
        )
        for n in sizes
    ]
    result += [
        Case(
            f"Leaky T=4 N=2^{n}",
            functools.partial(setup, 4, 2**n, "Leaky"),
            "snnTorch",
            4 * 2**n,
            {"snn-ext host": leaky[n]},
            rounds,
        )
        for n in sizes
    ]
    n = 12 if quick else 16
    bf16 = functools.partial(setup, 4, 2**n, "LIF", torch.bfloat16)
    result += [
        Case(f"LIF T=16 N=2^{n}", functools.partial(setup, 16, 2**n, "LIF"), "SpikingJelly", 2 ** (n + 4)),
        Case(f"LIF bfloat16 T=4 N=2^{n}", bf16, "SpikingJelly", 2 ** (n + 2)),
        Case(
            f"LIF rectangle T=4 N=2^{n}", functools.partial(rectangle, 4, 2**n), "SpikingJelly", 2 ** (n + 2)
        ),
        Case(
            f"Leaky fast sigmoid T=4 N=2^{n}",
            functools.partial(fast_sigmoid, 4, 2**n),
            "snnTorch",
            2 ** (n + 2),
        ),
    ]
    if not quick:
        result.append(
            Case("LIF compiled T=4 N=2^16", functools.partial(compiled, 4, 2**16), "SpikingJelly", 2**18)
        )
    return result


if __name__ == "__main__":
    main("neurons", cases)
