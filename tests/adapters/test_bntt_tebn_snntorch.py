"""BNTT and TEBN in snnTorch networks: values, neutrality, and the time step in every idiom."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from snn_ext import BNTT, IMP, TEBN, NothingMatchedError, OptionError, SnnExtError, TimestepError
from snn_ext.norms import BatchNormThroughTime, LaterSlots, TemporalEffectiveBatchNorm, TemporalScale
from tests.adapters.snntorch_nets import private_instances
from tests.property.round_trip import without_state
from tests.unit.test_plan import fingerprint, same
from tests.unit.test_temporal import follow_slots, right_or_refused

T = 4
NEUTRAL: dict[str, BNTT | TEBN] = {"bntt": BNTT(bias=True), "tebn": TEBN(stats="step")}


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


# --- one network per idiom ------------------------------------------------------------------------------


def layers(**options: Any) -> list[nn.Module]:
    """Conv, batch norm, pool, neuron, dense, batch norm, neuron; one step takes [B, 1, 8, 8]."""
    options = {"beta": 0.8, **options}
    net = [
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.MaxPool2d(2),
        snn.Leaky(**options),
        nn.Flatten(),
        nn.Linear(27, 5),
        nn.BatchNorm1d(5),
        snn.Leaky(**options),
    ]
    with torch.no_grad():
        for layer in (net[0], net[5]):
            layer.weight.mul_(3)  # type: ignore[operator, union-attr]
    return net


class Loop(nn.Module):
    """The loop in forward. `start`: how it begins; ``"reset_mem"`` never passes a membrane."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.conv, self.bn1, self.pool, self.lif1, self.flat, self.fc, self.bn2, self.lif2 = layers()
        self.start, self.steps = start, T

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self._begin(x)
        membranes = []
        for t in range(self.steps):
            cur1 = self.pool(self.bn1(self.conv(x if x.ndim == 4 else x[t])))
            if self.start == "reset_mem":
                spk1, _ = self.lif1(cur1)
                _, mem2 = self.lif2(self.bn2(self.fc(self.flat(spk1))))
            else:
                spk1, mem1 = self.lif1(cur1, mem1)
                _, mem2 = self.lif2(self.bn2(self.fc(self.flat(spk1))), mem=mem2)
            membranes.append(mem2)
            if self.start == "zeros, detached":
                mem1, mem2 = mem1.detach(), mem2.detach()
        return torch.stack(membranes)

    def _begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.start == "init_leaky":
            return self.lif1.init_leaky(), self.lif2.init_leaky()
        if self.start == "reset_mem":
            return self.lif1.reset_mem(), self.lif2.reset_mem()
        size = x.shape[-4]
        return torch.zeros(size, 3, 3, 3, dtype=x.dtype), torch.zeros(size, 5, dtype=x.dtype)


class Outer(nn.Module):
    """Holds the loop for nets of one step, so that all idioms are called alike."""

    def __init__(self, net: nn.Module, reset: Callable[[nn.Module], None] = utils.reset) -> None:
        super().__init__()
        self.net, self.reset, self.steps = net, reset, T

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.net)
        steps = [self.net(x if x.ndim == 4 else x[t]) for t in range(self.steps)]
        return torch.stack([mem for _, mem in steps])


def sequential() -> nn.Module:
    net = layers(init_hidden=True)
    net[-1] = snn.Leaky(beta=0.8, init_hidden=True, output=True)
    return Outer(nn.Sequential(*net))


class Nested(nn.Module):
    """Sequentials as submodules, and ``utils.reset`` of them inside forward."""

    def __init__(self) -> None:
        super().__init__()
        net = layers(init_hidden=True)
        self.features = nn.Sequential(*net[:4])
        self.classifier = nn.Sequential(*net[4:7], snn.Leaky(beta=0.8, init_hidden=True, output=True))
        self.steps = T

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self.features)
        utils.reset(self.classifier)
        steps = [self.classifier(self.features(x if x.ndim == 4 else x[t])) for t in range(self.steps)]
        return torch.stack([mem for _, mem in steps])


