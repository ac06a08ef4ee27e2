"""CUDA graphs, streams, the current device, and tensors of more than 2^31 elements."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from harness import interleaved
from torch import Tensor
from ways import LEAKY, LIF, inputs, start

from gpu.bench import Bench, attempt
from snn_ext import Dynamics
from snn_ext.kernels import Call
from snn_ext.kernels.candidates import BACKENDS

__all__ = ["run"]

Work = Callable[[], tuple[Tensor, ...]]
# name -> dynamics, T, type of inputs; h in registers and h kept
NEURONS: dict[str, tuple[Dynamics, int, torch.dtype]] = {
    "LIF T=4 float32": (LIF, 4, torch.float32),
    "LIF T=20 float32": (LIF, 20, torch.float32),
    "Leaky T=4 bfloat16": (LEAKY, 4, torch.bfloat16),
}


def run(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {"graphs": {}}
    for name in NEURONS:
        for kind in ("forward", "forward and backward"):
            found["graphs"][f"{name}, {kind}"] = attempt(lambda n=name, k=kind: _graph(bench, n, k))
    found["streams"] = attempt(lambda: _streams(bench))
    found["devices"] = attempt(lambda: _devices(bench))
    found["large"] = attempt(lambda: _large(bench))
    found["wrong"] = sum(_wrong(v) for v in (*found["graphs"].values(), *list(found.values())[1:]))
    return found


def _wrong(result: Any) -> bool:
    return isinstance(result, dict) and ("error" in result or any(v is False for v in result.values()))


def _work(bench: Bench, name: str, kind: str) -> tuple[Tensor, Work]:
    """A neuron with a learnable start; the work reads x where it lies."""
    dynamics, steps, dtype = NEURONS[name]
    with torch.device(bench.device):
        x, gradient = inputs(steps, 16000, dtype)
        v0 = start(16000)
    ours = BACKENDS[bench.backend].run

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return ours(Call(x, dynamics, v0=v0))[:2]

    def both() -> tuple[Tensor, ...]:
        spikes, membrane, _ = ours(Call(x, dynamics, v0=v0))
        return spikes, membrane, *torch.autograd.grad(spikes, [x, v0], gradient)

    return x, forward if kind == "forward" else both


def _graph(bench: Bench, name: str, kind: str) -> dict[str, Any]:
    """Capture, replay with new inputs, compare; and the microseconds of one call and of one replay."""
    x, work = _work(bench, name, kind)
    work()
    if not bench.cuda("capture and replay of CUDA graphs"):
        return {}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    equal = []
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn(x.shape, device=x.device))
        graph.replay()
        expected = work()
        torch.cuda.synchronize()
        equal.append(all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True)))
    times = interleaved({"call": work, "replay": graph.replay}, 9, "cuda")
    return {"equal": all(equal), **{f"{k}, µs": median(v) * 1e6 for k, v in times.items()}}


def _streams(bench: Bench) -> dict[str, Any]:
    """On a stream of its own, behind work that is still under way there; and nothing is switched."""
    x, work = _work(bench, "LIF T=4 float32", "forward and backward")
    expected = work()
    if not bench.cuda("a stream of its own"):
        return {}
    torch.cuda.synchronize()
    side, before = torch.cuda.Stream(), (torch.cuda.current_device(), torch.cuda.current_stream())
    fresh = torch.randn(x.shape, device=x.device)
    slow = torch.randn(bench.pick(2 * [4096], 2 * [16]), device=x.device)
    old = x.detach().clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(side), torch.no_grad():
        x.copy_(fresh)
        for _ in range(20):
            slow = slow @ slow * 1e-2
        x.copy_(old)  # only now: a kernel on another stream would see `fresh`
        with torch.enable_grad():
            found = work()
        stream_kept = torch.cuda.current_stream() == side
    side.synchronize()
    return {
        "equal": all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)),
        "stream kept inside": stream_kept,
        "stream kept": torch.cuda.current_stream() == before[1],
        "device kept": torch.cuda.current_device() == before[0],
    }


def _devices(bench: Bench) -> dict[str, Any]:
    """Tensors of the second device, while the first is current."""
    if not bench.cuda("a second device"):
        return {}
    if torch.cuda.device_count() < 2:
        bench.notes.append("there is one device only: not tested with another one current")
        return {}
    x, gradient = inputs(4, 16000)
    results = []
    for device in ("cuda:0", "cuda:1"):
        there = x.detach().to(device).requires_grad_()
        spikes = BACKENDS["cupy"].run(Call(there, LIF)).spikes
        results.append((spikes.cpu(), torch.autograd.grad(spikes, there, gradient.to(device))[0].cpu()))
    return {
        "equal": all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
        "device kept": torch.cuda.current_device() == 0,
    }


def _large(bench: Bench) -> dict[str, Any]:
    """The last neurons of a layer with more than 2^31 elements, against a layer of only those."""
    count, last = bench.pick(2**30 + 8, 2**12 + 8), bench.pick(2**20 + 8, 72)
    if bench.cuda("more than 2^31 elements") and torch.cuda.mem_get_info()[0] < 60 * 2**30:
        bench.notes.append("less than 60 GiB are free: more than 2^31 elements not tested")
        return {}
    with torch.device(bench.device):
        x = torch.empty(3, 1, count, dtype=torch.bfloat16).normal_().requires_grad_()
        outer = torch.empty_like(x).normal_()
    ours = BACKENDS[bench.backend].run
    tail = x.detach()[:, :, -last:].clone().requires_grad_()
    spikes, of_tail = (ours(Call(t, LIF)).spikes for t in (x, tail))
    (grad,) = torch.autograd.grad(spikes, x, outer)
    (grad_of_tail,) = torch.autograd.grad(of_tail, tail, outer[:, :, -last:].clone())
    return {
        "elements": x.numel(),
        "spikes equal": torch.equal(spikes[:, :, -last:], of_tail),
        "gradients equal": torch.equal(grad[:, :, -last:], grad_of_tail),
    }
