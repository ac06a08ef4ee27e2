"""Early exit on SpikingJelly and snnTorch: who leaves takes nothing along, who stays notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, IMP, MPBN, TEBN, OptionError, ReadoutError, TimestepError
from snn_ext.analysis import exit_states
from snn_ext.analysis.early_exit import (
    BNTTExit,
    ConfidenceExit,
    EarlyExit,
    calibrate_exit,
    early_exit,
    gamma_sizes,
)
from snn_ext.patching.sequence import fired_by, mark_output
from tests.adapters.snntorch_nets import CASES, private_instances

STEPS, BATCH = 6, 20
GAMMAS = (1.0, 0.05, 0.5, 0.09, 0.05, 0.02)
"""Exit at 2 (first) or 4 (sustained) with the default threshold."""


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


# ---------------------------------------------------------------- networks


def jelly(mode: str = "s", node: Callable[[], nn.Module] = neuron.LIFNode) -> nn.Sequential:
    """SpikingJelly, one step [B, 2, 6, 6] or a sequence of them -> 5 scores; float64, where the size of a
    batch does not move a sum across a threshold."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        node(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(36, 16),
        node(),
        layer.Linear(16, 5),
    ).double()
    functional.set_step_mode(net, mode)
    with torch.no_grad():
        net[5].weight.mul_(4)
        net[7].weight.mul_(8)
    return net


def torch_net(
    make: Callable[..., nn.Module] = snn.Leaky, *, norm: bool = False, **options: Any
) -> nn.Sequential:
    """snnTorch, one step [B, 6] -> spikes and membrane [B, 5]. Its spikes are always float32, so weights
    are multiples of 1/8: exact sums, whatever the size of the batch."""
    first, last = (make(**{"beta": 0.5, **options}, init_hidden=True, output=end) for end in (False, True))
    norms = [nn.BatchNorm1d(24)] if norm else []
    net = nn.Sequential(nn.Linear(6, 24), *norms, first, nn.Linear(24, 5), last)
    with torch.no_grad():
        for linear in (net[0], net[-2]):
            linear.weight.copy_(torch.randint(-8, 9, linear.weight.shape) / 8)
            linear.bias.zero_()
    return net


def settle(net: nn.Module) -> nn.Module:
    """Statistics, gammas and V0 that differ from channel to channel and from step to step."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
        for name, parameter in net.named_parameters():
            if name.endswith("imp"):
                parameter.uniform_(-0.4, 0.9)
            if name.endswith("tebn.scale"):
                parameter.uniform_(0.5, 1.5)
    return net.eval()


def frames(*shape: int) -> Tensor:
    return torch.randn(STEPS, BATCH, *shape, dtype=torch.float64) * 2


def events() -> Tensor:
    return torch.randint(0, 2, (STEPS, BATCH, 6)).float()


# ---------------------------------------------------------------- the definition


def alone(
    net: nn.Module, reset: Callable[[nn.Module], object], x: Tensor, p: float, on: int = -1
) -> list[tuple[int, Tensor]]:
    """Every sample by itself through the framework's own loop, until it is sure."""
    found = []
    for i in range(x.shape[1]):
        reset(net)
        total = torch.zeros(())
        for t, x_t in enumerate(x[:, i : i + 1], start=1):
            with torch.no_grad():
                output = net(x_t)
            total = total + (output[on] if isinstance(output, tuple) else output)
            if (total / t).softmax(1).max() >= p or t == len(x):
                found.append((t, total[0] / t))
                break
    reset(net)
    return found


def agrees(result: EarlyExit, expected: list[tuple[int, Tensor]]) -> bool:
    """Same steps, and the same scores up to the rounding of sums and norms over another batch size."""
    if result.steps.tolist() != [t for t, _ in expected]:
        return False
    return torch.allclose(result.scores, torch.stack([s for _, s in expected]), rtol=1e-5, atol=1e-6)


def middling(expected: Callable[[float], list[tuple[int, Tensor]]]) -> tuple[float, Any]:
    """A confidence at which samples leave at three steps or more, and what it gives."""
    for p in (0.5, 0.4, 0.6, 0.35, 0.7, 0.3, 0.8, 0.9, 0.95, 0.25):
        found = expected(p)
        if len({t for t, _ in found}) >= 3:
            return p, found
    raise AssertionError("every sample leaves at the same time: the test would show nothing")


def play(net: nn.Module, x: Tensor) -> Tensor:
    """Scores [T, B, C] of a whole SpikingJelly loop."""
    functional.reset_net(net)
    with torch.no_grad():
        scores = torch.stack([net(x_t) for x_t in x])
    functional.reset_net(net)
    return scores