class States(nn.Module):
    """One step; states come in and go out through the arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.pool, self.lif1, self.flat, self.fc, self.bn2, self.lif2 = layers()

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.pool(self.bn1(self.conv(x))), mem1)
        spk2, mem2 = self.lif2(self.bn2(self.fc(self.flat(spk1))), mem2)
        return spk2, mem1, mem2


class StatesLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.steps = States(), T

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-4]
        mem1, mem2 = torch.zeros(size, 3, 3, 3, dtype=x.dtype), torch.zeros(size, 5, dtype=x.dtype)
        membranes = []
        for t in range(self.steps):
            _, mem1, mem2 = self.net(x if x.ndim == 4 else x[t], mem1, mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


IDIOMS: dict[str, Callable[[], Any]] = {
    "init_leaky": lambda: Loop("init_leaky"),
    "torch.zeros": lambda: Loop("zeros"),
    "torch.zeros, detached every step": lambda: Loop("zeros, detached"),
    "reset_mem": lambda: Loop("reset_mem"),
    "init_hidden, utils.reset": sequential,
    "nested, utils.reset in forward": Nested,
    "states through arguments": StatesLoop,
}
INSIDE = {"init_hidden, utils.reset": "net", "states through arguments": "net"}
"""Where the loop is outside: the part that users would patch."""


def data(size: int = 4, *, varying: bool = True, steps: int = T) -> Tensor:
    level = torch.arange(1.0, steps + 1).view(-1, 1, 1, 1, 1)
    return torch.randn(steps, size, 1, 8, 8) * level if varying else torch.randn(size, 1, 8, 8) * 2


def batch_norms(net: nn.Module) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def lived_in(net: nn.Module) -> nn.Module:
    """Statistics from data, and affines as training could leave them."""
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(data())
        for norm in batch_norms(net):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-0.5, 1)
    snn_ext.reset(net)
    return net.eval()


def patched(net: nn.Module, option: Any, part: str | None = None, **known: Any) -> nn.Module:
    """`net` with the method in all of it, or in one part."""
    root = net if part is None else net.get_submodule(part)
    snn_ext.patch(root, **{option.name: option}, **(known or {"timesteps": T}))
    return net


def lengths(net: nn.Module) -> set[int]:
    kinds: dict[type, Callable[[Any], int]] = {
        LaterSlots: lambda m: len(m) + 1,
        BatchNormThroughTime: lambda m: len(m.slots),
        TemporalScale: lambda m: len(m.scale),
        TemporalEffectiveBatchNorm: lambda m: len(m.scale),
    }
    return {kinds[type(m)](m) for m in net.modules() if type(m) in kinds}


def refusal(call: Callable[[], object]) -> str:
    """The message of the error that the library raises; empty where it raises none."""
    try:
        call()
    except SnnExtError as error:
        return str(error)
    return ""


def spikes_of(net: nn.Module, x: Tensor) -> float:
    """Smallest share of spikes of any neuron."""
    seen: dict[int, list[float]] = {}

    def note(m: nn.Module, _: object, out: Any) -> None:
        seen.setdefault(id(m), []).append((out[0] if isinstance(out, tuple) else out).detach().mean().item())

    neurons = [m for m in net.modules() if isinstance(m, snn.Leaky)]
    handles = [n.register_forward_hook(note) for n in neurons]
    net(x)
    for handle in handles:
        handle.remove()
    return min(sum(rates) for rates in seen.values())


# --- the framework's own factories ----------------------------------------------------------------------


@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
def test_bntt_equals_the_frameworks_factories(converted: bool, dims: int) -> None:
    """With their eps, which is not the authors'; they have no forward, and are indexed by hand."""
    factory = snn.BatchNormTT1d if dims == 1 else snn.BatchNormTT2d
    theirs = factory(3, T)
    kind = nn.BatchNorm1d if dims == 1 else nn.BatchNorm2d
    if converted:
        net = nn.Sequential(kind(3), snn.Leaky(beta=0.9, init_hidden=True))
        snn_ext.patch(net, bntt=True, timesteps=T)
        slots = [net[0], *net[0].bntt]
        step = net[0].step
    else:
        module = BatchNormThroughTime(T, 3, eps=1e-5)
        slots, step = list(module.slots), module.step
    with torch.no_grad():
        for a, b in zip(slots, theirs, strict=True):
            a.weight.uniform_(0.5, 2)
            b.weight.copy_(a.weight)
    shape = (T, 5, 3) if dims == 1 else (T, 5, 3, 4, 4)
    for training in (True, True, False):
        for norm in (*slots, *theirs):
            norm.train(training)
        x1 = (torch.randn(shape) / 50).requires_grad_()  # variances so small that eps shows
        x2 = x1.detach().clone().requires_grad_()
        y1 = torch.stack([step(t, x_t) for t, x_t in enumerate(x1)])
        y2 = torch.stack([theirs[t](x_t) for t, x_t in enumerate(x2)])
        for y in (y1, y2):
            (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        assert torch.equal(y1, y2)
        assert torch.equal(x1.grad, x2.grad)  # type: ignore[arg-type]
        authors = BatchNormThroughTime(T, 3).train(training)
        assert not torch.allclose(authors.sequence(x1), y1, rtol=1e-3), "eps 1e-4 is another norm"
    for a, b in zip(slots, theirs, strict=True):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(a.weight.grad, b.weight.grad)


NEURONS: dict[str, Callable[..., Any]] = {
    "Leaky": lambda **k: snn.Leaky(beta=0.9, **k),
    "Leaky, immediate reset": lambda **k: snn.Leaky(beta=0.9, reset_delay=False, **k),
    "Lapicque": lambda **k: snn.Lapicque(beta=0.9, **k),
    "Synaptic": lambda **k: snn.Synaptic(alpha=0.8, beta=0.9, **k),
    "RLeaky": lambda **k: snn.RLeaky(beta=0.9, linear_features=6, **k),
    "RSynaptic": lambda **k: snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=6, **k),
}


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("option", [BNTT(), TEBN(stats="step")], ids=str)
def test_a_neurons_input_is_normalised(name: str, reset: str, option: Any) -> None:
    """Equal to the plain neuron behind the plain norm: all states, and the statistics, seen once a step."""
    plain = NEURONS[name](reset_mechanism=reset, init_hidden=True, output=True)
    neuron, x = copy.deepcopy(plain), torch.randn(T, 5, 6) * 3
    snn_ext.patch(neuron, **{option.name: option}, timesteps=T, example_input=x[0])
    norm: Any = (
        BatchNormThroughTime(T, 6)
        if isinstance(option, BNTT)
        else TemporalEffectiveBatchNorm(T, 6, stats="step")
    )
    for t, x_t in enumerate(x):
        found, expected = neuron(x_t), plain(norm.step(t, x_t))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), f"step {t}"
    own = getattr(neuron, option.name).state_dict()
    assert all(torch.equal(v, own[k]) for k, v in norm.state_dict().items())


class OwnStep(snn.Leaky):  # type: ignore[misc]
    """A user's class that charges by itself."""

    def _base_sub(self, input_: Tensor) -> Tensor:
        return self.beta * self.mem + input_ - self.reset * self.threshold  # type: ignore[no-any-return]


def test_a_norm_is_never_left_out_silently() -> None:
    neuron, x = OwnStep(beta=0.9, init_hidden=True), torch.randn(5, 6)

    def run() -> None:
        snn_ext.patch(neuron, bntt=True, timesteps=T, example_input=x)
        neuron(x)
        assert int(neuron.bntt.slots[0].num_batches_tracked) == 1

    refusal(run)


