"""BNTT and TEBN without any framework: equations, lengths, the parts of a conversion, and clocks.

`Hand` is a norm written down a second time, in float64 and without the library.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext import BNTT, TEBN, NormSpec, OptionError, Time, TimestepError, original_class, swap_class
from snn_ext.methods.batch_norms import BatchNorm
from snn_ext.methods.clock import Clock, ClockedNorm
from snn_ext.methods.parts import Place, attach, detach, new_part
from snn_ext.methods.swap import restore_class
from snn_ext.norms import (
    BatchNormThroughTime,
    LaterSlots,
    TemporalEffectiveBatchNorm,
    TemporalScale,
    TimedNorm,
)
from tests.unit.test_mpbn import HandNorm

T, C = 4, 3
SHAPES = {"dense": (T, 5, C), "sequences": (T, 5, C, 6), "maps": (T, 5, C, 4, 3)}
EPS, MOMENTUM = 1e-3, 0.3


# --- the norms, written down a second time -------------------------------------------------------------


@dataclass
class Hand:
    """The equation, what it learns, and where its statistics are kept."""

    forward: Callable[[Tensor], Tensor]
    learnt: list[Tensor]
    norms: list[HandNorm]


def hand_bntt(
    gammas: list[Tensor], betas: list[Tensor] | None, *, eps: float = EPS, momentum: float = MOMENTUM
) -> Hand:
    """Every step by a norm of its own."""
    zero = torch.zeros(C, dtype=torch.float64)
    norms = [
        HandNorm(g, zero if betas is None else betas[t], "channel", eps, momentum)
        for t, g in enumerate(gammas)
    ]

    def forward(x: Tensor) -> Tensor:
        return torch.stack([norms[t](x[t]) for t in range(len(x))])

    learnt = gammas if betas is None else [p for pair in zip(gammas, betas, strict=True) for p in pair]
    return Hand(forward, learnt, norms)


def hand_tebn(
    p: Tensor, gamma: Tensor, beta: Tensor, *, joint: bool = True, scale_beta: bool = True, eps: float = EPS
) -> Hand:
    """y[t] = p[t] * (gamma * (x[t] - mu) / s + beta), mu and s over time, batch and space together."""
    norm = HandNorm(gamma, beta, "channel", eps, MOMENTUM)

    def forward(x: Tensor) -> Tensor:
        y = norm(torch.cat(list(x))).view(x.shape) if joint else torch.stack([norm(x_t) for x_t in x])
        b = beta.view(-1, *[1] * (x.ndim - 3))
        steps = [p[t] * y[t] if scale_beta else p[t] * (y[t] - b) + b for t in range(len(x))]
        return torch.stack(steps)

    return Hand(forward, [p, gamma, beta], [norm])


def leaves(count: int = T) -> list[Tensor]:
    return [(torch.rand(C, dtype=torch.float64) + 0.5).requires_grad_() for _ in range(count)]


def data(shape: tuple[int, ...], iterations: int = 3) -> list[Tensor]:
    """Every step on a level and a scale of its own, so that statistics of other steps are seen."""
    level = torch.arange(1.0, shape[0] + 1, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return [torch.randn(shape, dtype=torch.float64) * level + level + i for i in range(iterations)]


Iterations = list[list[Tensor]]
"""Per training iteration: outputs, gradient of the input, gradients of the parameters, statistics."""


def train(
    forward: Callable[[Tensor], Tensor],
    learnt: Sequence[Tensor],
    statistics: Callable[[], list[Tensor]],
    batches: Sequence[Tensor],
) -> Iterations:
    """Gradient descent on a loss that weighs every output differently."""
    result = []
    for batch in batches:
        x = batch.clone().requires_grad_()
        y = forward(x)
        weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        ((y * weights).sum() + (y * y * y).mean()).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (x, *learnt)]
        result.append([t.detach().clone() for t in (y, *grads, *statistics())])
        with torch.no_grad():
            for p, grad in zip(learnt, grads[1:], strict=True):
                p -= 0.01 * grad
                p.grad = None
    return result


def train_hand(hand: Hand, batches: Sequence[Tensor]) -> Iterations:
    return train(hand.forward, hand.learnt, lambda: [s for n in hand.norms for s in (n.mean, n.var)], batches)


def train_module(
    module: nn.Module, batches: Sequence[Tensor], forward: Callable[[Tensor], Tensor] | None = None
) -> Iterations:
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def statistics() -> list[Tensor]:
        return [s for n in norms for s in (n.running_mean, n.running_var) if s is not None]

    return train(forward or module, list(module.parameters()), statistics, batches)


def equal(a: Iterations, b: Iterations) -> bool:
    """To 1e-9: both are float64, and only the order of sums differs."""
    return len(a) == len(b) and all(
        len(p) == len(q)
        and all(
            u.shape == v.shape and torch.allclose(u, v, rtol=1e-9, atol=1e-9)
            for u, v in zip(p, q, strict=True)
        )
        for p, q in zip(a, b, strict=True)
    )


def fill(module: nn.Module, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(value)


def bntt(gammas: list[Tensor], betas: list[Tensor] | None, **options: Any) -> BatchNormThroughTime:
    module = BatchNormThroughTime(
        T, C, bias=betas is not None, eps=EPS, momentum=MOMENTUM, **options
    ).double()
    fill(module, hand_bntt(gammas, betas).learnt)
    return module


def tebn(p: Tensor, gamma: Tensor, beta: Tensor, **options: Any) -> TemporalEffectiveBatchNorm:
    module = TemporalEffectiveBatchNorm(T, C, eps=EPS, momentum=MOMENTUM, **options).double()
    fill(module, [p, gamma, beta])
    return module


def scales() -> Tensor:
    return torch.tensor([0.5, -1.5, 2.0, 0.75], dtype=torch.float64).requires_grad_()


def step_by_step(module: Any) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        module.reset()
        return torch.stack([module(x_t) for x_t in x])

    return run


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("time", [Time.LEADING, Time.PER_CALL])
def test_bntt_trains_by_its_equations(shape: tuple[int, ...], bias: bool, time: Time) -> None:
    gammas, betas, batches = leaves(), leaves() if bias else None, data(shape)
    module = bntt(gammas, betas, time=time)
    forward = module if time is Time.LEADING else step_by_step(module)
    assert equal(train_module(module, batches, forward), train_hand(hand_bntt(gammas, betas), batches))
    assert [int(slot.num_batches_tracked) for slot in module.slots] == [3] * T


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_tebn_trains_by_its_equations(shape: tuple[int, ...]) -> None:
    p, (gamma, beta), batches = scales(), leaves(2), data(shape)
    module = tebn(p, gamma, beta)
    assert equal(train_module(module, batches), train_hand(hand_tebn(p, gamma, beta), batches))
    assert int(module.bn.num_batches_tracked) == 3


@pytest.mark.parametrize("time", [Time.LEADING, Time.PER_CALL])
def test_tebn_with_statistics_per_step_is_another_method(time: Time) -> None:
    p, (gamma, beta), batches = scales(), leaves(2), data(SHAPES["maps"])
    module = tebn(p, gamma, beta, stats="step", time=time)
    forward = module if time is Time.LEADING else step_by_step(module)
    found = train_module(module, batches, forward)
    assert int(module.bn.num_batches_tracked) == 3 * T
    copies = [q.detach().clone().requires_grad_() for q in (scales(), gamma, beta)]
    assert equal(found, train_hand(hand_tebn(p, gamma, beta, joint=False), batches))
    assert not equal(found, train_hand(hand_tebn(copies[0], copies[1], copies[2]), batches))


BNTT_TWINS: dict[str, Callable[[list[Tensor], list[Tensor]], Hand]] = {
    "slots in reverse": lambda g, b: hand_bntt(g[::-1], b[::-1]),
    "eps": lambda g, b: hand_bntt(g, b, eps=2 * EPS),
    "momentum": lambda g, b: hand_bntt(g, b, momentum=MOMENTUM / 2),
    "one norm": lambda g, b: Hand(
        hand_tebn(torch.ones(T, dtype=torch.float64), g[0], b[0], joint=False).forward,
        hand_bntt(g, b).learnt,
        hand_bntt(g, b).norms,
    ),
    "batch first": lambda g, b: Hand(
        (lambda forward: lambda x: forward(x.transpose(0, 1)).transpose(0, 1))(hand_bntt(g, b).forward),
        hand_bntt(g, b).learnt,
        hand_bntt(g, b).norms,
    ),
}


@pytest.mark.parametrize("twin", BNTT_TWINS)
def test_the_comparison_sees_a_wrong_bntt(twin: str) -> None:
    """Time and batch have the same length, so that only the values can tell them apart."""
    gammas, betas, batches = leaves(), leaves(), data((T, T, C, 3))
    found = train_module(bntt(gammas, betas), batches)
    wrong = BNTT_TWINS[twin](
        [g.detach().clone().requires_grad_() for g in gammas],
        [b.detach().clone().requires_grad_() for b in betas],
    )
    assert not equal(found, train_hand(wrong, batches))
    assert equal(found, train_hand(hand_bntt(gammas, betas), batches))


TEBN_TWINS: dict[str, Callable[[Tensor, Tensor, Tensor], Hand]] = {
    "p does not scale beta": lambda p, g, b: hand_tebn(p, g, b, scale_beta=False),
    "statistics per step": lambda p, g, b: hand_tebn(p, g, b, joint=False),
    "eps": lambda p, g, b: hand_tebn(p, g, b, eps=2 * EPS),
    "batch first": lambda p, g, b: Hand(
        (lambda forward: lambda x: forward(x.transpose(0, 1)).transpose(0, 1))(hand_tebn(p, g, b).forward),
        [p, g, b],
        hand_tebn(p, g, b).norms,
    ),
}


@pytest.mark.parametrize("twin", TEBN_TWINS)
def test_the_comparison_sees_a_wrong_tebn(twin: str) -> None:
    p, (gamma, beta), batches = scales(), leaves(2), data((T, T, C, 3))
    found = train_module(tebn(p, gamma, beta), batches)
    copies = [q.detach().clone().requires_grad_() for q in (p, gamma, beta)]
    assert not equal(found, train_hand(TEBN_TWINS[twin](copies[0], copies[1], copies[2]), batches))
    assert equal(found, train_hand(hand_tebn(p, gamma, beta), batches))


def test_defaults_are_the_authors() -> None:
    through, effective = BatchNormThroughTime(T, C), TemporalEffectiveBatchNorm(T, C)
    assert [(s.eps, s.momentum, s.bias) for s in through.slots] == [(1e-4, 0.1, None)] * T
    assert (effective.bn.eps, effective.bn.momentum) == (1e-5, 0.1)
    assert torch.equal(effective.scale, torch.ones(T))
    assert not [key for key in through.state_dict() if "bias" in key]


def test_the_modules_keep_real_batch_norms() -> None:
    """Tools find them: momentum schedules, weight decay filters, SyncBatchNorm conversions."""
    found = [
        m
        for module in (BatchNormThroughTime(T, C), TemporalEffectiveBatchNorm(T, C))
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert len(found) == T + 1


# --- inference and lengths -------------------------------------------------------------------------------


def trained(module: Any) -> Any:
    """Statistics and affines that differ between steps; p that is not 1."""
    with torch.no_grad():
        for x in data(SHAPES["maps"]):
            module.sequence(x.float())
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.eval()


NORMS: dict[str, Callable[[], Any]] = {
    "bntt": lambda: BatchNormThroughTime(T, C, bias=True),
    "tebn": lambda: TemporalEffectiveBatchNorm(T, C),
    "tebn per step": lambda: TemporalEffectiveBatchNorm(T, C, stats="step"),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("length", range(1, T + 1))
def test_inference_may_stop_early(name: str, length: int) -> None:
    """A prefix gives exactly the prefix of the outputs, in one call and step by step."""
    module, x = trained(NORMS[name]()), data(SHAPES["maps"], 1)[0].float()
    whole = module(x)
    assert torch.equal(module(x[:length]), whole[:length])
    per_call = copy.deepcopy(module)
    per_call.time = Time.PER_CALL
    assert torch.equal(step_by_step(per_call)(x[:length]), whole[:length])
    assert not torch.equal(module(x.flip(0)).flip(0), whole), "the steps differ"


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_no_norm_runs_past_its_last_step(name: str, training: bool) -> None:
    module = NORMS[name]().train(training)
    with pytest.raises(TimestepError, match=f"step {T + 1} of a sequence.*made for {T} steps"):
        module(torch.randn(T + 1, 5, C))
    assert torch.isfinite(module(torch.randn(T, 5, C))).all(), "and goes on"


@pytest.mark.parametrize("name", ["bntt", "tebn per step"])
def test_a_missing_reset_is_named_and_a_reset_helps(name: str) -> None:
    module = NORMS[name]()
    module.time = Time.PER_CALL
    for x_t in torch.randn(T, 5, C):
        module(x_t)
    before = copy.deepcopy(module.state_dict())
    for _ in range(2):
        with pytest.raises(TimestepError, match="the reset between two sequences is missing") as caught:
            module(torch.randn(5, C))
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items()), "nothing was counted"
    module.reset()
    assert torch.isfinite(module(torch.randn(5, C))).all()


def test_an_interrupted_step_is_not_counted() -> None:
    module = BatchNormThroughTime(T, C, time=Time.PER_CALL)
    module(torch.randn(5, C))
    with pytest.raises(OptionError, match="one value per channel"):
        module(torch.randn(1, C))
    module(torch.randn(5, C))
    assert [int(s.num_batches_tracked) for s in module.slots] == [1, 1, 0, 0]


@pytest.mark.parametrize("length", range(1, T))
def test_tebn_is_trained_with_whole_sequences(length: int) -> None:
    """T = 1 among them: never broadcast against the whole scale."""
    module = TemporalEffectiveBatchNorm(T, C)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(TimestepError, match=f"made for {T} steps and is trained with {length}") as caught:
        module(torch.randn(length, 5, C, 2))
    assert f"timesteps={length}" in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_bntt_is_trained_with_fewer_steps_too() -> None:
    module = BatchNormThroughTime(T, C)
    module(torch.randn(2, 5, C)).sum().backward()
    assert [int(s.num_batches_tracked) for s in module.slots] == [1, 1, 0, 0]
    assert [s.weight.grad is None for s in module.slots] == [False, False, True, True]


def test_joint_statistics_do_not_exist_per_call() -> None:
    module = TemporalEffectiveBatchNorm(T, C, time=Time.PER_CALL)
    with pytest.raises(TimestepError, match=r"TEBN\(stats='step'\)"):
        module(torch.randn(5, C))
    assert torch.isfinite(module.eval()(torch.randn(5, C))).all()


def test_the_mode_of_the_norm_itself_decides() -> None:
    """Frozen alone, as fine-tuning does it: nothing is trained over all steps."""
    module = trained(TemporalEffectiveBatchNorm(T, C))
    x = data(SHAPES["maps"], 1)[0].float()
    whole, before = module(x), copy.deepcopy(module.state_dict())
    module.train().bn.eval()
    assert torch.equal(module(x[:2]), whole[:2])
    assert torch.equal(torch.stack([module.step(t, x[t]) for t in range(T)]), whole)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    module.eval().bn.train()
    with pytest.raises(TimestepError, match="is trained with 2"):
        module(x[:2])
    with pytest.raises(TimestepError, match=r"TEBN\(stats='step'\)"):
        module.step(0, x[0])


@pytest.mark.parametrize("kind", [BatchNormThroughTime, TemporalEffectiveBatchNorm])
def test_time_in_the_batch_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(OptionError, match="merged into the batch"):
        kind(T, C, time=Time.MERGED)


# --- edges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_one_step_and_one_sample(name: str) -> None:
    """One sample has statistics over space, and none without space."""
    module = NORMS[name]()
    assert torch.isfinite(module(torch.randn(T, 1, C, 2))).all()
    if name == "tebn":  # statistics over the steps of one sample
        assert torch.isfinite(module(torch.randn(T, 1, C))).all()
    else:
        with pytest.raises(OptionError, match="one value per channel"):
            module(torch.randn(T, 1, C))
    one = type(module)(1, C)
    assert one(torch.randn(1, 4, C)).shape == (1, 4, C)
    with pytest.raises(OptionError, match="one value per channel"):
        one(torch.randn(1, 1, C))
    assert torch.isfinite(one.eval()(torch.randn(1, 1, C))).all()


@pytest.mark.parametrize("name", NORMS)
def test_memory_formats_do_not_change_values(name: str) -> None:
    """Channels last, and batch first turned around: strided views of the same numbers."""
    x = torch.randn(T, 5, C, 4, 3)
    last = x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not last.is_contiguous()
    assert not turned.is_contiguous()
    for strided in (last, turned):
        module = trained(NORMS[name]())
        for training in (False, True):
            plain, other = copy.deepcopy(module).train(training), copy.deepcopy(module).train(training)
            # 1e-5: torch has a kernel for each format, and they round differently
            assert torch.allclose(plain(x), other(strided), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_autocast_leaves_states_in_float32(name: str) -> None:
    module, x = NORMS[name](), torch.randn(T, 5, C, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x.bfloat16())
        y.float().square().sum().backward()
    assert y.dtype is torch.bfloat16
    assert {t.dtype for t in module.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in module.parameters())
    # 0.05: bfloat16 has eight bits
    assert torch.allclose(y.float(), copy.deepcopy(module).train()(x), atol=0.05, rtol=0.05)


# --- which slot was used, for the tests of the adapters -----------------------------------------------------


def follow_slots(model: nn.Module) -> list[tuple[str, int]]:
    """Set `model` to eval mode, make all slots tell themselves apart, and note (site, slot) of every step.

    Slot t multiplies by t + 1, with statistics 0 and 1, so that it shows in the output of a converted norm.
    """
    log: list[tuple[str, int]] = []
    for name, module in model.eval().named_modules():
        if isinstance(module, TimedNorm):
            _follow_norm(name, module, log)
        elif isinstance(module, BatchNormThroughTime):
            for t, slot in enumerate(module.slots):
                slot.register_forward_hook(_noting(log, name.rpartition(".")[0], t))
    return log


def _noting(log: list[tuple[str, int]], name: str, t: int) -> Callable[..., None]:
    return lambda *_: log.append((name, t))


def _follow_norm(name: str, norm: Any, log: list[tuple[str, int]]) -> None:
    slots = [norm, *norm.bntt] if "bntt" in norm._modules else [norm]
    with torch.no_grad():
        for t, slot in enumerate(slots):
            slot.running_mean.zero_()
            slot.running_var.fill_(1)
            slot.weight.fill_(t + 1)
            if slot.bias is not None:
                slot.bias.zero_()
        if "tebn" in norm._modules:
            norm.tebn.scale.copy_(torch.arange(len(norm.tebn.scale)) + 1)

    def note(module: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        x, y = inputs[0].detach(), y.detach()
        assert x.any(), "nothing can be seen in zeros"
        log.append((name, round(float((x * y).sum() / (x * x).sum())) - 1))

    norm.register_forward_hook(note)


def right_or_refused(
    log: list[tuple[str, int]], run: Callable[[], object], true: list[tuple[str, int]]
) -> None:
    """Every step used its own slot; or a TimestepError ended the run, at the latest in the step in which
    a wrong slot was used."""
    log.clear()
    try:
        run()
    except TimestepError:
        right = next((i for i, (a, b) in enumerate(zip(log, true, strict=False)) if a != b), len(log))
        wrong = [name for name, _ in log[right:]]
        assert len(wrong) == len(set(wrong)), f"went on after a wrong slot: {log}"
    else:
        assert log == true


class Steps(TimedNorm):
    """Sees step `at` of a sequence."""

    at = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.at, x)


@pytest.mark.parametrize("option", [BNTT(), TEBN(stats="step")], ids=str)
def test_slots_can_be_followed(option: BNTT | TEBN) -> None:
    norm = converted(used_norm(), option, kind=Steps)
    log = follow_slots(nn.Sequential(norm))
    for t in (2, 0, 3):
        norm.at = t
        norm(torch.randn(5, C, 4, 3))
    assert log == [("0", 2), ("0", 0), ("0", 3)]


def test_following_sees_wrong_slots() -> None:
    """The check fails on a wrong slot that went unnoticed, also if an error comes later."""
    log: list[tuple[str, int]] = []

    def late() -> None:
        log.extend([("a", 1), ("a", 2)])
        raise TimestepError("too late.", do="look")

    true = [("a", 0), ("a", 1)]
    with pytest.raises(AssertionError):
        right_or_refused(log, late, true)
    with pytest.raises(AssertionError):
        right_or_refused(log, lambda: log.append(("a", 1)), true[:1])
    right_or_refused(log, late, [("a", 1), ("a", 0)])


# --- conversion of an existing batch norm ------------------------------------------------------------------


class Sequences(TimedNorm):
    """The smallest adapter's norm: it sees whole sequences."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x)


