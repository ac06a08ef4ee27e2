"""Early exit without any framework: the rules, who leaves when, what is executed, and calibration."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snn_ext import OptionError, ReadoutError, SnnExtError, TimestepError
from snn_ext.analysis import exit_calibration, exit_states
from snn_ext.analysis.early_exit import (
    BNTTExit,
    ConfidenceExit,
    EarlyExit,
    calibrate_exit,
    early_exit,
    gamma_sizes,
)
from snn_ext.analysis.exit_rules import low_from
from snn_ext.analysis.exit_states import States
from snn_ext.methods.conversion import FoldedTime, LaterSlots, TimedNorm
from snn_ext.methods.swap import swap_class
from snn_ext.norms import BatchNormThroughTime
from snn_ext.patching.sequence import carried, fired_by, is_carried, mark_output, steps_behind
from tests.toy import LeadingNeuron, StepNeuron, leading_net

ORACLE = ((1, 0.05, 0.5, 0.09, 0.05, 0.02), (1, 0.02, 0.5, 0.08, 0.04, 0.03))
"""g_1 and g_2 of the worked example: tau = 0.1 exits first at 2, sustained at 4; tau = 0.001 never."""


def dyadic_(net: nn.Module) -> nn.Module:
    """Weights that are multiples of 1/8: sums of spikes are exact, whatever the size of the batch. The
    last layer is three times as strong, so that confidence varies."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randint(-8, 9, layer.weight.shape) / 8)
            layer.bias.zero_()
        layers[-1].weight.mul_(3)
    return net.eval()


def exact_input(*shape: int) -> Tensor:
    return torch.randint(0, 2, shape).float()


def step_net() -> nn.Sequential:
    """One step [B, 4] -> [B, 3]."""
    net = nn.Sequential(nn.Linear(4, 12), StepNeuron(), nn.Linear(12, 8), StepNeuron(), nn.Linear(8, 3))
    dyadic_(net)
    return net


class Loop(nn.Module):
    """A model with a loop of its own: over x [T, B, 4], over the T of x [B, T, 4], or `steps` times
    over x [B, 4]."""

    def __init__(self, kind: str = "time first", steps: int = 5) -> None:
        super().__init__()
        self.net, self.kind, self.steps = step_net(), kind, steps

    def forward(self, x: Tensor) -> Tensor:
        for module in self.net:
            if isinstance(module, StepNeuron):
                module.reset()
        sequence = {
            "time first": lambda: x.unbind(0),
            "batch first": lambda: x.unbind(1),
            "static": lambda: [x] * self.steps,
        }[self.kind]()
        return torch.stack([self.net(x_t) for x_t in sequence])


def bntt_net(steps: int = 6, width: int = 5) -> nn.Sequential:
    """[T, B, 4] -> [T, B, 3] with two BNTT layers whose statistics differ from step to step."""
    norms = [BatchNormThroughTime(steps, width), BatchNormThroughTime(steps, width)]
    for slot in itertools.chain(*(norm.slots for norm in norms)):
        slot.running_mean.normal_()
        slot.running_var.uniform_(0.5, 2)
    net = nn.Sequential(
        nn.Linear(4, width),
        norms[0],
        LeadingNeuron(),
        nn.Linear(width, width),
        norms[1],
        LeadingNeuron(),
        nn.Linear(width, 3),
    )
    return net.eval()


def set_gammas(net: nn.Module, *sizes: tuple[float, ...]) -> None:
    """Give every BNTT layer gammas of these sizes, of either sign."""
    norms = [module for module in net.modules() if isinstance(module, BatchNormThroughTime)]
    with torch.no_grad():
        for norm, g in zip(norms, sizes, strict=True):
            for slot, size in zip(norm.slots, g, strict=True):
                signs = torch.ones_like(slot.weight)
                signs[::2] = -1
                slot.weight.copy_(signs * size)


def alone(net: nn.Module, sequence: Tensor, p: float) -> list[tuple[int, Tensor]]:
    """The definition: every sample by itself, step after step, until its mean score is sure enough."""
    found = []
    for i in range(sequence.shape[1]):
        for module in net.modules():
            if isinstance(module, StepNeuron):
                module.reset()
        total = torch.zeros(())
        for t, x in enumerate(sequence[:, i : i + 1], start=1):
            with torch.no_grad():
                total = total + net(x)
            mean = total / t
            if mean.softmax(1).max() >= p or t == len(sequence):
                found.append((t, mean[0]))
                break
    return found


def same_as_alone(result: EarlyExit, expected: list[tuple[int, Tensor]]) -> bool:
    steps = result.steps.tolist() == [t for t, _ in expected]
    return steps and torch.equal(result.scores, torch.stack([scores for _, scores in expected]))


# ---------------------------------------------------------------- the static rule


def layers(*sizes: tuple[float, ...]) -> list[Tensor]:
    return [torch.tensor(g, dtype=torch.float64) for g in sizes]


