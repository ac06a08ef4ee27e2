"""The kernels against the equations in plain torch on the CPU, in float32 and in float64.

In float32, spikes and membranes must be equal to the last bit. Gradients are compared with those in
float64; where float64 itself fires differently (a membrane within rounding of its threshold), with float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpu.bench import Bench, attempt
from gpu.trials import Trial, moved, trials
from snn_ext.kernels import Call, Result
from snn_ext.kernels.candidates import BACKENDS
from tests.kernels import harness

__all__ = ["examine", "run"]

Run = Callable[[Call], Result]


def run(bench: Bench) -> dict[str, Any]:
    # A dry run compiles nothing here: it is about this file, not about the kernels of the CPU.
    ours = BACKENDS["torch" if bench.dry else "cupy"].run
    bench.cuda("the kernels of CUDA; these are those of plain torch")
    todo = trials(bench.pick(700, 3))[:: bench.pick(1, 12)]
    found = []
    for trial in bench.each(todo, "calls"):
        found.append({"trial": trial.name, **attempt(lambda t=trial: examine(t, ours, bench.device))})
        if len(found) % 50 == 0:
            bench.say(f"{len(found)} of {len(todo)} calls")
    return {**summary(found), "of": len(todo)}


def examine(trial: Trial, ours: Run, device: str) -> dict[str, Any]:
    """One call: what differs."""
    call = trial.call
    shapes = (call.x.shape, call.x.shape[1:], call.x.shape)
    generator = torch.Generator().manual_seed(call.x.numel())
    outer = [torch.randn(shape, generator=generator) for shape in shapes]
    outer[0] = outer[0].to(call.x.dtype)
    with torch.set_grad_enabled(trial.learns):
        reference = BACKENDS["reference"].run
        got, found = evaluate(ours, moved(call, device), outer)
        same, rounded = evaluate(reference, moved(call), outer)
        exact, true = evaluate(reference, moved(call, dtype=torch.float64), outer)
    elsewhere = _unequal(same.spikes, exact.spikes)
    errors = [_error(g, t, call) for g, t in zip(found, rounded if elsewhere else true, strict=True)]
    return {
        "dtype": str(call.x.dtype).removeprefix("torch."),
        "spikes": same.spikes.numel(),
        "flips": _unequal(got.spikes, same.spikes),
        "membranes": _unequal(got.membrane, same.membrane)
        + (_unequal(got.membranes, same.membranes) if call.store else 0),
        "flips_of_float32": elsewhere,
        "error": max(errors, default=0.0),
        "tolerance": harness.TOLERANCE[call.x.dtype],
    }


def evaluate(run: Run, call: Call, outer: Sequence[Tensor]) -> tuple[Result, list[Tensor]]:
    """What a call returns, and its gradients, on the CPU."""
    result, wanted = run(call), harness.leaves(call)
    pairs = [(t, o.to(t)) for t, o in zip(result, outer, strict=True) if t is not None and t.requires_grad]
    grads: list[Tensor] = []
    if wanted and pairs:
        outputs, weights = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, wanted, weights, allow_unused=True)
        grads = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]
    return Result(*(t if t is None else t.detach().cpu() for t in result)), [g.cpu() for g in grads]


def _unequal(a: Tensor, b: Tensor) -> int:
    return int((a.double() != b.double()).sum())


def _error(found: Tensor, true: Tensor, call: Call) -> float:
    """As the kernel tests measure it: a sum of terms may cancel, their rounding errors do not."""
    terms = call.x.numel() / max(found.numel(), 1)
    floor = terms**0.5 if found.numel() < call.x[0].numel() else 1e-3
    value = harness.error(found, true, floor=floor)
    return float("inf") if value != value else value


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By type of input, with the worst of each, and everything that is wrong."""
    by_dtype: dict[str, Any] = {}
    wrong = [f for f in found if "error" in f and not isinstance(f["error"], float)]
    for f in found:
        if f in wrong:
            continue
        if f["flips"] or f["membranes"] or f["error"] > f["tolerance"]:
            wrong.append(f)
        row = by_dtype.setdefault(
            f["dtype"],
            dict.fromkeys(("calls", "spikes", "flips", "membranes", "flips_of_float32"), 0)
            | {"error": 0.0, "tolerance": f["tolerance"], "worst": ""},
        )
        row["calls"] += 1
        for key in ("spikes", "flips", "membranes", "flips_of_float32"):
            row[key] += f[key]
        if f["error"] >= row["error"]:
            row["error"], row["worst"] = f["error"], f["trial"]
    return {"calls": len(found), "wrong": len(wrong), "by_dtype": by_dtype, "failures": wrong[:40]}
