"""Neurons that SpikingJelly and snnTorch can be made to have, and inputs for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from snn_ext import Dynamics, Leak
from snn_ext.kernels.arguments import Call
from snn_ext.surrogates import ATan, FastSigmoid, PiecewiseQuadratic, Rectangle, Sigmoid, Surrogate

SPIKINGJELLY: list[Surrogate] = [ATan(), Sigmoid(), PiecewiseQuadratic(0.75), Rectangle(0.8)]
SNNTORCH: list[Surrogate] = [ATan(), FastSigmoid(), Sigmoid(3.0)]
SHAPES = [(2, 3, 2, 3), (1, 3, 1, 5), (3, 3, 1, 1), (2, 3, 4, 1)]
STEPS = 5
AFFINES: list[Callable[[Values], tuple[Tensor | None, Tensor | None]]] = [
    lambda values: (None, None),
    lambda values: (None, None),
    lambda values: (values.tensor(STEPS, 3), values.tensor(STEPS, 3)),
    lambda values: (None, None),
    lambda values: (None, values.tensor(3)),
    lambda values: (values.tensor(3), None),
]

# charge: keywords of Dynamics made from a source of values
CHARGES = ["if", "lif", "lif dyadic", "lif no input", "plif", "plif no input"]


class Values:
    """Numbers and tensors, dyadic (with few bits, so that sums hit thresholds exactly) or not."""

    def __init__(self, seed: int, dyadic: bool) -> None:
        self.random, self.dyadic = random.Random(seed), dyadic
        self.generator = torch.Generator().manual_seed(seed)

    def tensor(self, *shape: int, low: float = -2.0, high: float = 3.0) -> Tensor:
        if self.dyadic:
            whole = torch.randint(int(low * 4), int(high * 4) + 1, shape, generator=self.generator)
            return whole.float() / 4
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def parameter(self, low: float, high: float, shape: tuple[int, ...], *, learn: bool) -> float | Tensor:
        """A number, or a tensor per layer, channel or neuron."""
        kinds: list[tuple[int, ...] | None] = [(), (shape[1], 1, 1), shape[1:]]
        kind = self.random.choice(kinds if learn else [None, None, *kinds])
        if kind is None:
            return float(self.tensor(low=low, high=high))
        return self.tensor(*kind, low=low, high=high).requires_grad_(learn)


def spikingjelly(charge: str, reset: str) -> Iterator[Dynamics]:
    """IF, LIF and PLIF nodes; every second one with a learnable threshold."""
    for i, surrogate in enumerate(SPIKINGJELLY):
        for detach in (False, True):
            values = Values(i * 2 + detach, dyadic=True)
            learn = (i + detach) % 2 == 0
            decay: dict[str, Dynamics | Leak] = {}
            if charge.startswith("lif"):
                tau = 2.0 if charge == "lif dyadic" else 3.0
                decay["leak"] = Leak(tau, input=charge != "lif no input")
            elif charge.startswith("plif"):
                rate = torch.tensor(0.5 if detach else 0.37).requires_grad_(learn)
                decay["leak"] = Leak(rate, divide=False, input=charge == "plif")
            yield Dynamics(
                **decay,  # type: ignore[arg-type]
                threshold=values.parameter(0.5, 1.5, SHAPES[0], learn=learn) if learn else 1.0,
                rest=0.25 if reset == "hard" and i % 2 else 0.0,
                reset=reset,  # type: ignore[arg-type]
                detach_reset=detach,
                surrogate=surrogate,
            )


def snntorch(reset: str) -> Iterator[Dynamics]:
    """Leaky and Lapicque."""
    for i, surrogate in enumerate(SNNTORCH):
        values = Values(i, dyadic=i == 1)
        yield Dynamics(
            decay=values.parameter(0.5, 1.0, SHAPES[0], learn=i != 0),
            gain=values.parameter(0.5, 1.5, SHAPES[0], learn=False) if i == 2 else 1.0,
            threshold=values.parameter(0.5, 1.5, SHAPES[0], learn=i == 1),
            reset=reset,  # type: ignore[arg-type]
            timing="delayed",
            fires_at_equality=False,
            detach_reset=True,
            surrogate=surrogate,
        )


def others(timing: str) -> Iterator[Dynamics]:
    """What no neuron of the two does, but `Dynamics` can say."""
    for i, reset in enumerate(("hard", "soft", "none")):
        for equality in (False, True):
            leak = [None, Leak(0.4, divide=False), Leak(2.5, input=False)][(i + equality) % 3]
            yield Dynamics(
                decay=0.9,
                gain=0.7,
                leak=leak,
                rest=0.25 * equality,
                reset=reset,  # type: ignore[arg-type]
                timing=timing,  # type: ignore[arg-type]
                fires_at_equality=equality,
                surrogate=SPIKINGJELLY[i],
            )


def call(dynamics: Dynamics, i: int, dtype: torch.dtype, *, dyadic: bool) -> Call:
    """A call for a neuron; starts, thresholds per neuron, stored membranes and affine inputs take turns."""
    values, learnable = Values(i, dyadic), _shape_of(dynamics)
    shape = SHAPES[0] if learnable else SHAPES[i % len(SHAPES)]
    v = values.tensor(*shape).requires_grad_(i % 4 == 1) if i % 4 in (1, 2) else None
    starts = [None, 0.25, values.tensor(shape[1], 1, 1), values.tensor(*shape[1:]), values.tensor(*shape)]
    v0 = starts[i % 5]
    if isinstance(v0, Tensor):
        v0.requires_grad_(i % 2 == 0)
    scale, shift = AFFINES[i // 2 % len(AFFINES)](values)
    for p in (scale, shift):
        if p is not None:
            p.requires_grad_(i % 2 == 0)
    return Call(
        values.tensor(STEPS, *shape).to(dtype).requires_grad_(i % 7 != 6),
        dynamics,
        v=v,
        v0=v0,
        resume=v is not None and dynamics.timing == "delayed" and dynamics.detach_reset,
        scale=scale,
        shift=shift,
        store=i % 2 == 0,
    )


def _shape_of(d: Dynamics) -> bool:
    decay = d.decay if d.leak is None else d.leak.value
    return any(isinstance(p, Tensor) and p.ndim for p in (decay, d.threshold, d.gain))


def calls(family: list[Dynamics]) -> list[Call]:
    """Every neuron in float32 with random and dyadic inputs, every other one also in a half-width type."""
    found = []
    for i, d in enumerate(family):
        found += [call(d, 2 * i + k, torch.float32, dyadic=bool(k)) for k in (0, 1)]
        if i % 2:
            found.append(call(d, 2 * i, (torch.float16, torch.bfloat16)[i // 2 % 2], dyadic=True))
    return found


FAMILIES: dict[str, list[Dynamics]] = {
    **{f"{c}, {r}": list(spikingjelly(c, r)) for c in CHARGES for r in ("hard", "soft")},
    **{f"snntorch, {r}": list(snntorch(r)) for r in ("hard", "soft", "none")},
    **{f"others, {t}": list(others(t)) for t in ("immediate", "delayed")},
}
"""Every specialisation of the kernels, but for the types of inputs and outputs: see `calls`."""
