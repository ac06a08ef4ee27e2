"""Patch, patch again, take back, save, load, fail."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from snn_ext.errors import AlreadyPatchedError
from snn_ext.methods.options import IMP, Method
from snn_ext.methods.parts import Part, attach
from snn_ext.patching import apply
from snn_ext.patching.apply import plan, unpatch
from snn_ext.patching.checkpoints import load, save
from snn_ext.patching.record import patched_modules
from snn_ext.patching.report import report
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, expect, expect_equal, need
from snn_ext.testing.models import (
    differences,
    everything,
    expect_same_output,
    inputs,
    neurons,
    output,
    patched,
    snapshot,
    stock,
)

__all__ = ["atomic_on_failure", "older_checkpoint", "patching_twice", "save_and_load", "unpatch_is_exact"]


@check(
    "life cycle",
    do="describe a patched module as before (snn_ext.original_class(module) is its class without the patch)",
)
def patching_twice(case: Case) -> None:
    """The same options again change nothing; other options are AlreadyPatchedError."""
    options = everything(case)
    model = patched(case, **options)
    before, table = snapshot(model), str(report(model))
    patched(case, model=model, **options)
    after = snapshot(model)
    expect(
        before == after,
        "patching again with the same options changed the network.",
        where=differences(before, after),
    )
    expect(table == str(report(model)), "the report changed.", where=f"case {case.name}")
    need("imp" in options, "no neuron of the case takes IMP")
    try:
        patched(case, model=model, **options | {"imp": IMP(init=0.125)})
    except AlreadyPatchedError:
        return
    expect(False, "other options on a patched network raised nothing.", where=f"case {case.name}")


@check(
    "life cycle",
    do="undo in snn_ext_changed what snn_ext_replace or snn_ext_changed did outside the class swap (hooks,"
    " caches, attributes); attributes that are class attributes of the mixin are removed for you",
)
def unpatch_is_exact(case: Case) -> None:
    """unpatch gives back classes, attributes, parameters, buffers and hooks, and the output."""
    model = stock(case)
    before = snapshot(model)
    after = snapshot(unpatch(patched(case, model=model, **everything(case))))
    expect(before == after, "unpatch left something behind.", where=differences(before, after))
    expect_same_output(
        output(case, stock(case)), output(case, model), "the output changed.", where=f"case {case.name}"
    )


@check(
    "life cycle",
    do="do not ask for new keys in _load_from_state_dict, and register nothing persistent of your own",
)
def older_checkpoint(case: Case) -> None:
    """A checkpoint from before the patch loads with strict=True, with one warning; V0 stays."""
    old = stock(case)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.add_(0.5)
    model = patched(case, imp=IMP(init=0.25))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_state_dict(old.state_dict(), strict=True)
    told = [w for w in caught if "before the patch" in str(w.message)]
    expect(len(told) == 1, f"{len(told)} warnings about the missing V0, not one.", where=f"case {case.name}")
    loaded = dict(model.named_parameters())
    for name, value in old.named_parameters():
        expect_equal(value, loaded[name], "a value was not loaded.", where=name)
    for path, (module, _) in patched_modules(model).items():
        kept = module.get_parameter("imp")
        expect_equal(torch.full_like(kept, 0.25), kept, "V0 lost its value.", where=f"{path}.imp")


@check(
    "life cycle",
    do="let snn_ext_replace depend on its arguments alone: at load there is no trace (no snn_ext_watch), only"
    " the site, the methods and the features",
)
def save_and_load(case: Case) -> None:
    """snn_ext.save and snn_ext.load give a fresh network the same patches, values and output."""
    options = everything(case)
    model = patched(case, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.0625)
    fresh = stock(case)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "case.safetensors")
        fresh = load(fresh, Path(folder) / "case.safetensors").eval()
    expect(
        str(report(fresh)) == str(report(model)), "the loaded network is patched otherwise.", where=case.name
    )
    mine, theirs = model.state_dict(), fresh.state_dict()
    expect(list(mine) == list(theirs), "the loaded network has other keys.", where=case.name)
    for key, value in mine.items():
        expect_equal(value, theirs[key], "a value was not loaded.", where=key)
    expect_same_output(output(case, model), output(case, fresh), "the output changed.", where=case.name)


@check(
    "life cycle",
    do="change in snn_ext_replace nothing but the class of site.module (swap_class): what else it changes,"
    " core cannot take back when a later site fails",
)
def atomic_on_failure(case: Case) -> None:
    """A patch that fails at its last site leaves the network as it was."""
    next(neurons(case))
    model = stock(case)
    made = plan(
        model, example_input=case.example(inputs(case)), timesteps=len(inputs(case)), **everything(case)
    )
    last = [decision for decision in made.decisions if decision.methods][-1]
    before = snapshot(model)

    def fails_at_last(module: nn.Module, option: Method, part: Part, path: str) -> None:
        if path == last.site.paths[0]:
            raise RuntimeError("on purpose")
        attach(module, option, part, path)

    # behind everything that `apply` can find out before it begins
    with mock.patch.object(apply, "attach", fails_at_last), contextlib.suppress(RuntimeError):
        made.apply()
    after = snapshot(model)
    expect(
        before == after,
        "a failed patch changed the network.",
        where=f"{case.name}: {differences(before, after)}",
    )