@pytest.mark.parametrize(
    ("threshold", "mode", "expected"),
    [(0.1, "first", 2), (0.1, "sustained", 4), (0.001, "first", None), (0.001, "sustained", None)],
)
def test_worked_example(threshold: float, mode: Any, expected: int | None) -> None:
    assert low_from(layers(*ORACLE), threshold, mode) == expected
    net = bntt_net()
    set_gammas(net, *ORACLE)
    assert BNTTExit(threshold, mode=mode).exit_step(net) == expected
    result = early_exit(net, torch.randn(6, 3, 4), BNTTExit(threshold, mode=mode))
    assert result.steps.tolist() == [expected or 6] * 3
    assert result.fired.tolist() == [expected is not None] * 3
    assert ("no exit" in str(result)) is (expected is None)


@pytest.mark.parametrize("mode", ["first", "sustained"])
def test_every_layer_must_be_low_and_strictly_so(mode: Any) -> None:
    low = (0.05,) * 3
    assert low_from(layers(low, low), 0.1, mode) == 1
    assert low_from(layers(low, (1.0, 1.0, 1.0)), 0.1, mode) is None
    assert low_from(layers(low, (0.1, 0.1, 0.1)), 0.1, mode) is None
    assert low_from(layers(low, (1.0, 1.0, 0.0)), 0.1, mode) == 3
    assert low_from(layers(low, (float("nan"),) * 3), 0.1, mode) is None


@given(
    st.integers(1, 7).flatmap(
        lambda steps: st.lists(
            st.lists(st.sampled_from([0.0, 0.05, 0.1, 1.0]), min_size=steps, max_size=steps),
            min_size=1,
            max_size=3,
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_modes_are_the_two_minima(sizes: list[list[float]]) -> None:
    steps = len(sizes[0])
    low = {t for t in range(1, steps + 1) if all(g[t - 1] < 0.1 for g in sizes)}
    sustained = [t for t in low if all(later in low for later in range(t, steps + 1))]
    given_layers = layers(*map(tuple, sizes))
    assert low_from(given_layers, 0.1, "first") == min(low, default=None)
    assert low_from(given_layers, 0.1, "sustained") == min(sustained, default=None)


def test_layers_of_different_length_are_compared_where_both_have_a_step() -> None:
    assert low_from(layers((1, 0.0), (1, 0.0, 1.0)), 0.1) == 2


def test_sizes_are_of_the_absolute_gammas() -> None:
    net = nn.Sequential(BatchNormThroughTime(2, 4))
    with torch.no_grad():
        net[0].slots[0].weight.copy_(torch.tensor([-3.0, 3.0, -1.0, 1.0]))
    assert gamma_sizes(net)["0"].tolist() == [2.0, 1.0]
    assert float(net[0].slots[0].weight.detach().mean()) == 0.0  # the signed mean says nothing
    assert gamma_sizes(net, "max")["0"].tolist() == [3.0, 1.0]
    assert gamma_sizes(net, 0.5)["0"].tolist() == [2.0, 1.0]
    assert gamma_sizes(net, 0.0)["0"].tolist() == [1.0, 1.0]


def converted(steps: int, *, affine: bool = True) -> nn.BatchNorm1d:
    """A batch norm as patching with BNTT leaves it."""
    norm = nn.BatchNorm1d(4, affine=affine)
    later = LaterSlots(norm, steps, bias=False, eps=1e-4, momentum=0.1)
    swap_class(norm, TimedNorm)
    norm.add_module("bntt", later)
    return norm.eval()


def test_a_converted_norm_is_slot_zero_of_its_own_gammas() -> None:
    norm = converted(3)
    with torch.no_grad():
        for value, slot in zip((0.5, -0.25, 2.0), [norm, *norm.bntt], strict=True):
            slot.weight.fill_(value)
    assert {k: g.tolist() for k, g in gamma_sizes(norm).items()} == {"(root)": [0.5, 0.25, 2.0]}
    assert [g.tolist() for g in gamma_sizes(converted(2, affine=False)).values()] == [[1.0, 1.0]]


def test_all_kinds_of_bntt_layers_count() -> None:
    net = nn.ModuleDict({"a": converted(2), "b": BatchNormThroughTime(2, 3), "c": nn.BatchNorm1d(3)})
    assert set(gamma_sizes(net)) == {"a", "b"}


def test_folded_gammas_are_not_passed_over() -> None:
    net = nn.ModuleDict({"a": converted(2), "b": BatchNormThroughTime(2, 3)}).eval()
    net["a"]._modules["bntt"] = FoldedTime(torch.ones(2, 4), torch.zeros(2, 4))
    with pytest.raises(OptionError, match=r"folding\.\n  where: a") as caught:
        BNTTExit().exit_step(net)
    assert "before snn_ext.fold" in caught.value.do


@pytest.mark.parametrize("mode", ["first", "sustained"])
def test_output_is_that_of_the_model_run_for_so_many_steps(mode: Any) -> None:
    net, x = bntt_net(), torch.randn(6, 7, 4) * 3
    set_gammas(net, *ORACLE)
    rule = BNTTExit(mode=mode)
    t = rule.exit_step(net)
    result = early_exit(net, x, rule)
    with torch.no_grad():
        full = net(x)
        assert torch.equal(result.scores, net(x[:t]).mean(0))
    assert torch.equal(result.scores, full[:t].mean(0))
    assert not torch.equal(result.scores, full.mean(0))
    assert not torch.equal(result.scores, full[: t + 1].mean(0))
    assert (result.timesteps, result.executed) == (6, "cut sequence")
    assert result.saved == pytest.approx(1 - t / 6)


def test_a_cut_sequence_is_really_shorter() -> None:
    net = bntt_net()
    set_gammas(net, *ORACLE)
    lengths: list[int] = []
    net[0].register_forward_pre_hook(lambda _, args: lengths.append(len(args[0])))
    early_exit(net, torch.randn(6, 2, 4), BNTTExit())
    assert lengths == [4]
    early_exit(net, torch.randn(2, 4), BNTTExit(), timesteps=6)  # the same for a static x that we repeat
    assert lengths == [4, 4]


class Repeats(nn.Module):
    """Shows a static x [B, 4] itself `steps` times to a multi-step net."""

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.expand(self.steps, *x.shape))


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 6, 9])
def test_the_batch_of_a_static_input_is_never_cut(batch: int) -> None:
    net, x = bntt_net(), torch.randn(batch, 4) * 3
    set_gammas(net, *ORACLE)
    model = Repeats(net, 6).eval()
    result = early_exit(model, x, BNTTExit())
    with torch.no_grad():
        assert torch.equal(result.scores, model(x)[:4].mean(0))
    assert result.steps.tolist() == [4] * batch
    assert (result.executed, result.timesteps) == ("whole sequence", 6)