# --- a fresh conversion changes nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("known_by", ["timesteps", "example_input"])
def test_a_fresh_conversion_is_neutral(idiom: str, name: str, known_by: str) -> None:
    """Bit by bit, in inference, several sequences in a row, the last with a smaller batch."""
    plain = lived_in(IDIOMS[idiom]())
    assert spikes_of(plain, data()) > 0
    snn_ext.reset(plain)
    known: dict[str, Any] = {"timesteps": T} if known_by == "timesteps" else {"example_input": data()}
    net = patched(copy.deepcopy(plain), NEUTRAL[name], **known)
    assert lengths(net) == {T}
    with torch.no_grad():
        for size in (4, 4, 2):
            x = data(size)
            if idiom == "nested, utils.reset in forward":
                snn_ext.reset(net)  # the framework's own reset does not reach copies
                snn_ext.reset(plain)
            assert torch.equal(net(x), plain(x))
        for module in net.modules():
            if isinstance(module, LaterSlots | TemporalScale):
                for parameter in module.parameters():
                    parameter.mul_(-1)
        snn_ext.reset(net)
        snn_ext.reset(plain)
        assert not torch.equal(net(x), plain(x)), "the output shows what the new parameters do"


@pytest.mark.parametrize("idiom", IDIOMS)
def test_bntt_without_a_bias_is_undone(idiom: str) -> None:
    net, x = lived_in(IDIOMS[idiom]()), data()
    with torch.no_grad():
        expected = net(x)
    snn_ext.reset(net)
    before, betas = fingerprint(net), [norm.bias for norm in batch_norms(net)]
    patched(net, BNTT())
    assert [beta.requires_grad for beta in betas] == [False, False]
    with torch.no_grad():
        assert not torch.equal(net(x), expected)
    snn_ext.reset(net)
    snn_ext.unpatch(net)
    assert same(without_state(before), without_state(fingerprint(net)))
    assert all(not m._forward_pre_hooks and not m._forward_pre_hooks_with_kwargs for m in net.modules())
    assert all(beta.requires_grad for beta in betas)
    with torch.no_grad():
        assert torch.equal(net(x), expected)


# --- every step has its own slot ------------------------------------------------------------------------------


def true_slots(sites: tuple[str, ...], *sequences: int) -> list[tuple[str, int]]:
    return [(site, t) for length in sequences for t in range(length) for site in sites]


def followed(idiom: str, option: Any, part: str | None = None) -> tuple[Any, list[Any], tuple[str, ...]]:
    net = IDIOMS[idiom]()
    if option.at == "neuron" and part is None:
        patched(net, option, example_input=data())
    else:
        patched(net, option, part)
    log = follow_slots(net)
    net(data())
    sites = tuple(dict.fromkeys(name for name, _ in log))
    assert len(sites) == 2
    log.clear()
    return net, log, sites


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize(
    "option", [BNTT(), TEBN(stats="step"), BNTT(at="neuron")], ids=["bntt", "tebn", "neuron"]
)
def test_steps_are_counted(idiom: str, option: Any) -> None:
    """Sequences of varying length and batch size, in training and inference."""
    net, log, sites = followed(idiom, option)
    lengths_run = (T, 2, 1, 1, T, 3)
    for i, length in enumerate(lengths_run):
        net.steps = length
        net(data(4 if i % 2 else 3))
    assert log == true_slots(sites, *lengths_run)


@pytest.mark.parametrize("idiom", INSIDE)
@pytest.mark.parametrize("option", [BNTT(), TEBN(stats="step")], ids=["bntt", "tebn"])
def test_steps_are_counted_where_only_a_part_is_patched(idiom: str, option: Any) -> None:
    """The loop is outside of what was patched."""
    net, log, sites = followed(idiom, option, INSIDE[idiom])
    for length in (T, 2, T, 1, 1):
        net.steps = length
        net(data())
    assert log == true_slots(sites, T, 2, T, 1, 1)


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("option", [BNTT(), BNTT(at="neuron")], ids=["norm", "neuron"])
def test_too_many_steps_and_recovery(idiom: str, option: Any) -> None:
    """The error names the reset; the next sequence is right again, as if nothing had happened."""
    net, log, sites = followed(idiom, option)
    expected = net(data(varying=False) * 0 + 1).detach()
    net.steps = T + 1
    for _ in range(2):
        with pytest.raises(TimestepError, match=f"step {T + 1} of a sequence") as caught:
            net(data(steps=T + 1))
        assert "reset" in str(caught.value)
    net.steps = T
    if idiom not in ("init_leaky", "reset_mem", "torch.zeros", "torch.zeros, detached every step"):
        snn_ext.reset(net)
    log.clear()
    assert torch.equal(net(data(varying=False) * 0 + 1), expected)
    assert log == true_slots(sites, T)


@pytest.mark.parametrize("at", ["norm", "neuron"])
@pytest.mark.parametrize("reset", [utils.reset, snn_ext.reset])
def test_a_missing_reset_is_named(at: Any, reset: Callable[[nn.Module], None]) -> None:
    net = IDIOMS["init_hidden, utils.reset"]().net
    snn_ext.patch(net, bntt=BNTT(at=at), timesteps=T, example_input=data()[0])
    log = follow_slots(net)
    x = data()
    utils.reset(net)
    for x_t in x:
        net(x_t)
    for _ in range(2):
        with pytest.raises(TimestepError, match="the reset between two sequences is missing"):
            net(x[0])
    reset(net)
    log.clear()
    for x_t in x:
        net(x_t)
    assert [t for _, t in log] == [t for t in range(T) for _ in range(2)]


def states_net(**known: Any) -> tuple[States, list[tuple[str, int]]]:
    net = States()
    snn_ext.patch(net, bntt=True, **(known or {"timesteps": T}))
    return net, follow_slots(net)