# ---------------------------------------------------------------- SpikingJelly, step by step

METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "imp": {"imp": IMP()},
    "mpbn": {"mpbn": MPBN()},
    "mpbn normalised, per element": {"mpbn": MPBN(features="element", carry="normalised")},
    "bntt": {"bntt": BNTT()},
    "bntt at neurons": {"bntt": BNTT(at="neuron")},
    "tebn": {"tebn": TEBN(stats="step")},
    "imp, mpbn, bntt": {"imp": True, "mpbn": True, "bntt": True},
}


def patched(net: nn.Module, methods: dict[str, Any], example: Tensor) -> nn.Module:
    if methods:
        snn_ext.patch(net, **methods, timesteps=STEPS, example_input=example)
    return settle(net)


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_spikingjelly_leaving_equals_running_alone(methods: dict[str, Any]) -> None:
    x = frames(2, 6, 6)
    net = patched(jelly(), methods, x[0])
    p, expected = middling(lambda p: alone(net, functional.reset_net, x, p))
    result = early_exit(net, x, ConfidenceExit(p))
    assert agrees(result, expected)
    assert result.executed == "step by step"
    assert result.saved == pytest.approx(1 - sum(t for t, _ in expected) / (STEPS * BATCH))


@pytest.mark.parametrize(
    "node",
    [
        neuron.IFNode,
        neuron.ParametricLIFNode,
        neuron.CUBALIFNode,
        neuron.ComplementaryLIFNode,
        neuron.IzhikevichNode,
        lambda: neuron.IFNode(v_reset=None),
        lambda: neuron.LIFNode(store_v_seq=True),
    ],
)
def test_spikingjelly_neurons_with_other_states(node: Callable[[], nn.Module]) -> None:
    x, net = frames(2, 6, 6), settle(jelly(node=node))
    p, expected = middling(lambda p: alone(net, functional.reset_net, x, p))
    assert agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_spikingjelly_layers_with_states() -> None:
    """Synapses, recurrent connections and delays keep states too."""
    net = settle(jelly())
    recurrent = layer.LinearRecurrentContainer(neuron.IFNode(), in_features=16, out_features=16).double()
    net[6] = nn.Sequential(layer.SynapseFilter(tau=4.0), recurrent, layer.Delay(2))
    net.eval()
    x = frames(2, 6, 6)
    p, expected = middling(lambda p: alone(net, functional.reset_net, x, p))
    assert agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_spikingjelly_comparison_sees_states_that_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins: other samples' states, and no states at all."""
    x = frames(2, 6, 6)
    net = patched(jelly(), METHODS["imp"], x[0])
    p, expected = middling(lambda p: alone(net, functional.reset_net, x, p))
    right = exit_states.States.keep
    monkeypatch.setattr(exit_states.States, "keep", lambda self, i, n: right(self, (i + 1) % n, n))
    assert not agrees(early_exit(net, x, ConfidenceExit(p)), expected)
    monkeypatch.setattr(exit_states.States, "keep", lambda self, i, n: None)
    assert not agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_spikingjelly_modes_agree() -> None:
    x = frames(2, 6, 6)
    step = patched(jelly("s"), METHODS["imp, mpbn, bntt"], x[0])
    whole = patched(jelly("m"), METHODS["imp, mpbn, bntt"], x)
    whole.load_state_dict(step.state_dict())
    p, _ = middling(lambda p: alone(step, functional.reset_net, x, p))
    one, other = early_exit(step, x, ConfidenceExit(p)), early_exit(whole, x, ConfidenceExit(p))
    assert (one.executed, other.executed) == ("step by step", "whole sequence")
    assert torch.equal(one.steps, other.steps)
    assert torch.allclose(one.scores, other.scores, rtol=0, atol=1e-12)  # sums in another order
    assert "computed were all 6, in one call" in str(other)


def test_spikingjelly_states_are_reset_before_and_after() -> None:
    x, net = frames(2, 6, 6), settle(jelly())
    clean = early_exit(net, x, ConfidenceExit(0.5))
    with torch.no_grad():
        net(x[3])
    again = early_exit(net, x, ConfidenceExit(0.5))
    assert torch.equal(clean.scores, again.scores)
    assert [m.v for m in net if isinstance(m, neuron.LIFNode)] == [0.0, 0.0]


def test_static_images_need_their_number_of_steps() -> None:
    x, net = frames(2, 6, 6)[0], settle(jelly())
    p, expected = middling(lambda p: alone(net, functional.reset_net, x.expand(STEPS, *x.shape), p))
    assert agrees(early_exit(net, x, ConfidenceExit(p), timesteps=STEPS), expected)