def test_a_sequence_that_ends_before_the_exit() -> None:
    net = bntt_net()
    set_gammas(net, *ORACLE)
    result = early_exit(net, torch.randn(3, 2, 4), BNTTExit())  # the exit would be after step 4
    assert (result.steps.tolist(), result.timesteps, result.saved) == ([3, 3], 3, 0.0)
    assert not result.fired.any()
    assert "no exit, all 3 steps" in str(result)


def test_an_exit_after_the_last_step_is_one() -> None:
    net = bntt_net(2)
    set_gammas(net, (1, 0.01), (1, 0.01))
    result = early_exit(net, torch.randn(2, 3, 4), BNTTExit())
    assert (result.steps.tolist(), result.fired.tolist(), result.saved) == ([2] * 3, [True] * 3, 0.0)


# ---------------------------------------------------------------- samples that leave


@pytest.mark.parametrize("p", [0.34, 0.6, 0.9, 0.999])
def test_leaving_the_batch_equals_running_alone(p: float) -> None:
    net, x = step_net(), exact_input(7, 40, 4)
    result = early_exit(net, x, ConfidenceExit(p))
    assert same_as_alone(result, alone(net, x, p))
    assert result.executed == "step by step"
    if p == 0.6:
        assert len(set(result.steps.tolist())) >= 4  # or this would show little


