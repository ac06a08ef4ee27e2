"""Whole networks, one training step without the optimizer: unpatched, patched, and the fastest there is."""

from __future__ import annotations

import copy
import importlib.util
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from harness import interleaved, ratio
from networks import CLASSES, NEUTRAL, Made, sew, train
from torch import Tensor, nn
from ways import LEAKY, Way

import snn_ext
from gpu.bench import Bench, attempt
from gpu.speed import usable
from snn_ext import kernels
from snn_ext.kernels import Call

__all__ = ["run"]

UNPATCHED = "unpatched"


def run(bench: Bench) -> dict[str, Any]:
    size = bench.pick((_batch(bench), 224), (1, 32))
    found: dict[str, Any] = {}
    cases = [(*net, amp) for amp in (True, False) for net in networks(size, bench.pick(128, 4))]
    for name, framework, make, amp in bench.each(cases[: bench.pick(None, 2)], "networks"):
        full = f"{name} {'bf16 autocast' if amp else 'float32'}"
        if importlib.util.find_spec(framework) is None:
            found[full] = {"missing": f"{framework} is not installed"}
            continue
        bench.say(full)
        found[full] = attempt(lambda m=make, a=amp: measured(bench, m, a))
        bench.empty_cache()
    return {"networks": found}


def networks(pictures: tuple[int, int], digits: int) -> list[tuple[str, str, Callable[[], Made]]]:
    """Name, framework and maker of each, for batches of that many pictures (of a size), and digits."""
    batch, size = pictures
    return [
        (f"SEW-ResNet-18 T=4 [{batch}, 3, {size}, {size}]", "spikingjelly", lambda: sew(batch, size)),
        (f"T5 784-1000-10 T=25 [{digits}, 784]", "snntorch", lambda: t5(digits)),
    ]


def _batch(bench: Bench) -> int:
    """The unpatched network keeps up to about 1 GiB a sample."""
    if bench.dry:
        return 1
    return 32 if torch.cuda.get_device_properties(0).total_memory > 64 * 2**30 else 8


def t5(batch: int) -> Made:
    """snnTorch's tutorial 5, with its loop over time."""
    from tests.adapters.snntorch_nets import T5

    return T5(), torch.rand(batch, 784) * 2


class Whole(nn.Module):
    """T5 with every layer run over all steps at once: what is gained by giving up the loop."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.fc1, self.fc2, self.steps = net.fc1, net.fc2, net.steps
        self.dynamics = replace(LEAKY, decay=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        current = self.fc1(x.expand(self.steps, *x.shape))
        spikes = kernels.run(Call(current, self.dynamics)).spikes
        out = kernels.run(Call(self.fc2(spikes), self.dynamics, store=True))
        return out.spikes, out.membranes


def networks_of(bench: Bench, plain: nn.Module, x: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """The ways to run one network, all with the same weights and the same outputs."""

    def patched(backend: str | None) -> Callable[[], nn.Module]:
        return lambda: snn_ext.patch(copy.deepcopy(plain), imp=NEUTRAL, example_input=x, backend=backend)

    made: dict[str, Callable[[], nn.Module]] = {
        UNPATCHED: lambda: plain,
        "IMP": patched(None),
        f"IMP, {bench.backend}": patched(bench.backend),
        "IMP, framework's step": patched("framework"),
    }
    if hasattr(plain, "fc1"):
        made["whole sequences"] = lambda: Whole(copy.deepcopy(plain))
    return made


def built(
    bench: Bench, make: Callable[[], Made], amp: bool
) -> tuple[dict[str, nn.Module], dict[str, Way], dict[str, str]]:
    """The networks, their training steps, and the errors of those that cannot be built or run."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        plain, x = make()
        labels = torch.randint(0, CLASSES, (x.shape[1] if x.ndim == 5 else len(x),))
    made = {name: attempt(build) for name, build in networks_of(bench, plain, x).items()}
    errors = {name: net["error"] for name, net in made.items() if isinstance(net, dict)}
    nets = {name: net for name, net in made.items() if name not in errors}
    ways, more = usable({name: train(net, x, labels, amp) for name, net in nets.items()})
    return nets, ways, errors | more


def measured(bench: Bench, make: Callable[[], Made], amp: bool) -> dict[str, Any]:
    """All ways in turn, and each against the unpatched network in the same round."""
    nets, ways, errors = built(bench, make, amp)
    details = {name: attempt(lambda n=name: _details(bench, nets[n], ways[n])) for name in ways}
    times = interleaved(ways, bench.pick(9, 1), bench.device)
    rows = {
        name: {
            "ms": median(times[name]) * 1e3,
            "speedup": list(ratio(times[UNPATCHED], times[name])) if UNPATCHED in times else None,
            **details[name],
            "times": times[name],
        }
        for name in times
    }
    return {"ways": rows, "errors": errors}


def _details(bench: Bench, net: nn.Module, way: Way) -> dict[str, Any]:
    """The loss (equal for all but for rounding, and for half-width membranes), what runs the neurons,
    and the memory of a step."""
    rows = snn_ext.report(net).to_dict()["sites"]
    steps = Counter(f"{row['step']} ({row['step_note']})" for row in rows if row["methods"])
    found = {"loss": float(way()), "neurons": dict(steps)}
    if bench.cuda("memory of a training step"):
        net.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way()
        torch.cuda.synchronize()
        found["peak_MiB"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found