def zeros(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.zeros(size, 3, 3, 3), torch.zeros(size, 5)


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda m: m.detach(),
    "view": lambda m: m.view(m.shape),
    "in place": lambda m: m.detach().clamp_(max=10),
    "carried": lambda m: snn_ext.carried(m * 0.9, of=m),
}


@pytest.mark.parametrize("how", KEEPING)
def test_membranes_that_stay_the_same_sequence(how: str) -> None:
    net, log = states_net()
    for _ in range(2):
        states = zeros()
        for x_t in data():
            _, mem1, mem2 = net(x_t, *states)
            states = KEEPING[how](mem1), KEEPING[how](mem2)
    assert log == true_slots(("bn1", "bn2"), T, T)


def test_a_new_membrane_is_a_new_sequence() -> None:
    """As for V0: arithmetic gives a tensor of nobody, and `carried` says what it was."""
    net, log = states_net()
    states = zeros()
    for x_t in data():
        _, mem1, mem2 = net(x_t, *states)
        states = mem1 * 1.0, mem2 * 1.0
    assert log == true_slots(("bn1", "bn2"), 1, 1, 1, 1)
    _, mem1, mem2 = net(data()[0], *zeros())
    with pytest.raises(TimestepError, match=r"snn_ext.carried\(new_mem, of=mem\)"):
        net(data()[1], snn_ext.carried(mem1 * 0.9), snn_ext.carried(mem2 * 0.9))


def test_two_streams_of_states() -> None:
    """In turns, at different steps."""
    net, log = states_net()
    x = data()

    def streams() -> None:
        a = b = zeros()
        for t in range(3):
            a = net(x[t], *a)[1:]
            if t != 1:
                b = net(x[t], *b)[1:]

    true = [(site, t) for t in (0, 0, 1, 2, 1) for site in ("bn1", "bn2")]
    right_or_refused(log, streams, true)


class Kept(States):
    """States in attributes of the network, outside of the arguments."""

    def forward(self, x: Tensor, fresh: bool) -> Tensor:  # type: ignore[override]
        if fresh:
            self.states = zeros(len(x))
        spk, *states = super().forward(x, *self.states)
        self.states = tuple(states)
        return spk


class Box:
    """States in an object that is no tensor."""

    def __init__(self, states: tuple[Tensor, Tensor]) -> None:
        self.states = states


class Boxed(States):
    def forward(self, x: Tensor, box: Box) -> Tensor:  # type: ignore[override]
        spk, *states = super().forward(x, *box.states)
        box.states = (states[0], states[1])
        return spk


def test_states_kept_out_of_sight() -> None:
    """Nothing tells the start before the norm runs: right, or an error at the neuron."""
    kept = snn_ext.patch(Kept(), bntt=True, timesteps=T)
    log, x = follow_slots(kept), data()
    right_or_refused(log, lambda: [kept(x[t], t == 0) for t in range(T)], true_slots(("bn1", "bn2"), T))
    boxed = snn_ext.patch(Boxed(), bntt=True, timesteps=T)
    log, box = follow_slots(boxed), Box(zeros())
    right_or_refused(log, lambda: [boxed(x[t], box) for t in range(T)], true_slots(("bn1", "bn2"), T))
    first = Box(zeros())
    snn_ext.reset(boxed)
    log.clear()
    boxed(x[0], first)
    assert log == true_slots(("bn1", "bn2"), 1)


def test_states_in_dicts_and_keywords_are_seen() -> None:
    class Dict(States):
        def forward(self, x: Tensor, state: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
            _, mem1, mem2 = super().forward(x, state["mem"][0], state["mem"][1])
            return {"mem": [mem1, mem2]}

    net = snn_ext.patch(Dict(), bntt=True, timesteps=T)
    log = follow_slots(net)
    for length in (T, 2, T):
        state: dict[str, Any] = {"mem": list(zeros())}
        for x_t in data()[:length]:
            state = net(x_t, state=state)
    assert log == true_slots(("bn1", "bn2"), T, 2, T)


def test_spikes_of_another_network_are_no_states() -> None:
    """An input that came out of another patched network does not carry this one's sequence."""
    first = snn_ext.patch(snn.Leaky(beta=0.9), imp=IMP(shape="layer"))
    net, log = states_net()
    x = data()
    for _ in range(2):
        mem, states = torch.zeros(4, 1, 8, 8), zeros()
        for x_t in x:
            spk, mem = first(x_t, mem)
            states = net(spk + 0.5, *states)[1:]
    assert log == true_slots(("bn1", "bn2"), T, T)

    def direct() -> None:
        for _ in range(2):
            mem, states = torch.zeros(4, 1, 8, 8), zeros()
            for x_t in x:
                spk, mem = first(x_t + 3, mem)
                states = net(spk, *states)[1:]

    right_or_refused(log, direct, true_slots(("bn1", "bn2"), T, T))


class InterruptionError(Exception):
    """Raised in the middle of a step."""


def interrupt(*_: object) -> None:
    raise InterruptionError


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("where", ["lif1", "lif2"])
@pytest.mark.parametrize("done", [0, 2])
def test_an_interrupted_step(idiom: str, where: str, done: int) -> None:
    """The next sequence is right or refused, and after `snn_ext.reset` it is right."""
    net, log, sites = followed(idiom, BNTT())
    neurons = [m for m in net.modules() if isinstance(m, snn.Leaky)]
    neuron = neurons[0 if where == "lif1" else 1]
    calls: list[int] = []

    def later(*_: object) -> None:
        calls.append(0)
        if len(calls) > done:
            raise InterruptionError

    handle = neuron.register_forward_pre_hook(later)
    with pytest.raises(InterruptionError):
        net(data())
    handle.remove()
    right_or_refused(log, lambda: net(data()), true_slots(sites, T))
    snn_ext.reset(net)
    log.clear()
    net(data())
    assert log == true_slots(sites, T)


def test_an_interrupted_step_is_not_repeated_wrongly() -> None:
    """Between norm and neuron, and inside of the neuron after the norm ran."""
    x = data()
    for at in ("norm", "neuron"):
        net = IDIOMS["init_hidden, utils.reset"]().net
        snn_ext.patch(net, bntt=BNTT(at=at), timesteps=T, example_input=x[0])  # type: ignore[arg-type]
        log = follow_slots(net)
        net(x[0])
        sites = tuple(dict.fromkeys(name for name, _ in log))
        surrogate = net[3].spike_grad

        def break_and_retry(net: Any = net, surrogate: Any = surrogate) -> None:
            net[3].spike_grad = interrupt
            try:
                net(x[1])
            except InterruptionError:
                net[3].spike_grad = surrogate
            net(x[1])

        right_or_refused(log, break_and_retry, [(sites[0], 1), *[(site, 1) for site in sites]])


def test_a_reset_of_another_network_is_a_start_for_both() -> None:
    """``utils.reset`` reaches every network of the process; norm and neuron agree about it."""
    net, other = (
        IDIOMS["init_hidden, utils.reset"]().net,
        nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True)),
    )
    snn_ext.patch(net, bntt=True, timesteps=T)
    log, x = follow_slots(net), data()
    net(x[0])
    net(x[1])
    utils.reset(other)
    net(x[2])
    assert [t for _, t in log] == [0, 0, 1, 1, 0, 0]


