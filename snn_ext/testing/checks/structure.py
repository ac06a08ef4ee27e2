"""What surrounds a patched neuron: other names, containers, keys, hooks and optimisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from snn_ext.errors import SnnExtError
from snn_ext.methods.options import IMP, METHODS
from snn_ext.patching.record import patched_modules
from snn_ext.patching.training import check_optimizer, param_groups
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, expect, expect_equal, need
from snn_ext.testing.models import (
    Wrapped,
    everything,
    expect_same_output,
    neurons,
    output,
    patched,
    stock,
)

__all__ = [
    "hooks_survive",
    "keys_unchanged",
    "nested_containers",
    "optimiser_identity",
    "outside_aliases",
    "tied_sites",
]

_REST = IMP(init="rest")
_IN_PLACE = (
    "change the module in place in snn_ext_replace: swap_class(site.module, Mixin), return site.module;"
    " a new object is missed by everything that holds the old one"
)


@check(
    "structure",
    do="make no assumption about len(site.paths) in snn_ext_replace: one module, one V0, under all its names",
)
def tied_sites(case: Case) -> None:
    """A neuron with two names in the tree stays one object, with one V0 under both."""
    path = next(neurons(case)).path
    model = stock(case)
    root = patched(case, model=Wrapped(model, again=model.get_submodule(path)), imp=_REST)
    both = root.get_submodule(f"inner.{path}".rstrip(".")), root.get_submodule("again")
    expect(both[0] is both[1], "a tied neuron became two objects.", where=f"inner.{path} and again")
    expect(
        isinstance(both[0]._parameters.get("imp"), nn.Parameter), "a tied neuron has no V0.", where="again"
    )
    expect_same_output(
        output(case, stock(case)), output(case, root), "the output changed.", where=f"case {case.name}, tied"
    )


@check("structure", do=_IN_PLACE)
def outside_aliases(case: Case) -> None:
    """A reference to a neuron that the user holds outside the tree is the patched neuron."""
    paths = [n.path for n in neurons(case)]
    model = stock(case)
    held = {path: model.get_submodule(path) for path in paths}
    model = patched(case, model=model, imp=_REST)
    stale = [path for path, module in held.items() if model.get_submodule(path) is not module]
    expect(
        not stale,
        "a reference from before the patch is not the module that runs now.",
        where=f"case {case.name}: {', '.join(p or '(root)' for p in stale)}",
    )


class _Deep(nn.Module):
    """Holds a network in containers of all kinds."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a_b": nn.ModuleList([nn.Identity(), Wrapped(inner)])})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for module in self.blocks["a_b"].children():
            result = module(*args, **kwargs) if isinstance(module, Wrapped) else None
        return result


@check(
    "structure",
    do="describe a module by what it is, not by how deep its path is or what its parent is (unless the parent"
    " changes what it sees: then look at root)",
)
def nested_containers(case: Case) -> None:
    """Deep in lists, dicts and custom modules, the same neurons are patched as at the top."""
    at_top = patched(case, imp=_REST)
    deep = patched(case, model=_Deep(stock(case)), imp=_REST)
    prefix = "blocks.a_b.1.inner"
    expected = {f"{prefix}.{path}".rstrip(".") for path in patched_modules(at_top)}
    missed = expected - set(patched_modules(deep))
    expect(not missed, "neurons in nested containers were not patched.", where=", ".join(sorted(missed)))
    expect_same_output(output(case, at_top), output(case, deep), "the output changed.", where=prefix)


@check(
    "structure",
    do="keep what the module registers where it is: new tensors of your own only under the names that core"
    " attaches (imp, mpbn, bntt, tebn), helpers as plain attributes",
)
def keys_unchanged(case: Case) -> None:
    """No state_dict key moves, changes its value or its order; new ones are <site>.<method>*."""
    before = {key: value.clone() for key, value in stock(case).state_dict().items()}
    model = patched(case, **everything(case))
    after = model.state_dict()
    kept = [key for key in after if key in before]
    expect(
        kept == list(before),
        "keys of the network are missing, or in another order.",
        where=", ".join([key for key in before if key not in after] or kept),
    )
    for key, value in before.items():
        expect_equal(value, after[key], "the patch changed a value.", where=key)
    sites = tuple(f"{path}." if path else "" for path in patched_modules(model))
    strange = [
        key
        for key in after
        if key not in before
        and not any(
            key.startswith(site) and key.removeprefix(site).partition(".")[0] in METHODS for site in sites
        )
    ]
    expect(not strange, "there are keys that belong to no method.", where=", ".join(strange))


@check("structure", do=_IN_PLACE + "; leave its hook dictionaries alone")
def hooks_survive(case: Case) -> None:
    """Hooks that were registered on neurons before the patch fire after it, as often as before."""
    paths = [n.path for n in neurons(case)]
    counts: list[dict[str, int]] = []
    for patching in (False, True):
        model, fired = stock(case), dict.fromkeys(paths, 0)
        for path in paths:
            _count(model.get_submodule(path), path, fired)
        if patching:
            model = patched(case, model=model, imp=_REST)
        fired.update(dict.fromkeys(paths, 0))
        with torch.no_grad():
            output(case, model)
        model.state_dict()
        counts.append(fired)
    need(any(counts[0].values()), "no hook fires in the framework itself")
    expect(
        counts[0] == counts[1],
        "hooks on neurons do not fire as before the patch.",
        where=f"case {case.name}",
        why=f"before {counts[0]}, after {counts[1]}",
    )


def _count(module: nn.Module, path: str, fired: dict[str, int]) -> None:
    def note(*_: Any, **__: Any) -> None:
        fired[path] += 1

    module.register_forward_pre_hook(note)
    module.register_forward_hook(note)
    module.register_state_dict_post_hook(note)  # type: ignore[no-untyped-call]


@check(
    "structure",
    do="keep every Parameter object: do not copy, replace or freeze one in snn_ext_replace",
)
def optimiser_identity(case: Case) -> None:
    """An optimiser built before the patch still trains the same parameters; a new one has all of them."""
    model = stock(case)
    before = {name: (p, p.requires_grad) for name, p in model.named_parameters()}
    model = patched(case, model=model, imp=IMP(init=0.25))
    now = dict(model.named_parameters())
    lost = [name for name, (p, _) in before.items() if now.get(name) is not p]
    expect(
        not lost,
        "the patch exchanged parameters: an optimiser would train the old ones.",
        where=", ".join(lost),
    )
    frozen = [name for name, (p, trained) in before.items() if p.requires_grad is not trained]
    expect(not frozen, "the patch changed requires_grad.", where=", ".join(frozen))
    try:
        check_optimizer(model, torch.optim.SGD(param_groups(model, lr=0.1)))
    except SnnExtError as error:
        expect(
            False,
            "an optimiser of param_groups misses parameters.",
            where=f"case {case.name}",
            why=str(error),
        )
    grown = [name for name in now if name not in before and not now[name].is_leaf]
    expect(not grown, "new parameters are not leaves.", where=", ".join(grown))
