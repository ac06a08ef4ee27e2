"""What the adapter says about modules: its own, others', and nobody's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics.description import NeuronSpec
from snn_ext.errors import NothingMatchedError
from snn_ext.methods.options import IMP
from snn_ext.patching import plugins
from snn_ext.patching.apply import patch
from snn_ext.patching.sites import scan
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, expect, need
from snn_ext.testing.models import (
    Wrapped,
    adapter_of,
    differences,
    expect_same_output,
    inputs,
    neurons,
    output,
    patched,
    snapshot,
    stock,
)

__all__ = [
    "claims_only_its_own",
    "describe_is_pure",
    "finds_every_neuron",
    "nothing_matched",
    "user_subclass",
]


class _Stranger(nn.Module):
    """A neuron of nobody's framework that looks like one of everybody's."""

    def __init__(self) -> None:
        super().__init__()
        self.v = self.mem = self.threshold = self.v_threshold = torch.zeros(())
        self.beta = self.tau = self.w = nn.Parameter(torch.zeros(()))
        self.step_mode, self.p, self.state = "m", None, None

    def forward(self, x: Tensor, state: Any = None) -> Tensor:
        return x

    def reset(self) -> None:
        """Nothing to forget."""


class LIFNode(_Stranger):
    """Named like a neuron, too."""


def _strangers() -> list[nn.Module]:
    layers = [nn.Linear(3, 3), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.RNN(3, 3), nn.LayerNorm(3)]
    return [*layers, nn.Identity(), nn.ModuleList(), nn.Sequential(), _Stranger(), LIFNode()]


@check(
    "structure",
    do="recognise your framework's classes in snn_ext_describe (isinstance, or comes_from before importing"
    " it), never attributes or names; return None for everything else",
)
def claims_only_its_own(case: Case) -> None:
    """Modules of torch and of strangers are not described, inside the framework's networks or outside."""
    adapter, model = adapter_of(case), stock(case)
    for stranger in _strangers():
        root = Wrapped(model, stranger=stranger)
        spec = plugins.ask(adapter, "snn_ext_describe", module=stranger, path="stranger", root=root)
        expect(
            spec is None,
            f"the adapter {adapter!r} claims a {type(stranger).__name__} that is not of its framework.",
            where=f"{type(stranger).__module__}.{type(stranger).__name__}",
            why=f"it returned {spec}",
        )


@check(
    "structure",
    do="describe every neuron of the framework in snn_ext_describe, those that cannot be patched too, with"
    " the reason in NeuronSpec.unsupported",
)
def finds_every_neuron(case: Case) -> None:
    """Every neuron that the case names is described as a neuron, and nothing else is."""
    need(case.neurons, "the case does not name its neurons (Case.neurons)")
    found = {p for s in scan(stock(case)) if isinstance(s.spec, NeuronSpec) for p in s.paths}
    missed, invented = set(case.neurons) - found, found - set(case.neurons)
    expect(
        not missed,
        f"{len(missed)} neurons of the case are not described: a patch would pass them by in silence.",
        where=f"case {case.name}: {', '.join(sorted(missed))}",
    )
    expect(
        not invented,
        f"{len(invented)} modules are described as neurons that the case does not name.",
        where=f"case {case.name}: {', '.join(sorted(invented))}",
    )


@check(
    "structure",
    do="let snn_ext_describe look and do nothing else: no attribute set, no step run, no random number drawn",
)
def describe_is_pure(case: Case) -> None:
    """Describing a network changes neither it nor the random generator, and says the same thing twice."""
    model = stock(case)
    before, random = snapshot(model), torch.get_rng_state()
    first = scan(model)
    expect(
        bool(torch.equal(random, torch.get_rng_state())),
        "describing a network draws random numbers.",
        where=f"case {case.name}",
    )
    after = snapshot(model)
    expect(
        before == after,
        "describing a network changes it.",
        where=f"case {case.name}: {differences(before, after)}",
    )
    again = scan(model)
    same = [(s.paths, s.adapter, s.spec.time, s.spec.unsupported) for s in first]
    expect(
        same == [(s.paths, s.adapter, s.spec.time, s.spec.unsupported) for s in again],
        "describing a network twice gives two descriptions.",
        where=f"case {case.name}",
    )


@check(
    "structure",
    do="recognise subclasses in snn_ext_describe (isinstance, not type(...) is); mix into the module's own"
    " class in snn_ext_replace: swap_class(site.module, Mixin)",
)
def user_subclass(case: Case) -> None:
    """A user's subclass of a framework neuron is patched, stays what it is, and keeps its methods."""
    path = next(neurons(case)).path
    model = stock(case)
    neuron = model.get_submodule(path)
    mine = type("Mine", (type(neuron),), {"of_mine": lambda self: "mine", "__module__": __name__})
    neuron.__class__ = mine
    described = [s for s in scan(model) if path in s.paths]
    expect(
        bool(described) and not described[0].spec.refusal("imp"),
        "a subclass without any change is not taken for a neuron, or is refused.",
        where=f"case {case.name}, {path or '(root)'}",
        why=str(described[0].spec.unsupported) if described else "snn_ext_describe returned None",
    )
    model = patched(case, model=model, imp=IMP(init="rest"))
    neuron = model.get_submodule(path)
    own: Any = getattr(neuron, "of_mine", None)
    kept = isinstance(neuron, mine) and own is not None and own() == "mine"
    expect(kept, "the patched neuron is not of the user's class any more.", where=f"{path or '(root)'}")
    theirs = output(case, stock(case))
    expect_same_output(theirs, output(case, model), "the patched subclass gives another output.", where=path)


@check(
    "life cycle",
    do="let snn_ext_describe return None for what is not yours, whatever the root is; do not raise, and do"
    " not take for granted that the root has modules of your framework",
)
def nothing_matched(case: Case) -> None:
    """No neuron in the network, or a pattern that matches none: NothingMatchedError, and no change."""
    next(neurons(case))
    model = stock(case)
    before = snapshot(model)
    for root, include in ((nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "*"), (model, "no.such.path")):
        try:
            patch(root, imp=True, include=include, example_input=case.example(inputs(case)))
        except NothingMatchedError:
            continue
        expect(
            False,
            f"patching a {type(root).__name__} where nothing can match raised nothing.",
            where=f"include={include!r}",
        )
    after = snapshot(model)
    expect(before == after, "it changed the network.", where=differences(before, after))
