"""Training and eval mode, other dtypes and devices, copies."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics import functional
from snn_ext.methods.options import IMP
from snn_ext.patching.record import patched_modules
from snn_ext.patching.sequence import tensors_in
from snn_ext.testing.case import Case
from snn_ext.testing.check import Unsupported, check, expect, expect_equal, need
from snn_ext.testing.models import (
    everything,
    expect_same_output,
    inputs,
    neurons,
    output,
    patched,
    stock,
    unlike,
)

__all__ = [
    "conversion_keeps_the_sequence",
    "deepcopy",
    "half_inputs",
    "half_precision",
    "moves_with_the_model",
    "pickling",
    "training_flags",
]


@check("structure", do="do not call train() or eval(), nor set .training, in snn_ext_replace")
def training_flags(case: Case) -> None:
    """The patch leaves every training flag as it is, and train() and eval() reach everything new."""
    options = everything(case)
    for training in (False, True):
        model = stock(case).train(training)
        plain = {path: m.training for path, m in model.named_modules()}
        model = patched(case, model=model, training=None, **options)
        changed = [path for path, flag in plain.items() if model.get_submodule(path).training is not flag]
        expect(
            not changed,
            "the patch changed the training flag of modules.",
            where=f"case {case.name}: {', '.join(p or '(root)' for p in changed)}",
        )
        model.train(not training)
        left = [path for path, module in model.named_modules() if module.training is training]
        expect(not left, "train() and eval() do not reach everything.", where=", ".join(left))


@check(
    "structure",
    do="take V0 in initial_membrane(features, dtype) with the dtype of the state, keep states in float32 for"
    " half inputs, and return spikes in the dtype of the input",
)
def half_precision(case: Case) -> None:
    """In half precision the patched network returns what the stock one returns: shapes, dtypes, no NaN."""
    theirs = _run_in(case, stock(case), torch.float16)
    ours = _run_or_fail(case, torch.float16)
    _expect_alike(case, theirs, ours)


@check(
    "semantics",
    do="keep the membrane in float32 for half inputs: initial_membrane(features, dtype) with"
    " torch.promote_types(x.dtype, torch.float32)",
)
def half_inputs(case: Case) -> None:
    """With inputs in half precision, as under autocast, membranes are still float32."""
    for neuron in neurons(case, described=True):
        module = neuron.patched(imp=IMP(init=(0.3, 0.6)))
        x = neuron.drive(100, 0.0, 1.5, batch=32).half()
        with torch.no_grad():
            try:
                neuron.play(neuron.fresh(), x)
            except Exception as error:
                raise Unsupported(f"the framework's own neuron takes no half inputs: {error}") from error
            theirs = neuron.play(module, x)
            ours = [
                functional.multistep(
                    x, module.get_parameter("imp"), replace(neuron.dynamics, fires_at_equality=e)
                )
                for e in (neuron.dynamics.fires_at_equality, not neuron.dynamics.fires_at_equality)
            ]
        # half inputs meet thresholds exactly; which way that goes is the business of another check
        same = [run for run in ours if torch.equal(run.spikes, theirs.to(run.spikes.dtype))]
        expect_equal(
            (same or ours)[0].spikes.float(),
            theirs.float(),
            "it spikes as with another membrane.",
            where=neuron.where,
        )


@check(
    "structure",
    do="hold tensors as parameters and buffers only, or as the framework holds its states; do not override"
    " _apply without calling the parent's",
)
def moves_with_the_model(case: Case) -> None:
    """.to(dtype) and .to(device) take everything along that the patch brought."""
    model = patched(case, **everything(case)).to(torch.float64)
    left = [name for name, t in _floating(model).items() if t.dtype is not torch.float64]
    expect(
        not left, ".to(torch.float64) leaves tensors behind.", where=f"case {case.name}: {', '.join(left)}"
    )
    left = [name for name, t in _floating(model.to("meta")).items() if not t.is_meta]
    expect(not left, ".to(device) leaves tensors behind.", where=f"case {case.name}: {', '.join(left)}")
    try:
        theirs = _run_in(case, stock(case), torch.float64)
    except Unsupported:
        return  # moved all the same
    _expect_alike(case, theirs, _run_or_fail(case, torch.float64))


@check(
    "structure",
    do="let .to() and .half() in the middle of a sequence make no new start of it (override _apply, and mark"
    " the new state as the old one was)",
)
def conversion_keeps_the_sequence(case: Case) -> None:
    """A network that is converted in the middle of a sequence goes on where it was."""
    half = len(inputs(case)) // 2
    results: dict[tuple[str, bool], list[Tensor]] = {}
    for name in ("stock", "patched"):
        for convert in (False, True):
            model = stock(case) if name == "stock" else patched(case, **everything(case))
            with torch.no_grad():
                output(case, model, inputs(case)[:half])
                model = model.double().float() if convert else model
                results[name, convert] = output(case, model, inputs(case)[half:])
    need(
        not unlike(results["stock", False], results["stock", True]),
        "the framework itself starts anew when it is converted",
    )
    expect_same_output(
        results["patched", False],
        results["patched", True],
        "converted in the middle of a sequence, it goes on otherwise.",
        where=f"case {case.name}",
    )


def _floating(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: t for name, t in named if t.is_floating_point()}


def _run_in(case: Case, model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    try:
        with torch.no_grad():
            return list(tensors_in(case.run(model.to(dtype), inputs(case).to(dtype))))
    except Exception as error:
        raise Unsupported(f"the framework's own network does not run in {dtype}: {error}") from error


def _run_or_fail(case: Case, dtype: torch.dtype) -> list[Tensor]:
    try:
        return _run_in(case, patched(case, **everything(case)), dtype)
    except Unsupported as error:
        expect(
            False,
            f"patched, it does not run in {dtype}.",
            where=f"case {case.name}",
            why=str(error.__cause__),
        )
        raise


def _expect_alike(case: Case, theirs: list[Tensor], ours: list[Tensor]) -> None:
    expect(
        [(t.shape, t.dtype) for t in theirs] == [(t.shape, t.dtype) for t in ours],
        "the patched network returns other shapes or dtypes.",
        where=f"case {case.name}",
        why=f"{[(list(t.shape), t.dtype) for t in ours]}, the stock one"
        f" {[(list(t.shape), t.dtype) for t in theirs]}",
    )
    expect(
        all(bool(t.isfinite().all()) for t in ours), "it returns NaN or infinity.", where=f"case {case.name}"
    )


@check(
    "structure",
    do="keep nothing on the neuron that refers to the neuron itself or to a tensor of it (bound methods,"
    " closures, copies of V0); do not override __deepcopy__",
)
def deepcopy(case: Case) -> None:
    """A deep copy of a patched network gives the same output, and has a V0 of its own."""
    try:
        copy.deepcopy(stock(case))
    except Exception as error:
        raise Unsupported(f"the framework's own network cannot be copied: {error}") from error
    original = patched(case, **everything(case))
    _expect_twin(case, copy.deepcopy(original), original, "copy")


@check(
    "structure",
    do="use importable mixin classes at module level with swap_class, and keep nothing on the neuron that"
    " cannot be pickled (lambdas, local functions)",
)
def pickling(case: Case) -> None:
    """A pickled and unpickled patched network gives the same output, and has a V0 of its own."""
    try:
        pickle.loads(pickle.dumps(stock(case)))
    except Exception as error:
        raise Unsupported(f"the framework's own network does not pickle: {error}") from error
    original = patched(case, **everything(case))
    _expect_twin(case, pickle.loads(pickle.dumps(original)), original, "unpickled network")


def _expect_twin(case: Case, twin: nn.Module, original: nn.Module, name: str) -> None:
    theirs = {id(t) for t in (*original.parameters(), *original.buffers())}
    shared = [n for n, t in (*twin.named_parameters(), *twin.named_buffers()) if id(t) in theirs]
    expect(not shared, f"the {name} shares tensors with the original.", where=", ".join(shared))
    expect(
        list(patched_modules(twin)) == list(patched_modules(original)),
        f"the {name} is not patched at the same sites.",
        where=f"case {case.name}",
    )
    mine: dict[str, Any] = original.state_dict()
    for key, value in twin.state_dict().items():
        expect_equal(mine[key], value, f"the {name} has another value.", where=key)
    with torch.no_grad():
        expected = output(case, original)
        for _, parameter in original.named_parameters():
            parameter.zero_()  # if the twin still looked there, it would show
        expect_same_output(expected, output(case, twin), f"the {name} gives another output.", where=case.name)