def test_a_smaller_batch_without_a_reset_is_a_start() -> None:
    net = IDIOMS["init_hidden, utils.reset"]().net
    snn_ext.patch(net, bntt=True, timesteps=T)
    log, x = follow_slots(net), data()
    net(x[0])
    net(x[1])
    net(x[2][:2])
    net(x[3][:2])
    assert [t for _, t in log] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_detached_states_go_on() -> None:
    """Truncated backpropagation: ``detach_hidden`` between chunks."""
    net = IDIOMS["init_hidden, utils.reset"]().net
    snn_ext.patch(net, bntt=True, timesteps=T)
    log, x = follow_slots(net), data()
    for t in range(T):
        net(x[t])
        snn.Leaky.detach_hidden()
    assert [t for _, t in log] == [t for t in range(T) for _ in range(2)]


@pytest.mark.parametrize("idiom", IDIOMS)
def test_copies_keep_time_for_themselves(idiom: str) -> None:
    net, log, sites = followed(idiom, BNTT())
    snn_ext.reset(net)
    twin = copy.deepcopy(net)
    x = data()
    with torch.no_grad():
        expected = net(x)
        assert log == true_slots(sites, T)
        assert torch.equal(twin(x), expected)
        assert len(log) == 4 * T, "hooks of the copy write into the same list"
        assert log[2 * T :] == true_slots(sites, T)


def test_a_copy_in_the_middle_of_a_sequence_goes_on() -> None:
    net = IDIOMS["init_hidden, utils.reset"]().net
    snn_ext.patch(net, bntt=True, timesteps=T)
    log, x = follow_slots(net), data()
    with torch.no_grad():
        net(x[0])
        net(x[1])
        twin = copy.deepcopy(net)
        log.clear()
        for module in (net, twin, net, twin):
            module(x[2])
    assert [t for _, t in log] == [2, 2, 2, 2, 3, 3, 3, 3]


def test_pickles_keep_time() -> None:
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), snn.Leaky(beta=0.9, surrogate_disable=True, init_hidden=True)
    )
    snn_ext.patch(net, bntt=True, timesteps=T).eval()
    x = torch.randn(T, 6, 4)
    with torch.no_grad():
        net(x[0])
        twin = pickle.loads(pickle.dumps(net))
        for x_t in x[1:]:
            assert torch.equal(twin(x_t), net(x_t))
        for module in (net, twin):
            with pytest.raises(TimestepError):
                module(x[0])


class Order(nn.Module):
    """`early` is registered behind the norm, but runs before it, or not at all."""

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.bn, self.early = nn.BatchNorm1d(4), snn.Leaky(beta=0.9)
        self.fc, self.late, self.used, self.steps = nn.Linear(4, 4), snn.Leaky(beta=0.9), used, T

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.early.init_leaky(), self.late.init_leaky()
        for _ in range(self.steps):
            spk = x
            if self.used:
                spk, mem1 = self.early(x, mem1)
            spk, mem2 = self.late(self.bn(self.fc(spk)), mem2)
        return mem2


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_neurons_registered_in_another_order_than_called(used: bool, steps: int) -> None:
    """Without an example only the order of registration is known; it must not give wrong slots."""
    x = torch.randn(5, 4) * 3
    blind = snn_ext.patch(Order(used=used), bntt=True, timesteps=T)
    log = follow_slots(blind)
    blind.steps = steps
    right_or_refused(log, lambda: blind(x), true_slots(("bn",), steps))
    traced = snn_ext.patch(Order(used=used), bntt=True, example_input=x)
    log = follow_slots(traced)
    traced.steps = steps
    traced(x)
    traced(x)
    assert log == true_slots(("bn",), steps, steps)