def test_the_comparison_sees_states_that_were_not_taken_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins: states of the wrong samples, and states that start anew."""
    net, x = step_net(), exact_input(7, 40, 4)
    expected = alone(net, x, 0.6)
    right = States.keep
    monkeypatch.setattr(States, "keep", lambda self, i, n: right(self, (i + 1) % n, n))
    assert not same_as_alone(early_exit(net, x, ConfidenceExit(0.6)), expected)
    monkeypatch.setattr(States, "keep", lambda self, i, n: None)  # the neurons restart at another size
    assert not same_as_alone(early_exit(net, x, ConfidenceExit(0.6)), expected)
    monkeypatch.setattr(States, "keep", right)
    assert same_as_alone(early_exit(net, x, ConfidenceExit(0.6)), expected)


def test_finished_samples_are_not_computed() -> None:
    net, x = step_net(), exact_input(6, 20, 4)
    sizes: list[int] = []
    net[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    result = early_exit(net, x, ConfidenceExit(0.6), per_step=True)
    assert sizes == [int((result.steps >= t).sum()) for t in range(1, int(result.steps.max()) + 1)]
    assert sum(sizes) == int(result.steps.sum()) < 6 * 20
    assert result.saved == pytest.approx(1 - sum(sizes) / 120)


def test_static_input_is_shown_at_every_step() -> None:
    net, x = step_net(), exact_input(16, 4)
    result = early_exit(net, x, ConfidenceExit(0.6), timesteps=5)
    assert same_as_alone(result, alone(net, x.expand(5, 16, 4), 0.6))
    assert result.timesteps == 5


def judged(scores: Tensor, p: float) -> tuple[list[int], Tensor]:
    """The rule on a recording, sample by sample."""
    steps, chosen = [], []
    for sample in scores.unbind(1):
        total, t = torch.zeros_like(sample[0]), 0
        for t, score in enumerate(sample, start=1):
            total = total + score
            if (total / t).softmax(0).max() >= p:
                break
        steps.append(t)
        chosen.append(total / t)
    return steps, torch.stack(chosen)


class Recorded(nn.Module):
    """Returns what it is given: scores [T, B, C]."""

    def forward(self, x: Tensor) -> Any:
        return x


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(2, 4),
    st.integers(0, 10_000),
    st.sampled_from([0.2, 0.5, 0.7, 0.99, 1.0]),
)
@settings(max_examples=100, deadline=None)
def test_recordings_are_judged_by_the_definition(
    steps: int, batch: int, classes: int, seed: int, p: float
) -> None:
    scores = torch.randn(steps, batch, classes, generator=torch.Generator().manual_seed(seed)) * 3
    result = early_exit(Recorded().eval(), scores, ConfidenceExit(p), per_step=False)
    expected, chosen = judged(scores, p)
    assert result.steps.tolist() == expected
    assert torch.equal(result.scores, chosen)
    sure = result.scores.softmax(1).amax(1) >= p
    assert torch.equal(result.fired, sure)


def test_whole_sequences_are_computed_and_it_is_said() -> None:
    net, x = leading_net().eval(), torch.randn(5, 9, 4) * 3
    lengths: list[int] = []
    net[0].register_forward_pre_hook(lambda _, args: lengths.append(len(args[0])))
    result = early_exit(net, x, ConfidenceExit(0.5))
    assert lengths == [5]
    assert result.executed == "whole sequence"
    assert 0 < result.saved < 1
    assert str(result).endswith("computed were all 5, in one call")
    with torch.no_grad():
        assert result.steps.tolist() == judged(net(x), 0.5)[0]


def test_steps_and_sequences_agree() -> None:
    net, x = step_net(), exact_input(6, 15, 4)
    loop = Loop().eval()
    loop.net.load_state_dict(net.state_dict())
    one, other = early_exit(net, x, ConfidenceExit(0.6)), early_exit(loop, x, ConfidenceExit(0.6))
    assert (one.executed, other.executed) == ("step by step", "whole sequence")
    assert torch.equal(one.steps, other.steps)
    assert torch.equal(one.fired, other.fired)
    assert torch.equal(one.scores, other.scores)


def test_nobody_is_sure() -> None:
    x = torch.zeros(3, 2, 4)
    result = early_exit(Recorded().eval(), x, ConfidenceExit(0.9), per_step=False)
    assert (result.steps.tolist(), result.saved) == ([3, 3], 0.0)
    assert str(result) == "ConfidenceExit(p=0.9): no exit, all 3 steps are used"


def test_reaching_p_is_enough() -> None:
    """Two equal scores have exactly one half each, and large differences exactly 1 in floating point."""
    scores = torch.tensor([[[0.0, 0.0], [0.0, 1000.0]]]).expand(3, 2, 2)
    steps = {
        p: early_exit(Recorded().eval(), scores, ConfidenceExit(p), per_step=False).steps.tolist()
        for p in (0.5, 0.500001, 1.0)
    }
    assert steps == {0.5: [1, 1], 0.500001: [3, 1], 1.0: [3, 1]}


def test_some_are_not_sure() -> None:
    scores = torch.zeros(4, 2, 3)
    scores[:, 0, 1] = 9.0
    result = early_exit(Recorded().eval(), scores, ConfidenceExit(0.9), per_step=False)
    assert (result.steps.tolist(), result.fired.tolist()) == ([1, 4], [True, False])
    assert result.saved == pytest.approx(3 / 8)
    assert "2.50 of 4 steps on average, 37.5% saved; no exit for 1 of 2 samples" in str(result)


def test_scores_without_a_number_are_never_sure() -> None:
    scores = torch.full((3, 2, 4), float("nan"))
    result = early_exit(Recorded().eval(), scores, ConfidenceExit(0.1), per_step=False)
    assert result.steps.tolist() == [3, 3]


def test_half_scores_are_averaged_in_float32() -> None:
    scores = torch.ones(2050, 1, 2, dtype=torch.float16)  # in half precision 2048 + 1 is 2048
    scores[0] = 0.0
    result = early_exit(Recorded().eval(), scores, ConfidenceExit(1.0), per_step=False)
    assert result.scores.dtype == torch.float32
    assert result.scores.tolist() == [[pytest.approx(2049 / 2050, abs=1e-6)] * 2]


# ---------------------------------------------------------------- states and resets


@pytest.mark.parametrize("per_step", [None, True])  # a trial call resets as well
def test_reset_before_and_after(per_step: bool | None) -> None:
    net, x = step_net(), exact_input(5, 6, 4)
    clean = early_exit(net, x, ConfidenceExit(0.6), per_step=per_step)
    assert net[1].v is None
    assert net[3].v is None
    with torch.no_grad():
        net(exact_input(6, 4))  # somebody's sequence, not ended
    assert net[1].v is not None
    again = early_exit(net, x, ConfidenceExit(0.6), per_step=per_step)
    assert torch.equal(clean.scores, again.scores)
    assert torch.equal(clean.steps, again.steps)


def test_reset_after_an_error() -> None:
    net = step_net()
    handle = net[4].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        early_exit(net, exact_input(5, 6, 4), ConfidenceExit(0.9), per_step=True)
    handle.remove()
    assert net[1].v is None


def test_nothing_is_left_behind() -> None:
    net, x = step_net(), exact_input(5, 6, 4)
    before, generator = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    result = early_exit(net, x, ConfidenceExit(0.6))
    assert not result.scores.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_pre_hooks for module in net.modules())


class OwnStates(nn.Module):
    """Decaying sums of the input, kept in the ways that users keep states; one step [B, 4] a call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("constant", torch.arange(80.0).view(20, 4), persistent=False)
        self.register_buffer("hidden", torch.zeros(0), persistent=False)
        self.sums: Any = None
        self.neuron = StepNeuron()
        self.classes = nn.Linear(4, 3)
        dyadic_(self)

    def begin(self) -> None:
        self.sums, self.hidden = None, torch.zeros(0)
        self.neuron.reset()

    def forward(self, x: Tensor) -> Tensor:
        if self.sums is None:
            self.sums = {"list": [x * 0, (x * 0, 7)]}
        old = self.sums["list"]
        new = (old[0] + x) / 2, (old[1][0] - x) / 2
        self.sums["list"] = [new[0], (new[1], 7)]
        if self.hidden.shape != x.shape:
            self.hidden = torch.zeros_like(x)
        self.hidden = self.hidden / 2 + x
        self.alias = self.hidden
        return self.classes(self.neuron(x) + new[0] - new[1] + self.alias + self.constant[0] / 8)