# ---------------------------------------------------------------- BNTT's own exit


def with_gammas(net: nn.Module, gammas: tuple[float, ...] = GAMMAS) -> nn.Module:
    """Set |gamma| of every BNTT layer of a patched model, signs alternating."""
    norms = [m for m in net.modules() if "bntt" in m._modules]
    assert norms
    with torch.no_grad():
        for norm in norms:
            bntt = norm.bntt
            slots = list(bntt.slots) if hasattr(bntt, "slots") else [norm, *bntt]
            for slot, size in zip(slots, gammas, strict=True):
                slot.weight.fill_(size)
                slot.weight[::2] *= -1
    return net


@pytest.mark.parametrize("at", ["norm", "neuron"])
@pytest.mark.parametrize(("exit_mode", "expected"), [("first", 2), ("sustained", 4)])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly_bntt_exit(mode: str, exit_mode: Any, expected: int, at: Any) -> None:
    x = frames(2, 6, 6)
    net = with_gammas(patched(jelly(mode, neuron.IFNode), {"bntt": BNTT(at=at)}, x if mode == "m" else x[0]))
    rule = BNTTExit(mode=exit_mode)
    assert rule.exit_step(net) == expected
    assert set(gamma_sizes(net)) == ({"1"} if at == "norm" else {"2.bntt", "6.bntt"})
    seen: list[tuple[int, ...]] = []
    net[0].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    result = early_exit(net, x, rule, per_step=mode == "s")
    shape = (BATCH, 2, 6, 6)
    assert seen == ([shape] * expected if mode == "s" else [(expected, *shape)])  # no step more
    assert result.executed == ("step by step" if mode == "s" else "cut sequence")
    if mode == "s":
        scores = play(net, x)
    else:
        functional.reset_net(net)
        with torch.no_grad():
            scores = net(x)
        functional.reset_net(net)
    assert torch.equal(result.scores, scores[:expected].mean(0))
    assert not torch.equal(result.scores, scores.mean(0))
    assert (result.steps == expected).all()
    assert result.saved == pytest.approx(1 - expected / STEPS)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_fresh_bntt_does_not_exit_and_says_so(mode: str) -> None:
    x = frames(2, 6, 6)
    net = patched(jelly(mode), METHODS["bntt"], x if mode == "m" else x[0])
    result = early_exit(net, x, BNTTExit())
    assert (result.saved, bool(result.fired.any())) == (0.0, False)
    assert "no exit, all 6 steps are used" in str(result)
    assert torch.allclose(early_exit(net, x, BNTTExit(0.001)).scores, result.scores, rtol=0, atol=0)


def test_bntt_inside_containers_is_read_and_cut() -> None:
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
        neuron.LIFNode(step_mode="m"),
        layer.Flatten(step_mode="m"),
        layer.Linear(64, 5, step_mode="m"),
    )
    x = frames(2, 6, 6).float()
    with_gammas(patched(net, METHODS["bntt"], x))
    result = early_exit(net, x, BNTTExit())
    assert (result.executed, result.steps.tolist()) == ("cut sequence", [4] * BATCH)
    functional.reset_net(net)
    with torch.no_grad():
        assert torch.equal(result.scores, net(x[:4]).mean(0))


def test_snntorch_bntt_exit_step_by_step() -> None:
    x = events()
    net = with_gammas(patched(torch_net(norm=True), METHODS["bntt"], x[0]))
    calls: list[int] = []
    net[0].register_forward_pre_hook(lambda *_: calls.append(1))
    result = early_exit(net, x, BNTTExit(), per_step=True)
    assert len(calls) == 4
    utils.reset(net)
    with torch.no_grad():
        membranes = torch.stack([net(x_t)[1] for x_t in x])
    assert torch.equal(result.scores, membranes[:4].mean(0))


def test_bntt_exit_of_a_loop_in_the_model() -> None:
    """snnTorch's usual class: all steps are computed, those after the exit are left out."""
    case = CASES["T5-init_leaky"]
    net, x = case.fresh(), case.batch(3)
    snn_ext.patch(net, bntt=True, timesteps=8, example_input=x)
    with_gammas(settle(net), (*GAMMAS, 0.01, 0.01))
    result = early_exit(net, x, BNTTExit())
    assert (result.executed, result.timesteps, result.steps.tolist()) == ("whole sequence", 8, [4] * 3)
    with torch.no_grad():
        assert torch.equal(result.scores, net(x)[1][:4].mean(0))