class SharedNorm(nn.Module):
    """One norm before two neurons."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.fc, self.bn, self.steps = nn.Linear(4, 4), nn.BatchNorm1d(4), steps
        self.lif1, self.lif2 = snn.Leaky(beta=0.9), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        for _ in range(self.steps):
            spk, mem1 = self.lif1(self.bn(self.fc(x)), mem1)
            spk, mem2 = self.lif2(self.bn(self.fc(spk)), mem2)
        return mem2


@pytest.mark.parametrize("length", [1, T])
def test_a_norm_before_two_neurons(length: int) -> None:
    """One of the two calls would be counted wrongly; also in sequences of a single step."""
    net, x = SharedNorm(T), torch.randn(5, 4) * 3
    why = refusal(lambda: snn_ext.patch(net, bntt=True, timesteps=T, example_input=x))
    if why:
        assert "bn" in why
        return
    net.steps = length
    right_or_refused(follow_slots(net), lambda: net(x), [])


class Residual(nn.Module):
    """Two norms before one neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.fc2, self.bn2 = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(len(x), 5)
        for _ in range(T):
            _, mem = self.lif(self.bn1(self.fc1(x)) + self.bn2(self.fc2(x)), mem)
        return mem


def test_two_norms_before_one_neuron() -> None:
    net = snn_ext.patch(Residual(), bntt=True, timesteps=T)
    log, x = follow_slots(net), torch.randn(6, 4)
    net(x)
    net(x)
    assert log == true_slots(("bn1", "bn2"), T, T)


class TwoCharges(snn.Leaky):  # type: ignore[misc]
    """A user's neuron that takes two steps of the framework in one call."""

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        _, mem = super().forward(input_, mem)
        return super().forward(input_, mem)


class Leaking(snn.Leaky):  # type: ignore[misc]
    """A user's neuron that makes a new membrane before the framework's step."""

    def forward(self, input_: Tensor, mem: Tensor) -> Any:
        return super().forward(input_, mem * 0.99)


@pytest.mark.parametrize("kind", [TwoCharges, Leaking])
def test_users_neurons_that_hide_their_step(kind: type[snn.Leaky]) -> None:
    neuron, x = kind(beta=0.9), torch.randn(T, 5, 6)
    each = 2 if kind is TwoCharges else 1
    if refusal(
        lambda: snn_ext.patch(neuron, bntt=True, timesteps=T, example_input=(x[0], torch.zeros(5, 6)))
    ):
        return
    log = follow_slots(neuron)

    def run() -> None:
        mem = torch.zeros(5, 6)
        for x_t in x[:3]:
            _, mem = neuron(x_t, mem)

    log.clear()
    if not refusal(run):
        assert log == [("", t) for t in range(3) for _ in range(each)]


def test_a_norm_that_no_neuron_follows_is_named() -> None:
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), snn.Leaky(beta=0.9, init_hidden=True), nn.BatchNorm1d(5)
    )
    before = fingerprint(net)
    with pytest.raises(snn_ext.UnsupportedSiteError, match="no neuron follows 3"):
        snn_ext.patch(net, bntt={"3": True, "*": None}, timesteps=T)
    assert same(before, fingerprint(net))
    snn_ext.patch(net, bntt=True, timesteps=T, exclude="3")
    log = follow_slots(net)
    x = torch.randn(6, 4)
    for _ in range(T):
        net(x)
    assert log == true_slots(("1",), T)


# --- how many steps, and where -----------------------------------------------------------------------------


@pytest.mark.parametrize("idiom", IDIOMS)
def test_t_from_the_example_and_from_the_argument(idiom: str) -> None:
    for at in ("norm", "neuron"):
        net = IDIOMS[idiom]()
        net.steps = 3
        option = BNTT(at=at)  # type: ignore[arg-type]
        assert lengths(patched(copy.deepcopy(net), option, example_input=data())) == {3}
        assert lengths(patched(copy.deepcopy(net), option, example_input=data(), timesteps=6)) == {6}
        with pytest.raises(SnnExtError, match=r"not known"):
            patched(net, option, example_input=None)


@pytest.mark.parametrize("at", ["norm", "neuron"])
def test_one_step_does_not_show_t(at: Any) -> None:
    """A single call may be one step of a loop outside of the network: never taken for T = 1."""
    for net, example in (
        (IDIOMS["init_hidden, utils.reset"]().net, data()[0]),
        (States(), (data()[0], *zeros())),
    ):
        before = fingerprint(net)
        with pytest.raises(OptionError, match="number of time steps is not known") as caught:
            snn_ext.patch(net, bntt=BNTT(at=at), example_input=example)
        assert "timesteps=T" in str(caught.value).splitlines()[-1]
        assert same(without_state(before), without_state(fingerprint(net)))
        assert lengths(snn_ext.patch(net, bntt=BNTT(at=at), example_input=example, timesteps=3)) == {3}