def test_states_in_attributes_lists_and_buffers_are_taken_along() -> None:
    """At a batch as large as a constant, which stays as it is."""
    net, x = OwnStates().eval(), exact_input(6, 20, 4)
    constant = net.constant.clone()
    recorded = []
    for i in range(20):
        net.begin()
        recorded.append(torch.stack([net(x_t[i : i + 1]) for x_t in x]))
    net.begin()
    expected = judged(torch.cat(recorded, 1), 0.8)
    assert len(set(expected[0])) > 2
    result = early_exit(net, x, ConfidenceExit(0.8))
    assert result.steps.tolist() == expected[0]
    assert torch.equal(result.scores, expected[1])
    assert torch.equal(net.constant, constant)


def test_one_state_under_two_names_stays_one() -> None:
    net = OwnStates().eval()
    states = States(net, {})
    net(exact_input(5, 4))
    assert net.alias is net.hidden
    states.keep(torch.tensor([1, 3]), 5)
    assert len(net.hidden) == 2
    assert net.alias is net.hidden


def test_tensors_that_did_not_change_are_no_states() -> None:
    net = OwnStates().eval()
    net.table, net.tables = torch.ones(5, 2), [torch.ones(5)]
    states = States(net, {})
    net(exact_input(5, 4))
    states.keep(torch.tensor([0]), 5)
    assert (len(net.table), len(net.tables[0]), len(net.constant)) == (5, 5, 20)
    net.table.add_(1)  # written in place: a state after all
    states.keep(torch.tensor([0]), 5)
    assert len(net.table) == 1


def test_marks_of_a_carried_membrane_go_with_it() -> None:
    module = nn.Identity()
    states = States(module, {})
    module.mem, module.plain = torch.rand(4, 2), torch.rand(4, 2)
    fired = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
    mark_output(module.mem, 3, fired)
    states.keep(torch.tensor([2, 3]), 4)
    assert steps_behind(module.mem, module) == 3
    assert torch.equal(fired_by(module.mem), fired[2:])
    assert not is_carried(module.plain)
    carried(module.plain)
    states.keep(torch.tensor([1]), 2)
    assert is_carried(module.plain)
    with pytest.raises(TimestepError, match="from which step"):
        steps_behind(module.plain, module)


def test_tensors_without_a_version_are_taken_along() -> None:
    net, x = step_net(), exact_input(7, 12, 4)
    expected = alone(net, x, 0.6)
    with torch.inference_mode():
        assert same_as_alone(early_exit(net, x, ConfidenceExit(0.6)), expected)


class Windows(nn.Module):
    """Two windows per sample, as samples of their own: states are [2 * B, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = step_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, x + 1])).view(2, len(x), 3).mean(0)


def test_states_in_another_layout_are_refused() -> None:
    with pytest.raises(OptionError, match=r"state is not \[B, \.\.\.\] with B = 8") as caught:
        early_exit(Windows().eval(), exact_input(6, 8, 4), ConfidenceExit(0.9))
    assert caught.value.where == "net.1 (StepNeuron)"
    assert caught.value.seen == "states of shape [16, 12]"


# ---------------------------------------------------------------- steps or sequences?


class Shared(nn.Module):
    """One neuron object after both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared, self.last = nn.Linear(4, 3), nn.Linear(3, 3), StepNeuron(), StepNeuron()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(self.shared(self.b(self.shared(self.a(x))))))