def converted(norm: Any, option: BNTT | TEBN, timesteps: int = T, kind: type[TimedNorm] = Sequences) -> Any:
    """What `patch` does to a norm that sees [T, B, C, *]."""
    place = Place(norm, NormSpec(Time.LEADING, norm.num_features), (norm.num_features,), timesteps)
    dtype = torch.float64 if norm.weight is not None and norm.weight.dtype is torch.float64 else torch.float32
    part = new_part(option, place, device=torch.device("cpu"), dtype=dtype)
    swap_class(norm, kind)
    attach(norm, option, part, "bn")
    return norm


def taken_back(norm: Any) -> Any:
    detach(norm)
    restore_class(norm)
    return norm


def used_norm(**options: Any) -> nn.BatchNorm2d:
    """Statistics from data, an affine from training, and settings of its own."""
    norm = nn.BatchNorm2d(C, **{"eps": 3e-3, "momentum": 0.4, **options})
    with torch.no_grad():
        for x in data(SHAPES["maps"]):
            norm(x.flatten(0, 1).to(next(iter(norm.state_dict().values()), torch.zeros(())).dtype))
        for parameter in norm.parameters():
            parameter.uniform_(0.3, 2).mul_(torch.tensor([1.0, -1.0, 1.0]))
    return norm


