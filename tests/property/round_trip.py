"""The property itself, used with the toy framework here and with the real ones in tests/adapters."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import snn_ext
from snn_ext import IMP
from tests.unit.test_plan import fingerprint, same

__all__ = ["check_copies", "check_round_trip"]

Run = Callable[[nn.Module], torch.Tensor]


def check_round_trip(model: nn.Module, option: IMP, example: torch.Tensor, run: Run) -> None:
    """patch, patch again, unpatch: classes, identities, keys, hooks and outputs come back.

    `run` starts a new sequence and returns the output; neurons may be replaced by new objects.
    """
    output = run(model)
    before, keys = fingerprint(model), list(model.state_dict())
    aliases = dict(model.named_modules(remove_duplicate=False))
    fired: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda m, *_: fired.add(m)) for m in set(model.modules())]
    run(model)
    fired_before = set(fired)
    snn_ext.patch(model, imp=option, example_input=example)
    fired.clear()
    patched, first = fingerprint(model), run(model)
    assert fired == fired_before, "hooks registered before the patch still fire"
    assert [k for k in model.state_dict() if k in set(keys)] == keys
    snn_ext.patch(model, imp=option, example_input=example)
    assert same(without_state(patched), without_state(fingerprint(model))), "patching twice is a no-op"
    assert torch.equal(run(model), first)
    snn_ext.unpatch(model)
    for handle in handles:
        handle.remove()
    for name, module in model.named_modules(remove_duplicate=False):
        assert module is aliases[name]
    assert same(without_state(before), without_state(fingerprint(model)))
    assert torch.equal(run(model), output)


def check_copies(
    model: nn.Module, fresh: nn.Module, option: IMP, example: torch.Tensor, run: Run, folder: Path
) -> None:
    """deepcopy, pickle, state_dict and snn_ext.save/load all give models with equal outputs."""
    snn_ext.patch(model, imp=option, example_input=example)
    expected = run(model)
    snn_ext.reset(model)
    assert torch.equal(run(copy.deepcopy(model)), expected)
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), expected)
    snn_ext.save(model, folder / "model")
    assert torch.equal(run(snn_ext.load(fresh, folder / "model")), expected)
    torch.save(model.state_dict(), folder / "state")
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1)
    fresh.load_state_dict(torch.load(folder / "state"))
    assert torch.equal(run(fresh), expected)


def without_state(prints: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Neuron states differ after a run, and so do the buffers that hold them."""
    volatile = {"mem", "syn", "spk"}
    return {
        name: tuple(
            {k: v for k, v in p.items() if k not in volatile} if isinstance(p, dict) else p for p in parts
        )
        for name, parts in prints.items()
    }