@pytest.mark.parametrize(
    ("model", "shape", "executed"),
    [
        (step_net, (5, 3, 4), "step by step"),
        (step_net, (5, 1, 4), "step by step"),
        (step_net, (1, 3, 4), "step by step"),
        (step_net, (2, 2, 4), "step by step"),
        (Shared, (5, 3, 4), "step by step"),
        (Loop, (5, 3, 4), "whole sequence"),
        (Loop, (5, 1, 4), "whole sequence"),
        (Loop, (1, 3, 4), "whole sequence"),
        (lambda: Loop("static"), (3, 4), "whole sequence"),
        (lambda: Loop("static"), (1, 4), "whole sequence"),
        (lambda: Loop("batch first"), (3, 5, 4), "whole sequence"),
        (lambda: Loop("batch first"), (1, 5, 4), "whole sequence"),
        (leading_net, (5, 3, 4), "whole sequence"),
    ],
)
def test_who_loops_over_time_is_found_out(
    model: Callable[[], nn.Module], shape: tuple[int, ...], executed: str
) -> None:
    net = model().eval()
    calls: list[int] = []
    result = early_exit(net, exact_input(*shape), ConfidenceExit(0.999999))
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    assert result.executed == executed
    early_exit(net, exact_input(*shape), ConfidenceExit(0.5))
    assert len(calls) <= shape[0] + 1  # one trial call of one step


def test_a_static_input_for_a_loop_in_the_model_may_be_repeated_by_us() -> None:
    loop, x = Loop().eval(), exact_input(6, 4)
    result = early_exit(loop, x, ConfidenceExit(0.9), timesteps=7)
    assert result.timesteps == 7
    assert torch.equal(result.scores, early_exit(loop, x.expand(7, 6, 4), ConfidenceExit(0.9)).scores)


def test_what_cannot_be_told_is_asked_for() -> None:
    with pytest.raises(OptionError, match="takes steps or whole sequences") as caught:
        early_exit(Recorded().eval(), torch.rand(4, 2, 3), ConfidenceExit(0.9))
    assert "per_step=" in caught.value.do
    result = early_exit(Recorded().eval(), torch.rand(4, 2, 3), ConfidenceExit(0.01), per_step=True)
    assert result.steps.tolist() == [1, 1]


def test_neurons_that_see_sequences_take_no_steps() -> None:
    with pytest.raises(OptionError, match="per_step=True, but neurons"):
        early_exit(leading_net().eval(), torch.rand(4, 2, 4), ConfidenceExit(0.9), per_step=True)


def test_the_error_of_a_broken_model_names_both_attempts() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        early_exit(step_net(), torch.rand(4, 2, 9), ConfidenceExit(0.9))
    assert "one step failed" in caught.value.__notes__[0]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "make",
    [
        lambda: BNTTExit(0.0),
        lambda: BNTTExit(-1),
        lambda: BNTTExit(float("nan")),
        lambda: BNTTExit("0.1"),  # type: ignore[arg-type]
        lambda: BNTTExit(True),
        lambda: BNTTExit(mode="last"),  # type: ignore[arg-type]
        lambda: BNTTExit(statistic="median"),  # type: ignore[arg-type]
        lambda: BNTTExit(statistic=1.5),
        lambda: BNTTExit(statistic=True),
        lambda: ConfidenceExit(0.0),
        lambda: ConfidenceExit(1.01),
        lambda: ConfidenceExit(float("inf")),
        lambda: ConfidenceExit("0.9"),  # type: ignore[arg-type]
        lambda: ConfidenceExit(None),  # type: ignore[arg-type]
    ],
)
def test_impossible_options(make: Callable[[], object]) -> None:
    with pytest.raises(OptionError, match="is not possible") as caught:
        make()
    assert str(caught.value).splitlines()[-1].startswith("  do: use ")