NEUTRAL: dict[str, BNTT | TEBN] = {
    "bntt": BNTT(bias=True),
    "tebn": TEBN(),
    "tebn per step": TEBN(stats="step"),
}


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fresh_conversion_is_neutral(name: str, dtype: torch.dtype) -> None:
    """Bit by bit, in inference, in every slot; the double precision of a float64 network included."""
    norm = used_norm().to(dtype)
    with torch.no_grad():
        norm.running_mean.add_(torch.rand(C, dtype=dtype) / 3)  # type: ignore[union-attr]
        norm.weight.add_(torch.rand(C, dtype=dtype) / 3)
    norm.eval()
    x = data(SHAPES["maps"], 1)[0].to(dtype)
    expected = norm(x.flatten(0, 1)).view(x.shape)
    assert torch.equal(converted(norm, NEUTRAL[name])(x), expected)


def test_a_conversion_to_the_authors_bntt_drops_and_freezes_beta() -> None:
    norm = used_norm().eval()
    x = data(SHAPES["maps"], 1)[0].float()
    plain = norm(x.flatten(0, 1)).view(x.shape)
    beta = norm.bias.detach().clone()
    keys, trains = list(norm.state_dict()), [p.requires_grad for p in norm.parameters()]
    converted(norm, BNTT())
    # 1e-6: beta is taken off after rounding instead of never being added
    assert torch.allclose(norm(x), plain - beta.view(-1, 1, 1), atol=1e-6)
    assert norm.bias.requires_grad is False
    assert not [key for key in norm.state_dict() if key.startswith("bntt") and key.endswith("bias")]
    assert list(norm.state_dict())[: len(keys)] == keys
    norm.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in norm.parameters() if p.requires_grad)
    taken_back(norm)
    assert [p.requires_grad for p in norm.parameters()] == trains
    assert list(norm.state_dict()) == keys
    assert torch.equal(norm.bias, beta)


