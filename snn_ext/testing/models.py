"""What checks do with a case: fresh networks, patched ones, single neurons, and comparisons.

Nothing is run twice and nothing is copied unless that is the point of a check: every run gets a new
network from the same seed, so that a mistake in a reset or a copy fails its own check and no other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from snn_ext.dynamics.description import Dynamics, NeuronSpec, NormSpec
from snn_ext.methods.options import BNTT, IMP
from snn_ext.patching.apply import patch, plan
from snn_ext.patching.record import walk
from snn_ext.patching.sequence import tensors_in
from snn_ext.patching.sites import Site, scan
from snn_ext.testing.case import Case
from snn_ext.testing.check import Unsupported, expect, expect_equal, need

__all__ = [
    "BATCH",
    "Neuron",
    "Wrapped",
    "adapter_of",
    "differences",
    "everything",
    "expect_same_output",
    "inputs",
    "neurons",
    "output",
    "patched",
    "same_values",
    "snapshot",
    "stock",
    "takes",
    "unlike",
]

BATCH = 3
_START = (0.3, 0.6)  # of V0, where it shall matter: away from zero, below usual thresholds


def stock(case: Case) -> nn.Module:
    """A new network of the framework, in eval mode; always with the same weights and statistics."""
    torch.manual_seed(1)
    model = case.make_model().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                _train_a_little(module)
    return model


def _train_a_little(norm: _BatchNorm) -> None:
    """Statistics and affines that matter: with those of a new norm much would look neutral that is not."""
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        if isinstance(tensor, Tensor):
            tensor.add_(torch.rand(tensor.shape) * 0.5 - 0.125)


def inputs(case: Case, batch: int = BATCH) -> Tensor:
    """An input [T, B, *]; always the same one for a batch size."""
    torch.manual_seed(2)
    return case.make_input(batch)


def output(case: Case, model: nn.Module, x: Tensor | None = None) -> list[Tensor]:
    """All tensors that a run returns, detached; seeded, as a network may draw random numbers."""
    torch.manual_seed(3)
    result = case.run(model, inputs(case) if x is None else x)
    return [t.detach() for t in tensors_in(result)]


def patched(
    case: Case, *, training: bool | None = False, model: nn.Module | None = None, **options: Any
) -> nn.Module:
    """A new network (or `model`) with these methods, in eval mode unless `training` (None: as it was).

    V0 is drawn from the same seed every time.
    """
    model = stock(case) if model is None else model
    x = inputs(case)
    torch.manual_seed(4)
    model = patch(model, example_input=case.example(x), timesteps=len(x), **options)
    return model if training is None else model.train(training)


def takes(case: Case, method: str) -> list[Site]:
    """The sites of the case's network that accept a method."""
    return [site for site in scan(stock(case)) if not site.spec.refusal(method)]


def everything(case: Case) -> dict[str, Any]:
    """Every method that some site of the case takes, as arguments of `patch`; V0 away from zero."""
    sites = scan(stock(case))
    options: dict[str, Any] = {}
    if any(isinstance(s.spec, NeuronSpec) and not s.spec.refusal("imp") for s in sites):
        options["imp"] = IMP(init=_START)
    if any(isinstance(s.spec, NeuronSpec) and not s.spec.refusal("mpbn") for s in sites):
        options["mpbn"] = True
    if any(isinstance(s.spec, NormSpec) and not s.spec.refusal("bntt") for s in sites):
        options["bntt"] = BNTT(bias=True)
    need(options, "no site of the case takes any method")
    return options


def adapter_of(case: Case) -> str:
    """Name of the adapter that knows the case's network."""
    names = {site.adapter for site in scan(stock(case))}
    expect(
        len(names) == 1,
        f"{len(names)} adapters know the network of this case, not one.",
        where=f"case {case.name}",
        why=", ".join(sorted(names)) or "none of the registered adapters describes any of its modules",
    )
    return names.pop()


