"""A patched neuron from a random V0 does what an independent loop over snnTorch's equations does.

`reference` knows no snnTorch: per class the charge and the reset of the equations, with the one rule
of snn-ext on top: the membrane a sequence starts from causes no reset.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from snn_ext.patching.sequence import is_carried
from snn_ext_snntorch import neurons
from tests.adapters.snntorch_nets import private_instances

KINDS = ("Leaky", "Synaptic", "Lapicque", "RLeaky", "RSynaptic")
RESETS = ("subtract", "zero", "none")
# Lapicque has no reset_delay, and RSynaptic's reset_delay=False cannot run in snnTorch 1.0.0.
DELAYS = {"Lapicque": (True,), "RSynaptic": (True,)}


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


@dataclass(frozen=True)
class Setup:
    """A neuron as numbers. `recurrent` is a factor (one-to-one) or a (weight, bias) of a dense layer."""

    kind: str
    reset: str
    threshold: Tensor
    beta: Tensor
    alpha: Tensor = field(default_factory=lambda: torch.tensor(0.5))
    recurrent: Any = None
    delay: bool = True
    factor: float = 1.0
    resistance: float = 2.0
    capacity: float = 3.0
    dt: float = 1.0

    @property
    def circuit(self) -> tuple[Tensor, Tensor]:
        """Lapicque's R and C, in the precision of the other constants."""
        return self.beta.new_tensor(self.resistance), self.beta.new_tensor(self.capacity)

    @property
    def decay(self) -> Tensor:
        """dU/dU_prev without a reset."""
        if self.kind == "Lapicque":
            r, c = self.circuit
            return 1 - self.dt / (r * c)
        return self.beta

    @property
    def has_current(self) -> bool:
        return self.kind in ("Synaptic", "RSynaptic")

    def feedback(self, spikes: Tensor) -> Tensor:
        """The input that the spikes of the step before cause."""
        if isinstance(self.recurrent, tuple):
            return F.linear(spikes, *self.recurrent)
        return spikes * self.recurrent

    def build(self, *, hidden: bool, **options: Any) -> Any:
        """The snnTorch neuron; its states can be seen in both styles."""
        options |= {"threshold": self.threshold, "reset_mechanism": self.reset}
        options |= {"init_hidden": hidden, "output": hidden}
        if self.kind == "Lapicque":
            return snn.Lapicque(R=self.resistance, C=self.capacity, time_step=self.dt, **options)
        options["reset_delay"] = self.delay
        if self.kind == "Leaky":
            return snn.Leaky(self.beta, graded_spikes_factor=self.factor, **options)
        if self.kind == "Synaptic":
            return snn.Synaptic(self.alpha, self.beta, **options)
        dense = isinstance(self.recurrent, tuple)
        options["all_to_all"] = dense
        if dense:
            options["linear_features"] = self.recurrent[1].numel()
        else:
            options["V"] = self.recurrent
        if self.kind == "RLeaky":
            neuron = snn.RLeaky(self.beta, **options)
        else:
            neuron = snn.RSynaptic(self.alpha, self.beta, **options)
        if dense:
            neuron.recurrent.weight, neuron.recurrent.bias = map(nn.Parameter, self.recurrent)
        return neuron


