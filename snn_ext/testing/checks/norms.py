"""Do the norms act where they should: MPBN on the membrane, BNTT at its step, the fold like MPBN?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.dynamics import functional
from snn_ext.dynamics.description import Dynamics, NeuronSpec, NormSpec, Time
from snn_ext.dynamics.surrogates import fire
from snn_ext.methods.batch_norms import normalise
from snn_ext.methods.norms import MembraneBatchNorm
from snn_ext.methods.options import BNTT
from snn_ext.patching.fold import fold
from snn_ext.testing.case import Case
from snn_ext.testing.check import check, expect, expect_equal, need
from snn_ext.testing.models import BATCH, Neuron, inputs, neurons, output, patched, takes

__all__ = ["bntt_knows_its_step", "fold_is_exact", "mpbn_follows_its_definition"]


def _normed(neuron: Neuron) -> Any:
    """The neuron with MPBN and statistics that matter."""
    module: Any = neuron.patched(mpbn=True)
    norm = module.mpbn.bn
    with torch.no_grad():
        torch.manual_seed(5)
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.copy_(torch.rand_like(tensor) - 0.3)
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.2)
    return module


@check(
    "semantics",
    do="let the neuron take its decision, and what it resets and carries, from membrane_decision(), once"
    " per step, and reset where it fired (NormalisedMembrane in snn_ext_replace)",
)
def mpbn_follows_its_definition(case: Case) -> None:
    """MPBN fires on the normalised membrane and resets the raw one where it fired."""
    for neuron in neurons(case, "mpbn", described=True):
        d = neuron.dynamics
        for training in (False, True):
            module = _normed(neuron).train(training)
            decide = _decision(copy.deepcopy(module.mpbn), d)
            x = neuron.drive(12, -1.0, 3.0, batch=8)
            with torch.no_grad():
                ours = functional.multistep(x, neuron.spec.rest, d, decide=decide).spikes
                theirs = neuron.play(module, x)
            mode = "train" if training else "eval"
            expect_equal(ours, theirs, f"MPBN does not spike as defined in {mode} mode.", where=neuron.where)
            counted = int(module.mpbn.bn.num_batches_tracked)
            expect(
                counted == (len(x) if training else 0),
                f"the norm was called {counted} times in a sequence of {len(x)} steps in {mode} mode.",
                where=neuron.where,
                why="its statistics are those of single steps: one call per step",
            )


def _decision(norm: MembraneBatchNorm, d: Dynamics) -> functional.Decide:
    def spike(u: Tensor) -> Tensor:
        return fire(u, d.surrogate, fires_at_equality=d.fires_at_equality)

    return functional.decide_normalised(norm, d.threshold, spike)


@check(
    "semantics",
    do="take threshold, comparison and spike function of firing_rule() from the neuron as it is, and every"
    " decision from membrane_decision(), which knows whether the norm is folded",
)
def fold_is_exact(case: Case) -> None:
    """Folding MPBN into thresholds flips no spike: gamma of both signs, and a constant at the threshold."""
    for neuron in neurons(case, "mpbn"):
        x = neuron.drive(12, -1.0, 3.0, batch=8) if neuron.spec.dynamics else _any_input(neuron)
        with torch.no_grad():
            before = neuron.play(_constant_channel(neuron), x)
            after = neuron.play(fold(_constant_channel(neuron)), x)
        expect_equal(before, after, "the folded neuron decides otherwise.", where=neuron.where)


def _any_input(neuron: Neuron) -> Tensor:
    return torch.rand(12, 8, *neuron.features) * 4 - 1


def _constant_channel(neuron: Neuron) -> Any:
    """gamma = 0 and beta = threshold in the first channel: its decision is that at equality."""
    module = _normed(neuron)
    theta = torch.as_tensor(module.firing_rule().threshold).reshape(-1)[0]
    with torch.no_grad():
        module.mpbn.bn.weight[0] = 0.0
        module.mpbn.bn.bias[0] = theta
    return module


@check(
    "semantics",
    do="give TimedNorm.sequence whole sequences [T, B, ...] and .step the right t (Time of the NormSpec in"
    " snn_ext_describe; Clock and ClockedNorm in loops); in neurons, input_norm.sequence and .step",
)
def bntt_knows_its_step(case: Case) -> None:
    """Every step is normalised once, by the statistics of that step: in batch norms and in neurons."""
    sites = takes(case, "bntt")
    need(sites, "no site of the case takes BNTT")
    norms = [site.paths[0] for site in sites if isinstance(site.spec, NormSpec)]
    if norms:
        _in_norms(case, norms)
    if any(isinstance(site.spec, NeuronSpec) for site in sites):
        _in_neurons(case)


def _in_norms(case: Case, paths: list[str]) -> None:
    model = patched(case, bntt=BNTT(at="norm"))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in paths}
    for path in paths:
        norm: Any = model.get_submodule(path)
        _shift_slots(norm.bntt)
        norm.register_forward_hook(lambda m, i, o, path=path: seen[path].append((i[0], o)))
    with torch.no_grad():
        output(case, model)
        for path, calls in seen.items():
            if calls:
                _compare_steps(case, path, model.get_submodule(path), calls)
    need(any(seen.values()), "the batch norms of the case are never called as modules")


def _compare_steps(case: Case, path: str, norm: Any, calls: list[tuple[Tensor, Tensor]]) -> None:
    steps = len(inputs(case))
    time = next(s.spec.time for s in takes(case, "bntt") if s.paths[0] == path)
    x, y = (
        torch.cat(parts) if time is not Time.PER_CALL else torch.stack(parts)
        for parts in zip(*calls, strict=True)
    )
    if time is Time.MERGED:
        x, y = x.view(steps, -1, *x.shape[1:]), y.view(steps, -1, *y.shape[1:])
    for t in range(steps):
        ours = normalise(norm, x[t], None) if t == 0 else norm.bntt[t - 1](x[t])
        expect_equal(
            ours, y[t], f"step {t + 1} was not normalised by slot {t + 1}.", where=f"case {case.name}, {path}"
        )


def _in_neurons(case: Case) -> None:
    for neuron in neurons(case, "bntt"):
        module: Any = neuron.patched(bntt=BNTT(at="neuron"))
        _shift_slots(module.bntt.slots)
        x = torch.rand(8, BATCH, *neuron.features) * 4 - 1
        with torch.no_grad():
            normed = torch.stack([slot(x_t) for slot, x_t in zip(module.bntt.slots, x, strict=True)])
            ours = neuron.play(neuron.fresh(), normed)
            theirs = neuron.play(module, x)
        expect_equal(
            ours, theirs, "its input is not normalised by the slot of each step.", where=neuron.where
        )
        module = neuron.patched(bntt=BNTT(at="neuron")).train()
        with torch.no_grad():
            neuron.play(module, x)
        counts = [int(slot.num_batches_tracked) for slot in module.bntt.slots]
        expect(
            counts == [1] * len(x),
            "in training, the norm of a step is not called once.",
            where=neuron.where,
            why=f"calls per slot: {counts}",
        )


def _shift_slots(slots: nn.ModuleList) -> None:
    """Give every slot statistics of its own."""
    for t, slot in enumerate(slots, 1):
        for buffer in (slot.running_mean, slot.running_var):
            if isinstance(buffer, Tensor):
                buffer.add_(0.25 * t)
