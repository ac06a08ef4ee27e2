"""One layer of neurons: snn-ext's kernels against SpikingJelly, snnTorch and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import snntorch as snn
import torch
from harness import Case, main
from spikingjelly.activation_based import neuron, surrogate
from ways import LEAKY, LIF, Step, Way, all_of, inputs, leaky, lif, ours, spikingjelly, start, stepwise

from snn_ext.functional import multistep
from snn_ext.surrogates import FastSigmoid, Rectangle


def node(bump: str = "ATan") -> Step:
    return spikingjelly(neuron.LIFNode(surrogate_function=getattr(surrogate, bump)(), step_mode="m"))


def setup(steps: int, count: int, kind: str, dtype: torch.dtype = torch.float32) -> Mapping[str, Way]:
    """All ways to run `kind` over N neurons of a batch."""
    x, gradient = inputs(steps, count, dtype)
    dynamics = LIF if kind == "LIF" else LEAKY
    peer = {"SpikingJelly": node()} if kind == "LIF" else {"snnTorch": stepwise(snn.Leaky(beta=0.9))}
    v0 = start(count)
    steps_of: dict[str, Step] = {
        **peer,
        "snn-ext host": ours("host", dynamics),
        "snn-ext host + IMP": ours("host", dynamics, v0),
        "snn-ext torch": ours("torch", dynamics),
        "snn-ext reference": lambda x: multistep(x, 0.0, dynamics).spikes.to(x.dtype),
    }
    return all_of(steps_of, x, gradient)


def compiled(steps: int, count: int) -> Mapping[str, Way]:
    """torch.compile of the reference (seconds of compiling for every T)."""
    program = torch.compile(lambda x: multistep(x, 0.0, LIF).spikes)
    steps_of = {"SpikingJelly": node(), "snn-ext host": ours("host", LIF), "torch.compile": program}
    return all_of(steps_of, *inputs(steps, count))


def rectangle(steps: int, count: int) -> Mapping[str, Way]:
    """A surrogate that SpikingJelly does not fuse."""
    dynamics = lif(Rectangle())
    steps_of = {
        "SpikingJelly": node("Rect"),
        "snn-ext host": ours("host", dynamics),
        "snn-ext torch": ours("torch", dynamics),
    }
    return all_of(steps_of, *inputs(steps, count))


def fast_sigmoid(steps: int, count: int) -> Mapping[str, Way]:
    """snnTorch's other usual surrogate."""
    theirs = snn.Leaky(beta=0.9, spike_grad=snn.surrogate.fast_sigmoid())
    steps_of = {"snnTorch": stepwise(theirs), "snn-ext host": ours("host", leaky(FastSigmoid()))}
    return all_of(steps_of, *inputs(steps, count))


def cases(quick: bool) -> list[Case]:
    """Every case, with its goals."""
    sizes = [12] if quick else [12, 16, 20]
    rounds = 3 if quick else 15
    make = functools.partial
    lif_goals = {12: 8.0, 16: 8.0, 20: 5.0}
    leaky_goals = {12: 8.0, 16: 8.0, 20: 4.0}
    n = 12 if quick else 16
    size, units = f"N=2^{n}", 2**n
    result = [
        *(
            Case(
                f"LIF T=4 N=2^{k}",
                make(setup, 4, 2**k, "LIF"),
                "SpikingJelly",
                4 * 2**k,
                {"snn-ext host": lif_goals[k], "snn-ext torch": 2.2},
                rounds,
            )
            for k in sizes
        ),
        *(
            Case(
                f"Leaky T=4 N=2^{k}",
                make(setup, 4, 2**k, "Leaky"),
                "snnTorch",
                4 * 2**k,
                {"snn-ext host": leaky_goals[k]},
                rounds,
            )
            for k in sizes
        ),
        Case(
            f"LIF T=16 {size}",
            make(setup, 16, 2**n, "LIF"),
            "SpikingJelly",
            16 * units,
            {"snn-ext torch": 2.2},
            rounds,
        ),
        Case(
            f"LIF bfloat16 T=4 {size}",
            make(setup, 4, 2**n, "LIF", torch.bfloat16),
            "SpikingJelly",
            4 * units,
            rounds=rounds,
        ),
        Case(f"LIF rectangle T=4 {size}", make(rectangle, 4, 2**n), "SpikingJelly", 4 * units, rounds=rounds),
        Case(
            f"Leaky fast sigmoid T=4 {size}",
            make(fast_sigmoid, 4, 2**n),
            "snnTorch",
            4 * units,
            rounds=rounds,
        ),
    ]
    if not quick:
        result.append(
            Case("LIF compiled T=4 N=2^16", make(compiled, 4, 2**16), "SpikingJelly", 2**18, rounds=rounds)
        )
    return result


if __name__ == "__main__":
    main("neurons", cases)