@pytest.mark.parametrize("rule", [BNTTExit(0.2, mode="first", statistic=0.9), ConfidenceExit(0.5)])
def test_rules_are_values(rule: Any) -> None:
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert len({rule, dataclasses.replace(rule)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.p = 1


@pytest.mark.parametrize("rule", [0.9, None, BNTTExit, "confidence"])
def test_a_wrong_rule(rule: Any) -> None:
    with pytest.raises(OptionError, match="is not a rule of early exit"):
        early_exit(step_net(), exact_input(3, 2, 4), rule)


@pytest.mark.parametrize("where", ["(root)", "3"])
def test_training_mode(where: str) -> None:
    net = step_net()
    (net if where == "(root)" else net[3]).training = True
    for run in (
        lambda: early_exit(net, exact_input(3, 2, 4), ConfidenceExit()),
        lambda: calibrate_exit(net, exact_input(3, 2, 4), torch.tensor([0, 1])),
    ):
        with pytest.raises(OptionError, match="training mode") as caught:
            run()
        assert caught.value.where == where
        assert "model.eval()" in caught.value.do


def test_no_bntt() -> None:
    with pytest.raises(OptionError, match="BNTTExit needs BNTT"):
        early_exit(step_net(), exact_input(3, 2, 4), BNTTExit())


class Returns(nn.Module):
    """Runs the neuron and returns whatever it is told to."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.neuron, self.output = StepNeuron(), output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.neuron(x))


@pytest.mark.parametrize(
    "output",
    [
        lambda s: s.sum(1),
        lambda s: s[None],
        lambda s: s[:1],
        lambda s: s[:, :0],
        lambda s: "spikes",
        lambda s: (s, s.sum(1)),
        lambda s: (s, s),  # two outputs, and no adapter that knows which one is meant
    ],
)
def test_a_step_without_scores(output: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ReadoutError, match="do: "):
        early_exit(Returns(output).eval(), exact_input(3, 2, 4), ConfidenceExit(), per_step=True)


def test_a_step_in_a_pair_of_one_is_read() -> None:
    result = early_exit(Returns(lambda s: (s,)).eval(), exact_input(3, 2, 4), ConfidenceExit(0.01))
    assert result.scores.shape == (2, 4)


@pytest.mark.parametrize("output", [lambda x: x.mean(0), lambda x: x[:, :, :0], lambda x: x[:0]])
def test_a_sequence_without_steps_or_classes(output: Callable[[Tensor], Tensor]) -> None:
    net = Returns(output)
    net.neuron = nn.Identity()
    net.eval()
    with pytest.raises(ReadoutError, match="do: return the scores of every step"):
        early_exit(net, torch.rand(3, 2, 4), ConfidenceExit(), per_step=False)


@pytest.mark.parametrize("per_step", [True, False])
def test_one_class_has_no_confidence(per_step: bool) -> None:
    with pytest.raises(ReadoutError, match="1 class have no confidence"):
        early_exit(Recorded().eval(), torch.rand(3, 2, 1), ConfidenceExit(), per_step=per_step)


@pytest.mark.parametrize(
    ("x", "timesteps"),
    [
        ([1.0, 2.0], None),
        (torch.rand(4), None),
        (torch.rand(0, 2, 4), None),
        (torch.rand(4, 0, 4), None),
        (torch.rand(2, 4), 0),
        (torch.rand(2, 4), 2.0),
        (torch.rand(2, 4), True),
    ],
)
def test_inputs_that_make_no_sequence(x: Any, timesteps: Any) -> None:
    with pytest.raises(OptionError, match="do: pass"):
        early_exit(step_net(), x, ConfidenceExit(), timesteps=timesteps)


def test_samples_that_a_batch_norm_mixes_cannot_leave() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), StepNeuron()).eval()
    with pytest.raises(OptionError, match="cannot leave a batch whose statistics are used"):
        early_exit(net, exact_input(3, 5, 4), ConfidenceExit())


# ---------------------------------------------------------------- calibration


def labelled(samples: int = 40, steps: int = 6, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Scores [T, N, 4] that become surer, and right, over time."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    scores = torch.randn(steps, samples, 4, generator=generator)
    growth = torch.linspace(0.3, 3, steps)[:, None]
    scores[:, torch.arange(samples), labels] += growth * torch.rand(samples, generator=generator)
    return scores, labels


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("loss", [0.0, 0.02, 0.1, 0.5])
def test_calibration_measures_what_the_rule_then_does(loss: float) -> None:
    scores, labels = labelled()
    model = Recorded().eval()
    found = calibrate_exit(model, scores, labels, max_accuracy_loss=loss, per_step=False)
    assert found.full_accuracy == pytest.approx(accuracy(scores.mean(0), labels))
    assert (found.samples, found.timesteps, found.max_accuracy_loss) == (40, 6, loss)
    assert found.rule is not None
    result = early_exit(model, scores, found.rule, per_step=False)
    assert found.saved == pytest.approx(result.saved)
    assert found.accuracy == pytest.approx(accuracy(result.scores, labels))
    assert found.full_accuracy - found.accuracy <= loss + 1e-9
    assert f"{found.rule}: accuracy {found.accuracy:.2%}" in str(found)
    lost = (scores.mean(0).argmax(1) == labels).double() - (result.scores.argmax(1) == labels).double()
    assert found.uncertainty == pytest.approx(float(lost.var(correction=0) / 40) ** 0.5)
    assert f"{100 * float(lost.mean()):.2f} ± {100 * found.uncertainty:.2f} points lost on 40" in str(found)


def tried(scores: Tensor, labels: Tensor) -> list[tuple[float, float, float]]:
    """(p, accuracy, saved) of a fine grid of thresholds, strict first."""
    model, found = Recorded().eval(), []
    for p in torch.linspace(1, 0.2, 401).tolist():
        result = early_exit(model, scores, ConfidenceExit(p), per_step=False)
        found.append((p, accuracy(result.scores, labels), result.saved))
    return found


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_no_threshold_that_keeps_to_the_loss_saves_more(seed: int) -> None:
    """Over a grid: as long as accuracy has never fallen below the bound, nothing saves more."""
    scores, labels = labelled(seed=seed)
    found = calibrate_exit(Recorded().eval(), scores, labels, max_accuracy_loss=0.05, per_step=False)
    best = 0.0
    for _, correct, saved in tried(scores, labels):
        if correct < found.full_accuracy - 0.05 - 1e-9:
            break
        best = max(best, saved)
    assert best > 0.1
    assert found.saved >= best - 1e-9


def test_a_lucky_low_threshold_is_not_taken() -> None:
    """Accuracy falls below the bound and recovers at a laxer threshold: that one is luck."""
    # right at step 1 (p = .52), wrong at step 2 (p = .81), right in the end: all three samples alike
    steps = torch.tensor([[-0.1, 0.0], [3.0, 0.0], [-9.0, 0.0]])
    scores = steps[:, None].expand(3, 3, 2).clone()
    labels = torch.ones(3, dtype=torch.long)
    lax = early_exit(Recorded().eval(), scores, ConfidenceExit(0.51), per_step=False)
    assert accuracy(lax.scores, labels) == 1.0
    assert lax.steps.tolist() == [1, 1, 1]
    found = calibrate_exit(Recorded().eval(), scores, labels, max_accuracy_loss=0.0, per_step=False)
    assert found.rule is None
    assert (found.accuracy, found.full_accuracy, found.saved) == (1.0, 1.0, 0.0)


def test_none_fits_and_it_is_said() -> None:
    """Right answers come with the last step only, and every earlier one is surer."""
    scores = torch.zeros(4, 10, 3)
    scores[:3, :, 0] = 4.0
    scores[3, :, 1] = 14.0
    found = calibrate_exit(
        Recorded().eval(), scores, torch.ones(10, dtype=torch.long), max_accuracy_loss=0.1, per_step=False
    )
    assert (found.rule, found.saved, found.accuracy, found.uncertainty) == (None, 0.0, 1.0, 0.0)
    assert str(found).startswith("no confidence saves a step within an accuracy loss of 10.00%")
    with pytest.raises(OptionError, match="is not a rule"):
        early_exit(Recorded().eval(), scores, found.rule, per_step=False)  # type: ignore[arg-type]


def test_batches_or_one_input() -> None:
    net = step_net()
    x, labels = exact_input(6, 30, 4), torch.randint(0, 3, (30,))
    whole = calibrate_exit(net, x, labels, max_accuracy_loss=0.1)
    pairs = [(x[:, :11], labels[:11]), [x[:, 11:], labels[11:]]]
    assert calibrate_exit(net, pairs, max_accuracy_loss=0.1) == whole
    assert calibrate_exit(net, iter(pairs), max_accuracy_loss=0.1) == whole
    static = calibrate_exit(net, [(x[0], labels)], max_accuracy_loss=0.5, timesteps=4)
    assert static.timesteps == 4
    result = early_exit(net, x, whole.rule)
    assert result.saved == pytest.approx(whole.saved)
    assert accuracy(result.scores, labels) == pytest.approx(whole.accuracy)


def test_thresholds_lie_between_the_values_that_occur() -> None:
    """So that rounding in another batch size cannot move a sample across."""
    sure = torch.tensor([[0.5, 0.25], [0.75, 0.5]], dtype=torch.float64)
    assert list(exit_calibration._candidates(sure)) == [0.6, 0.4, 0.1]
    many = torch.rand(20, 1000, dtype=torch.float64)
    candidates = list(exit_calibration._candidates(many))
    assert len(candidates) == exit_calibration.MOST_CANDIDATES
    assert candidates == sorted(set(candidates), reverse=True)
    assert not set(candidates) & set(many.flatten().tolist())
    assert exit_calibration._short(0.123456, 0.123458) == 0.123457


@pytest.mark.parametrize("loss", [-0.1, 1.0, float("nan"), "1%", True])
def test_impossible_losses(loss: Any) -> None:
    scores, labels = labelled()
    with pytest.raises(OptionError, match="max_accuracy_loss"):
        calibrate_exit(Recorded().eval(), scores, labels, max_accuracy_loss=loss, per_step=False)


SCORES, LABELS = labelled(8)


@pytest.mark.parametrize(
    ("batches", "targets", "error", "message"),
    [
        (SCORES, None, OptionError, "labels are missing"),
        ([(SCORES, LABELS)], LABELS, OptionError, "belongs to a single x"),
        ([], None, OptionError, "no data"),
        ([SCORES], None, OptionError, "not a pair"),
        (SCORES, LABELS[:3], OptionError, r"8 class indices \[B\], got \[3\]"),
        (SCORES, LABELS.float(), OptionError, "torch.float32"),
        (SCORES, LABELS.tolist(), OptionError, "got list"),
        ([(SCORES, LABELS), (SCORES[:4], LABELS)], None, TimestepError, "6 and of 4 steps"),
        (SCORES[:, :, :1], LABELS, ReadoutError, "1 class"),
    ],
)
def test_data_that_does_not_fit(batches: Any, targets: Any, error: type[SnnExtError], message: str) -> None:
    with pytest.raises(error, match=message):
        calibrate_exit(Recorded().eval(), batches, targets, per_step=False)


def test_the_rounding_of_states_is_out_of_the_way() -> None:
    """What the equalities above rest on: a state shrinks to exactly its rows."""
    module = nn.Identity()
    states = exit_states.States(module, {})
    module.v = torch.randn(5, 3)
    before = module.v.clone()
    states.keep(torch.tensor([4, 0]), 5)
    assert torch.equal(module.v, before[[4, 0]])