def test_folded_bntt_is_refused() -> None:
    x = frames(2, 6, 6)
    net = patched(jelly(), METHODS["bntt"], x[0])
    snn_ext.fold(net)
    with pytest.raises(OptionError, match="cannot be decided after folding"):
        early_exit(net, x, BNTTExit())
    assert early_exit(net, x, ConfidenceExit(0.5)).executed == "step by step"


# ---------------------------------------------------------------- snnTorch, step by step


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
def test_snntorch_leaving_equals_running_alone(methods: dict[str, Any]) -> None:
    x = events()
    net = patched(torch_net(norm="tebn" in methods or "bntt" in methods), methods, x[0])
    p, expected = middling(lambda p: alone(net, utils.reset, x, p))
    result = early_exit(net, x, ConfidenceExit(p))
    assert agrees(result, expected)
    assert result.executed == "step by step"


@pytest.mark.parametrize(
    "options",
    [
        {"reset_mechanism": "zero"},
        {"reset_mechanism": "none"},
        {"reset_delay": False},
        {"beta": torch.linspace(0.25, 0.75, 1)},
        {"make": snn.Synaptic, "alpha": 0.5},
        {"make": snn.Lapicque},
        {"make": snn.RLeaky, "all_to_all": False, "V": 0.5},
        {"make": snn.RSynaptic, "alpha": 0.5, "all_to_all": False, "V": 0.5},
        {"make": snn.Alpha, "alpha": 0.75},
    ],
    ids=str,
)
def test_snntorch_neurons_with_other_states(options: dict[str, Any]) -> None:
    x, net = events(), torch_net(**options).eval()

    def reset(net: nn.Sequential) -> None:
        net[1].reset_mem()  # utils.reset leaves the spikes of RSynaptic
        net[3].reset_mem()

    p, expected = middling(lambda p: alone(net, reset, x, p))
    assert agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_snntorch_spikes_or_membranes() -> None:
    x, net = events(), torch_net().eval()
    p, expected = middling(lambda p: alone(net, utils.reset, x, p, on=0))
    assert agrees(early_exit(net, x, ConfidenceExit(p), on="spikes"), expected)
    assert not agrees(early_exit(net, x, ConfidenceExit(p)), expected)
    net[-1].output = False  # spikes alone
    assert agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_constants_as_long_as_the_batch_stay() -> None:
    """Thresholds and decays are buffers too, here with one value per neuron and as many as samples."""
    x, net = events()[:, :5], torch_net().eval()
    net[-1].threshold, net[-1].beta = torch.linspace(0.5, 1.5, 5), torch.full((5,), 0.5)
    expected = alone(net, utils.reset, x, 0.5)
    assert agrees(early_exit(net, x, ConfidenceExit(0.5)), expected)
    assert len({t for t, _ in expected}) > 1
    assert net[-1].threshold.shape == net[-1].beta.shape == (5,)


class KeepsItsMembranes(nn.Module):
    """One step a call, states passed explicitly and kept by the user's own code."""

    def __init__(self) -> None:
        super().__init__()
        net = torch_net()
        self.fc1, self.fc2 = net[0], net[-2]
        self.lif1, self.lif2 = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)
        self.begin()

    def begin(self, *_: object) -> None:
        self.membranes = [self.lif1.init_leaky(), self.lif2.init_leaky()]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes, self.membranes[0] = self.lif1(self.fc1(x), self.membranes[0])
        spikes, self.membranes[1] = self.lif2(self.fc2(spikes), self.membranes[1])
        return spikes, self.membranes[1]


@pytest.mark.parametrize("methods", [{}, {"imp": IMP()}, {"mpbn": MPBN()}], ids=["plain", "imp", "mpbn"])
def test_membranes_that_the_user_keeps(methods: dict[str, Any]) -> None:
    x, net = events(), KeepsItsMembranes()
    patched(net, methods, x[0])
    net.begin()
    p, expected = middling(lambda p: alone(net, KeepsItsMembranes.begin, x, p))
    assert agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def marks_dropped(state: Tensor, index: Tensor) -> Tensor:
    return state[index].clone()


def spikes_of_others(state: Tensor, index: Tensor) -> Tensor:
    """Marks go along, but the pending resets are those of the samples in front."""
    kept = state[index]
    fired = fired_by(state)
    mark_output(kept, fired=None if fired is None else fired[: len(index)])
    return kept