def reference(setup: Setup, x: Tensor, v0: Tensor, spike_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, charged membranes and carried membranes [T, B, *] of inputs `x` from the membrane `v0`."""
    s = setup
    u = v0.expand_as(x[0])
    spikes = current = torch.zeros_like(x[0])
    pending = torch.zeros_like(x[0], dtype=spike_dtype)
    fired, charged, carried = [], [], []
    for t, drive in enumerate(x):
        if t:
            pending = (u > s.threshold).to(spike_dtype)
        h, current = _charge(s, drive, u, spikes, current, pending)
        bare = (h > s.threshold).to(spike_dtype)
        spikes = bare * s.factor
        u = h
        if not s.delay and s.reset == "subtract":
            u = h - (spikes / s.factor - pending) * s.threshold
        elif not s.delay and s.reset == "zero":
            u = h - (spikes / s.factor - pending) * h
        fired.append(spikes)
        charged.append(h)
        carried.append(u)
    return torch.stack(fired), torch.stack(charged), torch.stack(carried)


def _charge(
    s: Setup, drive: Tensor, u: Tensor, spikes: Tensor, current: Tensor, pending: Tensor
) -> tuple[Tensor, Tensor]:
    if s.kind == "Leaky":
        if s.reset == "zero":
            return s.beta * ((1 - pending) * u) + drive, current
        h = s.beta * u + drive
        return (h - pending * s.threshold if s.reset == "subtract" else h), current
    if s.kind == "Lapicque":
        r, c = s.circuit
        h = drive * r * (1 / (r * c)) * s.dt + s.decay * u
    elif s.kind == "RLeaky":
        h = s.beta * u + drive + s.feedback(spikes)
    else:
        current = s.alpha * current + drive
        current = current + s.feedback(spikes) if s.kind == "RSynaptic" else current
        h = s.beta * u + current
    if s.reset == "subtract":
        h = h - pending * s.threshold
    elif s.reset == "zero":
        h = h - pending * h
    return h, current


def drive(neuron: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a neuron in its own style over [T, B, *]: spikes and membranes."""
    fired, membranes = [], []
    if neuron.init_hidden:
        states: tuple[Tensor, ...] = ()
        neuron.reset_mem()
    else:
        first = neuron.reset_mem()
        states = first if isinstance(first, tuple) else (first,)
    for x_t in x:
        spikes, *rest = neuron(x_t, *states)
        if not neuron.init_hidden:
            states = (spikes, *rest) if isinstance(neuron, snn.RLeaky | snn.RSynaptic) else tuple(rest)
        fired.append(spikes)
        membranes.append(rest[-1])
    return torch.stack(fired), torch.stack(membranes)


def random_setup(
    kind: str,
    reset: str,
    delay: bool,
    vector: bool,
    features: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
) -> Setup:
    """Random constants. Thresholds are multiples of 1/8, so that float32 holds them exactly."""
    # Vectors are per channel on maps; Lapicque refuses a vector of time constants.
    shape = (features[0], *[1] * (len(features) - 1)) if vector else ()
    dense = vector and len(features) == 1
    n = features[0]
    recurrent: Any = (torch.randn(n, n, dtype=dtype) / 2, torch.randn(n, dtype=dtype) / 4)
    return Setup(
        kind=kind,
        reset=reset,
        delay=delay,
        threshold=torch.randint(4, 12, shape).to(dtype) / 8,
        beta=torch.rand(shape, dtype=dtype) * 0.8 + 0.2,
        alpha=torch.rand(shape, dtype=dtype) * 0.8 + 0.2,
        recurrent=recurrent if dense else torch.randn(shape, dtype=dtype) / 2,
        factor=2.0 if kind == "Leaky" else 1.0,
        resistance=float(torch.randint(2, 20, ())) / 4,
        capacity=float(torch.randint(4, 20, ())) / 4,
    )


def patched(setup: Setup, v0: Tensor, features: tuple[int, ...], *, hidden: bool, **options: Any) -> Any:
    """The neuron, its V0 set to `v0` (shape [*features])."""
    neuron = setup.build(hidden=hidden, **options)
    net = snn_ext.patch(nn.Sequential(neuron), imp=snn_ext.IMP(init=0.0, shape=tuple(features)))
    with torch.no_grad():
        neuron.imp.copy_(v0)
    assert net[0] is neuron
    return neuron


GRID = [
    (kind, reset, delay, hidden, vector)
    for kind, reset, hidden, vector in itertools.product(KINDS, RESETS, (False, True), (False, True))
    for delay in DELAYS.get(kind, (True, False))
]


def _compare(case: tuple[str, str, bool, bool, bool], features: tuple[int, ...]) -> list[bool]:
    kind, reset, delay, hidden, vector = case
    setup = random_setup(kind, reset, delay, vector, features)
    # Far above the threshold, too: such a V0 must not act like a spike of the past.
    v0 = torch.rand(features) * 4 - 1
    x = torch.randn(12, 3, *features) * 1.5
    spikes, _, membranes = reference(setup, x, v0, torch.float32)
    assert 0 < spikes.sum() < spikes.numel() * setup.factor
    seen_spikes, seen_membranes = drive(patched(setup, v0, features, hidden=hidden), x)
    return [torch.equal(seen_spikes, spikes), torch.equal(seen_membranes, membranes)]


@pytest.mark.parametrize("features", [(5,), (2, 3, 3)], ids=["dense", "map"])
@pytest.mark.parametrize("case", GRID, ids=lambda c: "-".join(map(str, c)))
def test_random_v0_equals_the_loop(
    case: tuple[str, str, bool, bool, bool], features: tuple[int, ...]
) -> None:
    assert _compare(case, features) == [True, True]


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("hidden", [False, True])
def test_leaky_with_learnable_constants_equals_the_loop(reset: str, hidden: bool) -> None:
    setup = random_setup("Leaky", reset, True, True, (5,))
    v0, x = torch.rand(5) * 2 - 1, torch.randn(12, 3, 5)
    neuron = patched(
        setup, v0, (5,), hidden=hidden, learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True
    )
    spikes, _, membranes = reference(setup, x, v0, torch.float32)
    seen_spikes, seen_membranes = drive(neuron, x)
    assert torch.equal(seen_spikes, spikes)
    assert torch.equal(seen_membranes, membranes)


@pytest.mark.parametrize("kind", KINDS)
def test_membranes_exactly_at_the_threshold(kind: str) -> None:
    """Inputs and constants on a grid of 1/8: the comparison is strict, at the start too."""
    setup = Setup(
        kind,
        "subtract",
        threshold=torch.tensor(1.0),
        beta=torch.tensor(0.5),
        recurrent=torch.tensor(0.5),
        resistance=1.0,
        capacity=2.0,
    )
    x = torch.randint(-8, 16, (40, 4, 6)) / 8
    v0 = torch.arange(-4, 8).reshape(2, 6)[1] / 2
    if kind == "Lapicque":
        x = x * 2  # its gain is 1/2
    spikes, charged, membranes = reference(setup, x, v0, torch.float32)
    assert (charged == 1).any()
    seen_spikes, seen_membranes = drive(patched(setup, v0, (6,), hidden=False), x)
    assert torch.equal(seen_spikes, spikes)
    assert torch.equal(seen_membranes, membranes)


def _v0(self: Any) -> Tensor:
    v0: Tensor = self.imp.sigmoid() if self._imp_option.squash else self.imp
    return v0


def _never_adds(self: Any, mem: Tensor) -> Tensor:
    return snn.SpikingNeuron.mem_reset(self, mem)


def _always_adds(self: Any, mem: Tensor) -> Tensor:
    reset = snn.SpikingNeuron.mem_reset(self, mem)
    self.mem = self.mem + _v0(self)
    return reset


def _adds_before_the_reset(self: Any, mem: Tensor) -> Tensor:
    if not is_carried(self.mem):
        self.mem = self.mem + _v0(self)
    return snn.SpikingNeuron.mem_reset(self, self.mem)


@pytest.mark.parametrize("wrong", [_never_adds, _always_adds, _adds_before_the_reset])
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_twins_fail_the_comparison(kind: str, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons.IMP, "mem_reset", wrong)
    for hidden in (False, True):
        assert False in _compare((kind, "subtract", True, hidden, False), (5,))