class Twice(nn.Module):
    """One step, in which one neuron is called twice: not a sequence of two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.lif1, self.lif2 = snn.Leaky(beta=0.9, init_hidden=True), snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.bn(self.fc(self.lif1(self.lif1(x)))))  # type: ignore[no-any-return]


def test_a_neuron_called_twice_is_not_two_steps() -> None:
    with pytest.raises(OptionError, match="number of time steps is not known"):
        snn_ext.patch(Twice(), bntt=True, example_input=torch.randn(5, 4))


def parts(net: nn.Module) -> list[str]:
    kinds = (LaterSlots, TemporalScale, BatchNormThroughTime, TemporalEffectiveBatchNorm)
    return [name for name, m in net.named_modules() if isinstance(m, kinds)]


def test_at_chooses_norms_or_neurons() -> None:
    x = data()

    def sites(**methods: Any) -> list[str]:
        return parts(snn_ext.patch(IDIOMS["init_leaky"](), **methods, example_input=x))

    step = {"stats": "step"}
    for name, option, more in (("bntt", BNTT, {}), ("tebn", TEBN, step)):
        norms, neurons = [f"bn1.{name}", f"bn2.{name}"], [f"lif1.{name}", f"lif2.{name}"]
        assert sites(**{name: option(**more)}) == norms
        assert sites(**{name: option(at="norm", **more)}) == norms
        assert sites(**{name: option(at="neuron", **more)}) == neurons
        assert sites(**{name: {"bn1": option(**more), "lif2": option(at="neuron", **more)}}) == [
            norms[0],
            neurons[1],
        ]
        assert sites(**{name: option(**more)}, exclude="bn*") == neurons, "no norm is left"
        plain = nn.Sequential(nn.Linear(4, 5), snn.Leaky(beta=0.9, init_hidden=True))
        assert parts(snn_ext.patch(plain, **{name: option(**more)}, timesteps=T)) == [f"1.{name}"]
        bare = nn.Sequential(nn.Linear(4, 5), snn.Leaky(beta=0.9, init_hidden=True))
        with pytest.raises(NothingMatchedError):
            snn_ext.patch(bare, **{name: option(at="norm", **more)}, timesteps=T)
    assert sites(bntt=True, tebn=TEBN(at="neuron", stats="step")) == [
        "bn1.bntt",
        "lif1.tebn",
        "bn2.bntt",
        "lif2.tebn",
    ]


def test_bntt_and_tebn_on_one_site() -> None:
    net = IDIOMS["init_leaky"]()
    before = fingerprint(net)
    for at in ("norm", "neuron"):
        with pytest.raises(OptionError, match="cannot both normalise"):
            snn_ext.patch(net, bntt=BNTT(at=at), tebn=TEBN(at=at, stats="step"), timesteps=T)  # type: ignore[arg-type]
    assert same(before, fingerprint(net))


def test_joint_statistics_are_refused_in_a_loop() -> None:
    """By name an error, with "*" a reason in the table; both say what to pass instead."""
    net, x = IDIOMS["init_leaky"](), data()
    for at in ("norm", "neuron"):
        with pytest.raises(NothingMatchedError, match=r"TEBN\(stats='step'\)"):
            snn_ext.patch(net, tebn=TEBN(at=at), example_input=x)  # type: ignore[arg-type]
    with pytest.raises(snn_ext.UnsupportedSiteError, match=r"TEBN\(stats='step'\)"):
        snn_ext.patch(net, tebn={"bn1": True}, example_input=x)
    table = str(snn_ext.plan(net, tebn=True, imp=IMP(shape="layer"), timesteps=T))
    assert "TEBN(stats='step')" in " ".join(table.split())


@pytest.mark.parametrize("option", [BNTT, TEBN])
def test_eps_and_momentum_are_kept_unless_given(option: type[Any]) -> None:
    more = {} if option is BNTT else {"stats": "step"}
    for given, wanted in (({}, (2e-3, 0.3)), ({"eps": 0.5, "momentum": 0.9}, (0.5, 0.9))):
        net = IDIOMS["init_leaky"]()
        for norm in batch_norms(net):
            norm.eps, norm.momentum = 2e-3, 0.3
        patched(net, option(**more, **given))
        assert {(n.eps, n.momentum) for n in batch_norms(net)} == {wanted}
        snn_ext.unpatch(net)
        assert [(n.eps, n.momentum) for n in batch_norms(net)] == [(2e-3, 0.3)] * 2


def test_defaults_before_neurons_are_the_authors() -> None:
    net = patched(IDIOMS["init_leaky"](), BNTT(at="neuron"), example_input=data())
    assert [(s.eps, s.momentum, s.bias) for s in net.lif1.bntt.slots] == [(1e-4, 0.1, None)] * T
    net = patched(IDIOMS["init_leaky"](), TEBN(at="neuron", stats="step"), example_input=data())
    assert (net.lif1.tebn.bn.eps, net.lif1.tebn.bn.momentum) == (1e-5, 0.1)


def test_patching_again_changes_nothing() -> None:
    net, x = IDIOMS["torch.zeros"](), data()
    patched(net, BNTT())
    before = fingerprint(net)
    patched(net, BNTT())
    assert same(before, fingerprint(net))
    log = follow_slots(net)
    net(x)
    net(x)
    assert log == true_slots(("bn1", "bn2"), T, T)
    with pytest.raises(snn_ext.AlreadyPatchedError):
        patched(net, BNTT(bias=True))
    with pytest.raises(snn_ext.AlreadyPatchedError):
        snn_ext.patch(net, imp=True, example_input=x)  # its neurons keep time already


# --- checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("assign", [False, True])
def test_older_checkpoints_fill_every_slot(idiom: str, name: str, assign: bool) -> None:
    """Into a network patched when it was fresh."""
    source, x = lived_in(IDIOMS[idiom]()), data()
    net = patched(IDIOMS[idiom](), NEUTRAL[name]).eval()
    state = {k: v.clone() for k, v in source.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.load_state_dict(state, strict=True, assign=assign)
    assert len([w for w in caught if "before the patch" in str(w.message)]) == 1
    with torch.no_grad():
        assert torch.equal(net(x), source(x))
    assert {int(norm.num_batches_tracked) for norm in batch_norms(net)} == {
        int(norm.num_batches_tracked) for norm in batch_norms(source)
    }
    tensors = list(net.state_dict().values())
    assert len({t.data_ptr() for t in tensors}) == len(tensors), "every slot has storage of its own"


@pytest.mark.parametrize("idiom", IDIOMS)
@pytest.mark.parametrize(
    "option", [BNTT(), TEBN(stats="step"), BNTT(at="neuron")], ids=["bntt", "tebn", "neuron"]
)
def test_saved_networks_run_when_loaded(idiom: str, option: Any, tmp_path: Path) -> None:
    """And the loaded norms know their step, sequence after sequence."""
    net, x = lived_in(IDIOMS[idiom]()), data()
    patched(net, option, example_input=x)
    follow_slots(net)  # makes all slots different
    snn_ext.save(net, tmp_path / "net")
    fresh = snn_ext.load(IDIOMS[idiom](), tmp_path / "net").eval()
    with torch.no_grad():
        expected = net(x)
        for _ in range(2):
            assert torch.equal(fresh(x), expected)
        assert torch.equal(snn_ext.load(fresh, tmp_path / "net")(x), expected)
    snn_ext.unpatch(fresh)
    assert fresh.state_dict().keys() == IDIOMS[idiom]().state_dict().keys()
    assert all(not m._forward_pre_hooks for m in fresh.modules())


# --- unusual data and norms -----------------------------------------------------------------------------------


def train_step(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    mem = net(x)
    (mem * torch.linspace(-1, 1, mem.numel(), dtype=mem.dtype).view_as(mem)).sum().backward()
    snn_ext.reset(net)


def with_norms(net: nn.Module, **options: Any) -> nn.Module:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, type(child)(child.num_features, **options))
    return net


def without_bias(net: nn.Module) -> nn.Module:
    for norm in batch_norms(net):
        norm.register_parameter("bias", None)
    return net


UNUSUAL: dict[str, Callable[[nn.Module], nn.Module]] = {
    "affine=False": lambda net: with_norms(net, affine=False),
    "track_running_stats=False": lambda net: with_norms(net, track_running_stats=False),
    "neither": lambda net: with_norms(net, affine=False, track_running_stats=False),
    "momentum=None": lambda net: with_norms(net, momentum=None),
    "no bias": without_bias,
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("option", [*NEUTRAL.values(), BNTT()], ids=str)
def test_unusual_norms_stay_neutral_and_train(kind: str, option: Any) -> None:
    plain, x = UNUSUAL[kind](IDIOMS["init_leaky"]()), data()
    with torch.no_grad():
        plain(x)
    snn_ext.reset(plain)
    net = patched(copy.deepcopy(plain).eval(), option)
    plain.eval()
    if option != BNTT() or not any(norm.bias is not None for norm in batch_norms(plain)):
        with torch.no_grad():
            assert torch.equal(net(x), plain(x))
    train_step(net.train(), x)
    new = [p for n, p in net.named_parameters() if ".bntt." in n or ".tebn." in n]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in new)
    assert new or kind in ("affine=False", "neither")
    snn_ext.unpatch(net)
    assert net.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("option", [BNTT(), TEBN(stats="step")], ids=str)
def test_one_sample_and_one_step(option: Any) -> None:
    """A dense layer of one sample has no variance; in inference it needs none."""
    net = IDIOMS["init_leaky"]()
    net.steps = 1
    patched(net, option, timesteps=1)
    train_step(net, data(3))
    with pytest.raises(OptionError, match="one value per channel"):
        net(data(1))
    snn_ext.reset(net)
    train_step(net, data(3))
    with torch.no_grad():
        assert net.eval()(data(1)).shape == (1, 1, 5)


@pytest.mark.parametrize("name", NEUTRAL)
def test_channels_last_and_autocast_stay_neutral(name: str) -> None:
    plain, x = lived_in(IDIOMS["init_leaky"]()), data()
    last = x[0].repeat(1, 3, 1, 1).to(memory_format=torch.channels_last)
    net = patched(copy.deepcopy(plain), NEUTRAL[name])
    with torch.no_grad():
        assert torch.equal(net.to(memory_format=torch.channels_last)(x), plain(x))
        assert torch.equal(net.bn1.step(2, last), plain.bn1(last))
        assert net.bn1.step(2, last).is_contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(net(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train_step(net.train(), x)
    new = [p for n, p in net.named_parameters() if ".bntt." in n or ".tebn." in n]
    assert {(p.dtype, p.grad.dtype) for p in new if p.grad is not None} == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("name", NEUTRAL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_norms_of_another_precision_stay_neutral(name: str, dtype: torch.dtype) -> None:
    """A single layer: snnTorch's spikes are float32 whatever comes in, so that stacks fail already."""
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), snn.Leaky(beta=0.9, init_hidden=True, output=True)
    )
    with torch.no_grad():
        net[1](torch.randn(8, 6) * 3)
        net[1].weight.uniform_(0.5, 2)
    net = net.to(dtype).eval()
    with torch.no_grad():
        net[1].running_mean.add_(torch.rand(6, dtype=dtype) / 3)
    plain, x = copy.deepcopy(net), torch.randn(T, 5, 4, dtype=dtype)
    patched(net, NEUTRAL[name])
    with torch.no_grad():
        for x_t in x:
            assert torch.equal(net(x_t)[1], plain(x_t)[1])