@pytest.mark.parametrize("option", [BNTT(), BNTT(bias=True), TEBN(), TEBN(stats="step")], ids=str)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_conversion_is_undone_exactly(option: BNTT | TEBN, frozen: bool) -> None:
    norm = used_norm().eval()
    norm.bias.requires_grad_(not frozen)
    x = torch.randn(2, C, 4, 3)
    before, state, expected = dict(norm.__dict__), copy.deepcopy(norm.state_dict()), norm(x)
    converted(norm, option)
    assert original_class(norm) is nn.BatchNorm2d
    taken_back(norm)
    assert type(norm) is nn.BatchNorm2d
    assert norm.bias.requires_grad is not frozen
    assert norm.__dict__.keys() == before.keys()
    assert all(torch.equal(v, norm.state_dict()[k]) for k, v in state.items())
    assert torch.equal(norm(x), expected)


@pytest.mark.parametrize("kind", [BNTT, TEBN])
def test_eps_and_momentum_are_kept_unless_given(kind: type[Any]) -> None:
    for given, wanted in (({}, (3e-3, 0.4)), ({"eps": 0.5, "momentum": 0.9}, (0.5, 0.9))):
        norm = converted(used_norm(), kind(**given))
        slots = [m for m in norm.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert len(slots) == (T if kind is BNTT else 1)
        assert [(slot.eps, slot.momentum) for slot in slots] == [wanted] * len(slots)
        taken_back(norm)
        assert (norm.eps, norm.momentum) == (3e-3, 0.4)


def test_a_given_eps_is_used() -> None:
    """With variances as small as eps."""
    norm, x = used_norm().eval(), torch.randn(T, 5, C, 4, 3) / 100
    with torch.no_grad():
        norm.running_var.fill_(1e-4)  # type: ignore[union-attr]
    expected = converted(used_norm(eps=0.5), BNTT(bias=True))
    expected.load_state_dict({k: norm.state_dict()[k.rpartition(".")[2]] for k in expected.state_dict()})
    found = converted(norm, BNTT(bias=True, eps=0.5))
    assert torch.equal(found(x), expected.eval()(x))
    assert not torch.equal(found(x), converted(copy.deepcopy(taken_back(norm)), BNTT(bias=True))(x))


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize(
    "options",
    [
        {"affine": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
        {"momentum": None},
        {"bias": False},
    ],
    ids=str,
)
def test_unusual_batch_norms(name: str, options: dict[str, Any]) -> None:
    """Training equals one plain batch norm per step (joint: one for all), with the same settings."""
    if "bias" in options:
        norm = used_norm()
        norm.register_parameter("bias", None)
    else:
        norm = used_norm(**options)
    slots = [copy.deepcopy(norm) for _ in range(T)]
    converted(norm, NEUTRAL[name])
    for x in data(SHAPES["maps"], 2):
        x = x.float()
        if name == "bntt":
            expected = torch.stack([slot(x_t) for slot, x_t in zip(slots, x, strict=True)])
        elif name == "tebn":
            expected = slots[0](x.flatten(0, 1)).view(x.shape)
        else:
            expected = torch.stack([slots[0](x_t) for x_t in x])
        assert torch.equal(norm(x), expected)
    assert torch.equal(norm.eval()(x[:1]), slots[0].eval()(x[0])[None])


@pytest.mark.parametrize("option", [BNTT(), TEBN(), TEBN(stats="step")], ids=str)
def test_a_frozen_norm_stays_frozen(option: BNTT | TEBN) -> None:
    """``bn.eval()`` inside a network that trains: running statistics are used and kept, in every slot."""
    norm = converted(used_norm(), option)
    net = nn.Sequential(norm).train()
    norm.eval()
    state, x = copy.deepcopy(norm.state_dict()), torch.randn(2, 5, C, 4, 3)
    y = net(x)  # 2 of T steps: no joint statistics are taken
    y.sum().backward()
    assert all(torch.equal(state[k], v) for k, v in norm.state_dict().items())
    assert torch.equal(y, norm(x))
    net.train()(torch.randn(T, 5, C, 4, 3))
    changed = [k for k, v in norm.state_dict().items() if not torch.equal(state[k], v)]
    assert len(changed) == (3 * T if isinstance(option, BNTT) else 3), "in training mode they move"


@pytest.mark.parametrize("training", [True, False])
def test_parts_follow_the_mode_of_their_norm(training: bool) -> None:
    norm = converted(used_norm().train(training), BNTT())
    assert {m.training for m in norm.modules()} == {training}


def test_one_step_has_no_later_slots() -> None:
    norm = used_norm()
    plain = copy.deepcopy(norm)
    x = torch.randn(1, 5, C, 4, 3)
    converted(norm, BNTT(bias=True), timesteps=1)
    assert isinstance(norm.bntt, LaterSlots)
    assert torch.equal(norm(x), plain(x[0])[None])
    with pytest.raises(TimestepError, match="made for 1 steps"):
        norm(torch.randn(2, 5, C, 4, 3))
    assert torch.equal(taken_back(norm).eval()(x[0]), plain.eval()(x[0]))


def test_the_scale_starts_at_one() -> None:
    norm = converted(used_norm(), TEBN())
    assert isinstance(norm.tebn, TemporalScale)
    assert torch.equal(norm.tebn.scale, torch.ones(T))


# --- clocks ------------------------------------------------------------------------------------------------


class Neuron(Clock):
    """The smallest neuron that keeps time: `v` counts the steps behind, None is a start."""

    def __init__(self) -> None:
        super().__init__()
        self.v: int | None = None

    def steps_done(self, batch: int) -> int:
        return self.v or 0

    def forward(self, x: Tensor) -> Tensor:
        t = self.v or 0
        self.tick(t)
        self.v = t + 1
        return x

    def reset(self) -> None:
        self.v = None
        self.forget()


class Asking(ClockedNorm):
    """A norm that returns the step it was told."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(self.now(x))


X = torch.zeros(2, 3)


def clocked(norms: int = 1) -> tuple[Neuron, list[Asking]]:
    neuron, asking = Neuron(), [Asking() for _ in range(norms)]
    for norm in asking:
        norm.set_clock(neuron)
    return neuron, asking


def test_norms_are_told_the_step_of_the_neuron_after_them() -> None:
    neuron, norms = clocked(2)
    told = []
    for _ in range(2):
        for _ in range(T):
            told.append([int(norm(X)) for norm in norms])
            neuron(X)
        neuron.reset()
    assert told == [[t, t] for t in range(T)] * 2


def test_a_clock_is_no_child() -> None:
    neuron, (norm,) = clocked()
    assert not list(norm.children())
    assert not norm.state_dict()
    norm(X)
    neuron(X)
    twin_neuron, twin = copy.deepcopy(nn.ModuleList([neuron, norm]))
    neuron.reset()
    assert int(twin(X)) == 1, "a copy asks the copied neuron"
    twin_neuron(X)
    assert int(norm(X)) == 0


def test_clocks_pickle() -> None:
    neuron, norms = clocked()
    norms[0](X)
    neuron(X)
    neuron, norm = pickle.loads(pickle.dumps(nn.ModuleList([neuron, *norms])))
    told = int(norm(X))
    neuron(X)
    assert (told, int(norm(X))) == (1, 2)


def test_asking_twice_in_one_step_is_an_error() -> None:
    _, (norm,) = clocked()
    norm(X)
    for _ in range(2):
        with pytest.raises(TimestepError, match="cannot tell which time step"):
            norm(X)


def test_a_step_that_the_neuron_did_not_take_is_an_error() -> None:
    """And it stays one until a reset: which of the two is right cannot be seen."""
    neuron, (norm,) = clocked()
    norm(X)
    neuron(X)
    norm(X)  # and then the model raised
    with pytest.raises(TimestepError, match="was not called in the step before"):
        norm(X)
    neuron.reset()
    assert int(norm(X)) == 0


def test_a_sequence_that_ended_between_norm_and_neuron() -> None:
    """The start is seen at the neuron, even if nobody called its reset."""
    neuron, (norm,) = clocked()
    norm(X)
    neuron(X)
    norm(X)
    neuron.v = None
    assert int(norm(X)) == 0
    neuron(X)
    assert int(norm(X)) == 1


def test_a_start_that_only_the_neuron_sees_is_an_error() -> None:
    neuron, (norm,) = clocked()
    norm(X)
    neuron(X)
    assert int(norm(X)) == 1
    neuron.v = None
    with pytest.raises(TimestepError, match="took this for step 2 of a sequence, its neuron for step 1"):
        neuron(X)
    assert neuron.v is None
    neuron.reset()
    assert int(norm(X)) == 0


def test_a_norm_that_comes_after_its_clock_is_an_error() -> None:
    """Where the order of registration is not that of the calls: every answer would be one step late."""
    neuron, (norm,) = clocked()

    def run() -> None:
        for _ in range(3):
            neuron(X)
            norm(X)

    with pytest.raises(TimestepError):
        run()


def test_a_norm_without_a_clock_says_so() -> None:
    with pytest.raises(TimestepError, match="patched for whole sequences"):
        Asking()(X)


class _Asks(Clock):
    """Its state has a batch size: another batch is another sequence."""

    def steps_done(self, batch: int) -> int:
        return 2 if batch == 5 else 0


def test_a_clock_is_asked_about_the_batch_at_hand() -> None:
    class Norm(ClockedNorm):
        pass

    norm = Norm()
    norm.set_clock(_Asks())
    assert norm.now(torch.rand(4, C)) == 0
    norm._ext_last = 1
    norm.set_clock(_Asks())
    assert norm.now(torch.rand(5, C)) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_a_single_precision_membrane_in_a_half_model(dtype: torch.dtype, training: bool) -> None:
    norm = BatchNorm(C, eps=0.5, momentum=0.25)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
        norm.running_mean.copy_(torch.tensor([0.25, 0.5, -0.5]))
        norm.running_var.copy_(torch.tensor([0.25, 0.5, 2.0]))
    single = copy.deepcopy(norm).train(training)
    norm = norm.to(dtype).train(training)
    x = torch.randn(8, C)
    y = norm(x)
    assert y.dtype is torch.float32
    assert torch.equal(y, single(x))
    assert norm.running_mean.dtype is dtype
    assert torch.equal(norm.running_mean, single.running_mean.to(dtype))
    assert torch.equal(norm.running_var, single.running_var.to(dtype))
    assert torch.equal(norm.running_mean, torch.tensor([0.25, 0.5, -0.5]).to(dtype)) is not training