@pytest.mark.parametrize(
    ("methods", "wrong"), [({"imp": IMP()}, marks_dropped), ({"mpbn": MPBN()}, spikes_of_others)]
)
def test_snntorch_comparison_sees_lost_marks(
    methods: dict[str, Any], wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twins: a membrane without its mark gets V0 again, one with others' spikes is reset wrongly."""
    x = events()
    net = patched(torch_net(), methods, x[0])
    p, expected = middling(lambda p: alone(net, utils.reset, x, p))
    assert agrees(early_exit(net, x, ConfidenceExit(p)), expected)
    monkeypatch.setattr(exit_states, "_select", wrong)
    assert not agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_snntorch_lost_marks_lose_the_time_step(monkeypatch: pytest.MonkeyPatch) -> None:
    x = events()
    net = patched(torch_net(norm=True), METHODS["bntt"], x[0])
    p, expected = middling(lambda p: alone(net, utils.reset, x, p))
    monkeypatch.setattr(exit_states, "_select", lambda state, i: snn_ext.carried(state[i].clone()))
    with pytest.raises(TimestepError, match="not from which step"):
        early_exit(net, x, ConfidenceExit(p))
    monkeypatch.setattr(exit_states, "_select", marks_dropped)
    assert not agrees(early_exit(net, x, ConfidenceExit(p)), expected)


def test_other_networks_keep_their_states() -> None:
    x, net, other = events(), torch_net().eval(), torch_net().eval()
    with torch.no_grad():
        other(x[0])
    before = other[1].mem.clone()
    early_exit(net, x, ConfidenceExit(0.5))
    assert torch.equal(other[1].mem, before)
    assert before.abs().sum() > 0
    assert not net[1].mem.abs().sum()


# ---------------------------------------------------------------- snnTorch, loops in the model


@pytest.mark.parametrize("name", [name for name in CASES if name != "REG1"])
def test_snntorch_idioms(name: str) -> None:
    case = CASES[name]
    net, x = case.fresh().eval(), case.batch(5)
    with torch.no_grad():
        membranes = case.run(net, x)[1]
    result = early_exit(net, x, ConfidenceExit(0.3))
    stepwise = name in ("T6s", "STM")
    assert result.executed == ("step by step" if stepwise else "whole sequence")
    assert result.timesteps == len(membranes)
    for i in range(5):
        sure = [t for t in range(1, len(membranes) + 1) if membranes[:t, i].mean(0).softmax(0).max() >= 0.3]
        t = min(sure, default=len(membranes))
        assert int(result.steps[i]) == t
        # another batch size and another order of addition
        assert torch.allclose(result.scores[i], membranes[:t, i].mean(0), rtol=1e-4, atol=1e-5)


def test_one_output_has_no_confidence() -> None:
    case = CASES["REG1"]
    with pytest.raises(ReadoutError, match="1 class have no confidence"):
        early_exit(case.fresh().eval(), case.batch(3), ConfidenceExit(0.3))


class Averages(nn.Module):
    """Loses time in its forward, as several published transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = jelly("m")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(0)


def test_averaged_outputs_are_refused() -> None:
    with pytest.raises(ReadoutError, match="not scores"):
        early_exit(settle(Averages()), frames(2, 6, 6), ConfidenceExit())


class OwnLoop(nn.Module):
    """SpikingJelly in step mode 's' with the loop in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = jelly()

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        return torch.stack([self.net(x_t) for x_t in x])


@pytest.mark.parametrize("batch", [1, 7])
def test_a_spikingjelly_loop_in_the_model(batch: int) -> None:
    net, x = settle(OwnLoop()), frames(2, 6, 6)[:, :batch]
    result = early_exit(net, x, ConfidenceExit(0.5))
    expected = alone(net.net, functional.reset_net, x, 0.5)
    assert agrees(result, expected)
    assert result.executed == "whole sequence"


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: settle(jelly()), lambda: frames(2, 6, 6)),
        (lambda: settle(jelly("m")), lambda: frames(2, 6, 6)),
        (lambda: torch_net().eval(), events),
    ],
    ids=["spikingjelly s", "spikingjelly m", "snntorch"],
)
def test_calibration_measures_what_the_rule_then_does(
    make: Callable[[], nn.Module], data: Callable[[], Tensor]
) -> None:
    net, x = make(), data()
    labels = early_exit(net, x, ConfidenceExit(1.0)).scores.argmax(1)  # the full network is always right
    batches = [(x[:, :8], labels[:8]), (x[:, 8:], labels[8:])]
    found = calibrate_exit(net, batches, max_accuracy_loss=0.2)
    assert found.full_accuracy == 1.0
    assert found.accuracy >= 0.8
    assert found.saved > 0
    result = early_exit(net, x, found.rule)
    assert result.saved == pytest.approx(found.saved)
    assert float((result.scores.argmax(1) == labels).double().mean()) == pytest.approx(found.accuracy)