@pytest.mark.parametrize("option", [BNTT(), TEBN(stats="step")], ids=str)
def test_frozen_norms_inside_training(option: Any) -> None:
    net = patched(lived_in(IDIOMS["init_leaky"]()), option).train()
    for norm in batch_norms(net):
        norm.eval()
    kept = {k: v.clone() for k, v in net.named_buffers() if "running" in k}
    train_step(net, data())
    assert kept
    assert all(torch.equal(dict(net.named_buffers())[k], v) for k, v in kept.items())


def test_a_lazy_norm_is_refused() -> None:
    """It has no size yet, and would change its class in the first forward."""
    net = nn.Sequential(nn.Linear(4, 5), nn.LazyBatchNorm1d(), snn.Leaky(beta=0.9, init_hidden=True))
    for option in (BNTT(), TEBN(stats="step")):
        with pytest.raises(snn_ext.ShapeUnknownError):
            patched(net, option)
        assert type(net[1]) is nn.LazyBatchNorm1d


def test_a_functional_pool_between_norm_and_neuron() -> None:
    """BN before the pool before the neuron, the pool being a function: nothing to register."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.lif = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), snn.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            mem = self.lif.init_leaky()
            for _ in range(T):
                _, mem = self.lif(F.max_pool2d(self.bn(self.conv(x)), 2), mem)
            return mem

    net = snn_ext.patch(Pooled(), bntt=True, example_input=data(varying=False))
    log = follow_slots(net)
    net(data(varying=False))
    net(data(varying=False))
    assert log == true_slots(("bn",), T, T)
