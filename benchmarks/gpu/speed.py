"""Time and memory of one layer of neurons, forward and backward, against the frameworks and the floor."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from harness import interleaved, ratio
from memory import kept
from ways import Step, Way, train

from gpu.bench import Bench, attempt
from gpu.layers import FLOOR, OURS, Layer, layer

__all__ = ["KINDS", "memory", "name_of", "run", "usable"]

# T and log2 N, the most telling first: beyond every cache, within the L2, so small that launches count.
SIZES = [(4, 24), (4, 18), (4, 12), (16, 22), (32, 20), (4, 20), (16, 14)]
KINDS = [("LIF", torch.float32), ("LIF", torch.bfloat16), ("Leaky", torch.float32), ("Leaky", torch.bfloat16)]


def run(bench: Bench) -> dict[str, Any]:
    sizes = bench.pick(SIZES, [(4, 6), (20, 5)])
    cases = [(steps, power, *kind) for steps, power in sizes for kind in KINDS]
    found = {}
    for steps, power, kind, dtype in bench.each(cases, "cases"):
        name = name_of(kind, dtype, steps, power)
        bench.say(name)
        found[name] = attempt(lambda c=(kind, steps, 2**power, dtype): case(bench, *c))
        bench.empty_cache()
    return {"cases": found}


def name_of(kind: str, dtype: torch.dtype, steps: int, power: int) -> str:
    return f"{kind} {str(dtype).removeprefix('torch.')} T={steps} N=2^{power}"


def case(bench: Bench, kind: str, steps: int, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """All ways in turn; each is compared with ours and with the floor in the same round."""
    made = layer(bench, kind, steps, count, dtype)
    ways, errors = usable(made.ways())
    ways[FLOOR] = made.floor()
    times = interleaved(ways, bench.pick(11, 2), bench.device)
    rows = {
        name: {
            "ns": median(times[name]) / made.units * 1e9,
            "over_floor": list(ratio(times[name], times[FLOOR])),
            "ours_is_faster": list(ratio(times[name], times[OURS])) if OURS in times else None,
            "times": times[name],
        }
        for name in times
    }
    floor_bytes = 5 * made.x.itemsize
    return {
        "units": made.units,
        "floor_GBps": floor_bytes / rows[FLOOR]["ns"],
        "ways": rows,
        "errors": errors,
        "missing": made.missing,
    }


def usable(ways: dict[str, Way]) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways that run, and the errors of the others."""
    results = {name: attempt(way) for name, way in ways.items()}
    errors = {name: r["error"] for name, r in results.items() if isinstance(r, dict)}
    return {name: way for name, way in ways.items() if name not in errors}, errors


def memory(bench: Bench) -> dict[str, Any]:
    """Bytes per neuron-step that are kept between forward and backward, and the peak over both."""
    sizes = bench.pick([(4, 22), (32, 19)], [(4, 6)])
    found = {}
    for steps, power in sizes:
        for kind, dtype in bench.each(KINDS, "cases"):
            made = layer(bench, kind, steps, 2**power, dtype)
            rows = {
                name: attempt(lambda s=step, m=made: {**saved(s, m), **allocated(s, m, bench)})
                for name, step in made.steps.items()
            }
            found[name_of(kind, dtype, steps, power)] = {"ways": rows, "missing": made.missing}
            bench.empty_cache()
    return {"cases": found}


def saved(step: Step, made: Layer) -> dict[str, float]:
    """What autograd is told to keep, the input included."""
    return {"saved": kept(train(step, made.x, made.gradient)) / made.units}


def allocated(step: Step, made: Layer, bench: Bench) -> dict[str, float]:
    """What the allocator has given beyond what was there: after the forward pass, without the spikes
    themselves, and at most."""
    if not bench.cuda("what the allocator gives"):
        return {}
    made.x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    spikes = step(made.x)
    held = torch.cuda.memory_allocated() - before - spikes.nbytes
    spikes.backward(made.gradient)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    made.x.grad = None
    return {"held": held / made.units, "peak": peak / made.units}
