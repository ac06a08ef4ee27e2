"""torch.library.opcheck on the registered operators, with tensors of the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpu.bench import Bench, attempt
from gpu.trials import Trial, folded, moved
from snn_ext.kernels import Call, cupy_backend, fused, host_backend, ops
from tests.kernels import cases

__all__ = ["run"]

_BACKWARD = ("test_schema", "test_faketensor")  # it has no gradient of its own


def run(bench: Bench) -> dict[str, Any]:
    bench.cuda("the operators on CUDA tensors; these are on the CPU")
    todo = chosen()
    results = {
        trial.name: attempt(lambda t=trial: check(bench, t))
        for trial in bench.each(todo[: bench.pick(None, 1)], "calls")
    }
    failures = {name: {k: v for k, v in r.items() if v != "SUCCESS"} for name, r in results.items()}
    failures = {name: r for name, r in failures.items() if r}
    return {"calls": len(results), "of": len(todo), "wrong": len(failures), "failures": failures}


def chosen() -> list[Trial]:
    """A call of every family, in float32 and in half; and a folded one."""
    found = []
    for i, (family, neurons) in enumerate(cases.FAMILIES.items()):
        calls = cases.calls(neurons)
        half = [c for c in calls if c.x.dtype is not torch.float32]
        found += [Trial(family, calls[i % len(calls)]), *(Trial(family, c) for c in half[:1])]
    call = cases.calls(cases.FAMILIES["lif, hard"])[0]
    return [*found, Trial("lif, hard", folded(call), learns=False)]


def check(bench: Bench, trial: Trial) -> dict[str, str]:
    """What opcheck says about the forward and the backward operator."""
    call = moved(trial.call, bench.device)
    backend = host_backend if bench.dry else cupy_backend
    launcher = host_backend.HOST if bench.dry else cupy_backend.CUPY
    with torch.set_grad_enabled(trial.learns):
        plan, given = fused.prepare(call, launcher, unrolled=backend.recompute(call))
        keep = trial.learns and True in fused.needs(given)
        arguments = (*given, *ops._encode(plan), keep)
        found = opcheck("forward", torch.ops.snn_ext.neuron_forward, arguments)
        if keep:
            seen = backward_arguments(call, launcher, backend.recompute(call))
            found |= opcheck("backward", torch.ops.snn_ext.neuron_backward, seen, test_utils=_BACKWARD)
    return found


def opcheck(name: str, op: Any, arguments: Any, **more: Any) -> dict[str, str]:
    results = torch.library.opcheck(op, arguments, raise_exception=False, **more)
    return {f"{name} {test}": str(result)[:600] for test, result in results.items()}


def backward_arguments(call: Call, launcher: Any, unrolled: int | None) -> tuple[Any, ...]:
    """What the backward operator is given when the call is differentiated."""
    seen: list[tuple[Any, ...]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.snn_ext.neuron_backward.default:
                seen.append(args)
            return func(*args, **(kwargs or {}))

    spikes = ops.run(call, launcher, unrolled=unrolled).spikes
    with Look():
        spikes.backward(torch.randn(spikes.shape).to(spikes))
    return seen[0]
