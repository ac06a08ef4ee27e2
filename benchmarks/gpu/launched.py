"""Which kernels a call launches: is every way what it is called?

The last part, for a profiler may slow down what follows.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from ways import Way

from gpu.bench import Bench, attempt
from gpu.layers import layer
from gpu.nets import built, networks
from gpu.speed import KINDS, name_of

__all__ = ["run"]


def run(bench: Bench) -> dict[str, Any]:
    bench.cuda("counting kernels; these are operators")
    found: dict[str, Any] = {}
    for kind, dtype in bench.each(KINDS, "layers"):
        ways = layer(bench, kind, 4, 2**10, dtype).ways()
        found[name_of(kind, dtype, 4, 10)] = {
            n: attempt(lambda w=w: count(w, bench)) for n, w in ways.items()
        }
    if not bench.dry:
        for name, framework, make in bench.each(networks((2, 64), 128), "networks"):
            if importlib.util.find_spec(framework) is not None:
                found[name] = attempt(lambda m=make: _of_network(bench, m))
    return {"launches": found}


def _of_network(bench: Bench, make: Any) -> dict[str, Any]:
    _, ways, errors = built(bench, make, amp=True)
    return {**{name: count(way, bench) for name, way in ways.items()}, **errors}


def count(way: Way, bench: Bench) -> dict[str, Any]:
    """How many kernels (operators, on a CPU) one call runs, and the commonest."""
    way()
    kind = ProfilerActivity.CPU if bench.dry else ProfilerActivity.CUDA
    bench.synchronize()
    with profile(activities=[kind]) as seen:
        way()
        bench.synchronize()
    where = DeviceType.CPU if bench.dry else DeviceType.CUDA
    names = Counter(e.name[:80] for e in seen.events() if e.device_type == where)
    return {"count": names.total(), "commonest": dict(names.most_common(4))}