def unlike(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two outputs differ: if not, a check of what makes the difference would prove nothing."""
    return any(p.shape != q.shape or not torch.equal(p, q) for p, q in zip(a, b, strict=True))


def expect_same_output(ours: list[Tensor], theirs: list[Tensor], what: str, *, where: str = "") -> None:
    """Used in checks: two outputs are equal to the last bit."""
    expect(len(ours) == len(theirs), what, where=where, why=f"{len(theirs)} tensors, not {len(ours)}")
    for a, b in zip(ours, theirs, strict=True):
        expect_equal(a, b, what, where=where)


@dataclass(frozen=True)
class Neuron:
    """One neuron of a case's network, by itself.

    Attributes:
        case: whose network it is from.
        path: where it is there.
        features: shape of one sample at one step.
        spec: what the adapter says about it when it stands alone.
    """

    case: Case
    path: str
    features: tuple[int, ...]
    spec: NeuronSpec

    def fresh(self) -> nn.Module:
        """A new one, not patched."""
        return stock(self.case).get_submodule(self.path)

    def patched(self, **options: Any) -> nn.Module:
        """A new one with these methods; V0 is drawn from the same seed every time."""
        x = torch.zeros(2, BATCH, *self.features)
        example = x if self.spec.time.features((2, BATCH, 1)) == (1,) else x[0]
        torch.manual_seed(4)
        return patch(self.fresh(), example_input=(example,), timesteps=8, **options).eval()

    def play(self, module: nn.Module, x: Tensor) -> Tensor:
        """Spikes [T, B, *] of the neuron."""
        return self.case.play(module, x)

    def drive(self, steps: int, low: float, high: float, batch: int = BATCH) -> Tensor:
        """Random input [T, B, *], uniform; 1 is what charges a neuron at rest to its threshold at once,
        if it does not rest at zero."""
        x = torch.rand(steps, batch, *self.features) * (high - low) + low
        return x * self.unit

    @property
    def unit(self) -> Tensor:
        """Threshold / gain."""
        d = self.dynamics
        return (torch.as_tensor(d.threshold) / torch.as_tensor(d.gain)).detach()

    @property
    def dynamics(self) -> Dynamics:
        """Its equations."""
        if self.spec.dynamics is None:
            raise Unsupported(f"{self.where} is not described by equations")
        return self.spec.dynamics

    @property
    def where(self) -> str:
        """For messages."""
        return f"case {self.case.name}, neuron {self.path or '(root)'}"


def neurons(case: Case, method: str = "imp", *, described: bool = False) -> Iterator[Neuron]:
    """The neurons of the case that take a method, each by itself; at least one."""
    found = list(_neurons(case, method))
    need(found, f"no neuron of the case takes {method.upper()}")
    chosen = [n for n in found if n.spec.dynamics is not None or not described]
    need(chosen, "the adapter describes the equations of no neuron of the case (NeuronSpec.dynamics)")
    yield from chosen


def _neurons(case: Case, method: str) -> Iterator[Neuron]:
    option: Any = IMP(init=0.0)
    x = inputs(case)
    for decision in plan(stock(case), imp=option, example_input=case.example(x)).decisions:
        if decision.features is None:
            continue
        path = decision.site.paths[0]
        alone = scan(stock(case).get_submodule(path))[0]
        if isinstance(alone.spec, NeuronSpec) and not alone.spec.refusal(method):
            yield Neuron(case, path, decision.features, alone.spec)


class Wrapped(nn.Module):
    """A network inside a user's module, with others beside it; calling it calls the network."""

    def __init__(self, inner: nn.Module, **others: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        for name, module in others.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that patching could change, as data that compares with ``==``."""
    return {path: _state(module) for path, module in walk(model)}


@dataclass(frozen=True)
class _Same:
    """Compares by identity (and keeps the object alive, so that identities stay unique)."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class _Tensor:
    value: Tensor
    copy: Tensor | None  # None where there are no values: lazy, or on meta
    trained: bool

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Tensor) or self.value is not other.value:
            return False
        if self.copy is None or other.copy is None:
            return self.copy is other.copy and self.trained == other.trained
        return self.trained == other.trained and same_values(self.copy, other.copy)

    __hash__ = None  # type: ignore[assignment]


def same_values(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, where NaN is NaN; on meta only shapes can be."""
    if a.is_meta or b.is_meta or a.shape != b.shape:
        return a.is_meta is b.is_meta and a.shape == b.shape
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _state(module: nn.Module) -> dict[str, Any]:
    return {"class": type(module), "id": id(module)} | {k: _token(v) for k, v in module.__dict__.items()}


def _token(value: Any) -> Any:
    if isinstance(value, Tensor):
        empty = is_lazy(value) or value.is_meta
        return _Tensor(value, None if empty else value.detach().clone(), value.requires_grad)
    if isinstance(value, dict):
        return [(key, _token(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_token(item) for item in value]
    if isinstance(value, int | float | str | type(None)):
        return copy.copy(value)
    return _Same(value)


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What differs between two snapshots, for a message."""
    found = []
    for path in {**before, **after}:
        old, new = before.get(path, {}), after.get(path, {})
        names = [k for k in {**old, **new} if k not in old or k not in new or old[k] != new[k]]
        if names:
            found.append(f"{path or '(root)'}: {', '.join(names)}")
    return "; ".join(found[:5])
