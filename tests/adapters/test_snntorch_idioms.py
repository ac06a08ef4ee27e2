"""Where sequences start and go on, in every way people write snnTorch loops.

The witness is a Leaky with decay 1/2, a threshold that is never reached, no input, and V0 = 1: its
membrane is 1/2, 1/4, 1/8, ... from every start, exactly. A V0 that is added once too often, or not at
all, is seen at once, and the wrong twins at the end prove it for every idiom.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import snn_ext
from snn_ext_snntorch import neurons
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.test_snntorch_equations import _always_adds, _never_adds

Membranes = list[float]
FEATURES = 4
X = torch.zeros(2, FEATURES)
START = [0.5, 0.25, 0.125]


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def witness(**options: Any) -> Any:
    return snn.Leaky(0.5, threshold=100.0, **options)


def patch(net: nn.Module) -> nn.Module:
    return snn_ext.patch(net, imp=snn_ext.IMP(init=1.0, shape=(FEATURES,)))


def value(mem: Tensor) -> float:
    """The one value all elements of a membrane have."""
    assert mem.unique().numel() == 1, mem
    return float(mem.detach().flatten()[0])


class Loop(nn.Module):
    """One neuron and its time loop; `begin` and `step` are the idiom."""

    def __init__(
        self,
        begin: Callable[[Any], Any],
        step: Callable[[Any, Any], Tensor],
        steps: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.lif = witness(**options)
        self.begin, self.step, self.steps = begin, step, steps

    def forward(self) -> Membranes:
        mem = self.begin(self.lif)
        seen = []
        for _ in range(self.steps):
            mem = self.step(self.lif, mem)
            seen.append(value(mem))
        return seen


def two_sequences(begin: Callable[[Any], Any], step: Callable[[Any, Any], Tensor], **options: Any) -> Any:
    """The idiom that runs a `Loop` twice."""

    def idiom() -> tuple[Membranes, Membranes]:
        net = patch(Loop(begin, step, **options))
        return net() + net(), START + START

    return idiom


def pass_mem(lif: Any, mem: Tensor) -> Tensor:
    return lif(X, mem)[1]


def sequential_with_utils_reset() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(nn.Flatten(), witness(init_hidden=True, output=True)))
    seen = []
    for _ in range(2):
        utils.reset(net)
        seen += [value(net(X)[1]) for _ in range(3)]
    return seen, START + START


def hidden_without_output() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(nn.Flatten(), witness(init_hidden=True)))
    seen = []
    for _ in range(2):
        utils.reset(net)
        for _ in range(3):
            assert isinstance(net(X), Tensor)
            seen.append(value(net[1].mem))
    return seen, START + START


def nested_part_reset_inside_forward() -> tuple[Membranes, Membranes]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front = nn.Sequential(nn.Flatten(), witness(init_hidden=True))
            self.part = nn.Sequential(nn.Identity(), witness(init_hidden=True, output=True))

        def forward(self) -> Membranes:
            utils.reset(self.front)
            utils.reset(self.part)
            return [value(self.part(self.front(X))[1]) for _ in range(3)]

    net = patch(Net())
    seen = net() + net()
    assert value(net.front[1].mem) == START[-1]
    return seen, START + START


def state_through_the_models_arguments() -> tuple[Membranes, Membranes]:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif1, self.lif2 = witness(), witness()

        def forward(self, x: Tensor, mem1: Tensor, spk1: Tensor, mem2: Tensor) -> tuple[Tensor, ...]:
            spk1, mem1 = self.lif1(x, mem1)
            spk2, mem2 = self.lif2(spk1, mem2)
            return mem1, spk1, mem2, spk2

    net = patch(Step())
    seen = []
    for _ in range(2):
        mem1, spk1, mem2 = torch.zeros_like(X), torch.zeros_like(X), torch.zeros_like(X)
        for _ in range(3):
            mem1, spk1, mem2, _ = net(X, mem1, spk1, mem2)
            assert value(mem1) == value(mem2)
            seen.append(value(mem2))
    return seen, START + START


def two_streams_of_one_neuron() -> tuple[Membranes, Membranes]:
    """The streams start at different steps and are interleaved."""
    net = patch(nn.Sequential(witness()))
    lif = net[0]
    left, right = torch.zeros_like(X), torch.zeros_like(X)
    seen = []
    for t in range(3):
        left = pass_mem(lif, left)
        right = pass_mem(lif, right) if t else right
        seen += [value(left), value(right)]
    return seen, [0.5, 0.0, 0.25, 0.5, 0.125, 0.25]


def two_streams_detached() -> tuple[Membranes, Membranes]:
    """Truncated backpropagation through a siamese net: both states are cut, only one is the last."""
    net = patch(nn.Sequential(witness()))
    left, right = torch.zeros_like(X), torch.zeros_like(X)
    seen = []
    for _ in range(3):
        left, right = pass_mem(net[0], left.detach()), pass_mem(net[0], right.detach())
        seen += [value(left), value(right)]
    return seen, [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def an_older_state_detached() -> tuple[Membranes, Membranes]:
    """Going back to an earlier state (a rollout from a branch point)."""
    net = patch(nn.Sequential(witness()))
    states = [torch.zeros_like(X)]
    for _ in range(3):
        states.append(pass_mem(net[0], states[-1]))
    again = pass_mem(net[0], states[1].detach())
    return [*map(value, states[1:]), value(again)], [*START, 0.25]


def alias_and_tied_names() -> tuple[Membranes, Membranes]:
    """A variable of the user, a plain list, and two names in the tree: one object, one V0."""
    lif = witness()
    net = nn.Module()
    net.a, net.b, net.plain = lif, nn.Sequential(lif), [lif]
    patch(net)
    assert lif is net.a is net.b[0] is net.plain[0]
    assert [name for name, _ in net.named_parameters()] == ["a.imp"]
    mem, seen = torch.zeros_like(X), []
    for neuron in (lif, net.b[0], net.plain[0]):
        mem = pass_mem(neuron, mem)
        seen.append(value(mem))
    return seen, START


def hooks_still_fire() -> tuple[Membranes, Membranes]:
    net = nn.Sequential(witness(init_hidden=True))
    seen: Membranes = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(value(module.mem)))
    patch(net)
    for _ in range(3):
        net(X)
    return seen, START


def variable_number_of_steps() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    seen = []
    for steps in (3, 1, 2):
        utils.reset(net)
        seen += [value(net(x)[1]) for x in torch.zeros(steps, 2, FEATURES)]
    return seen, [*START, 0.5, 0.5, 0.25]


def smaller_last_batch_without_reset() -> tuple[Membranes, Membranes]:
    """snnTorch zeroes a state of another shape silently: that is a start."""
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    seen = [value(net(torch.zeros(size, FEATURES))[1]) for size in (3, 3, 2, 2, 3)]
    return seen, [0.5, 0.25, 0.5, 0.25, 0.5]


def stale_batch_size_of_init_leaky() -> tuple[Membranes, Membranes]:
    """init_leaky() gives the shape of the batch before; the first step replaces it."""
    net = patch(nn.Sequential(witness()))
    seen = []
    for size in (3, 2):
        mem = net[0].init_leaky()
        for _ in range(2):
            _, mem = net[0](torch.zeros(size, FEATURES), mem)
            seen.append(value(mem))
    return seen, [0.5, 0.25, 0.5, 0.25]


def unbatched() -> tuple[Membranes, Membranes]:
    net = nn.Sequential(nn.Linear(1, FEATURES), witness())
    snn_ext.patch(net, imp=snn_ext.IMP(init=1.0))
    x, seen = torch.zeros(FEATURES), []
    mem = torch.zeros(FEATURES)
    for _ in range(3):
        _, mem = net[1](x, mem)
        seen.append(value(mem))
    return seen, START


def one_step_nets() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness()))
    return [value(net(X)[1]) for _ in range(2) if net[0].reset_mem() is not None], [0.5, 0.5]


def detach_hidden_between_chunks() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    utils.reset(net)
    seen = []
    for t in range(3):
        _, mem = net(X)
        seen.append(value(mem))
        if t == 0:
            assert mem.requires_grad
            mem.sum().backward()
        snn.Leaky.detach_hidden()
        assert not net[0].mem.requires_grad
    assert torch.equal(net[0].imp.grad, torch.full((FEATURES,), 1.0))  # 2 samples * decay 1/2
    return seen, START


def to_between_steps() -> tuple[Membranes, Membranes]:
    """.to() makes new buffers; the sequence goes on."""
    net = patch(nn.Sequential(nn.Flatten(), witness(init_hidden=True, output=True)))
    seen = [value(net(X)[1])]
    net.to(torch.float64)
    seen.append(value(net(X.double())[1]))
    net.to("cpu").float()
    _, mem = net(X)
    assert mem.dtype == torch.float32
    return [*seen, value(mem)], START


def explicit_state_to_between_steps() -> tuple[Membranes, Membranes]:
    """mem.to() without a change is the same tensor; with one, the user says that it goes on."""
    net = patch(nn.Sequential(witness()))
    mem = pass_mem(net[0], torch.zeros_like(X))
    seen = [value(mem)]
    mem = pass_mem(net[0], mem.to("cpu").float().contiguous())
    seen.append(value(mem))
    _, mem = net.double()[0](X.double(), snn_ext.carried(mem.double()))
    assert mem.dtype == torch.float64
    return [*seen, value(mem)], START


def rows_written_in_place() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness()))
    with torch.no_grad():
        mem = pass_mem(net[0], torch.zeros_like(X))
        mem[0] = 0
        mem = pass_mem(net[0], mem)
        assert value(mem[0]) == 0
        mem.clamp_(max=0.125)
        mem = pass_mem(net[0], mem)
    return [value(mem[1])], [0.0625]


def views_between_steps() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness()))
    mem = pass_mem(net[0], torch.zeros_like(X))
    mem = pass_mem(net[0], mem.flatten().view(2, FEATURES))
    mem = pass_mem(net[0], mem.detach()[:])
    return [value(mem)], [0.125]


def masked_and_declared() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness()))
    mem = pass_mem(net[0], torch.zeros_like(X))
    mem = pass_mem(net[0], snn_ext.carried(mem.clone()))
    done = torch.tensor([[1.0], [0.0]])
    mem = pass_mem(net[0], snn_ext.carried(mem * (1 - done)))
    assert value(mem[0]) == 0  # neither V0: the user's zero is carried
    return [value(mem[1])], [0.125]


def masked_and_not_declared() -> tuple[Membranes, Membranes]:
    """The documented limit: a new tensor cannot be told from a start value, so V0 is added to it."""
    net = patch(nn.Sequential(witness()))
    mem = pass_mem(net[0], torch.zeros_like(X))
    mem = pass_mem(net[0], mem.clone())
    seen = [value(mem)]
    mem = pass_mem(net[0], mem * 0)
    return [*seen, value(mem)], [0.75, 0.5]


def preset_membrane() -> tuple[Membranes, Membranes]:
    """``lif.mem = tensor`` before the first step is a start value; V0 comes on top."""
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    net[0].mem = torch.full((2, FEATURES), 3.0)
    return [value(net(X)[1]) for _ in range(2)], [2.0, 1.0]


def no_grad_and_inference_mode() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    with torch.no_grad():
        seen = [value(net(X)[1])]
    with torch.inference_mode():
        seen += [value(net(X)[1]), value(net(X)[1])]
        utils.reset(net)
        seen += [value(net(X)[1])]
    return seen, [*START, 0.5]


def functional_call_uses_the_given_v0() -> tuple[Membranes, Membranes]:
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    other = {"0.imp": torch.full((FEATURES,), 8.0)}
    _, mem = torch.func.functional_call(net, other, (X,))
    return [value(mem), value(net(X)[1])], [4.0, 2.0]


def never_reset() -> tuple[Membranes, Membranes]:
    """Streaming: nothing but the very first step is a start."""
    net = patch(nn.Sequential(witness(init_hidden=True, output=True)))
    return [value(net(X)[1]) for _ in range(6)], [0.5**n for n in range(1, 7)]


IDIOMS: dict[str, Callable[[], tuple[Membranes, Membranes]]] = {
    "init_leaky": two_sequences(lambda lif: lif.init_leaky(), pass_mem),
    "reset_mem passed on": two_sequences(lambda lif: lif.reset_mem(), pass_mem),
    "reset_mem not passed": two_sequences(lambda lif: lif.reset_mem(), lambda lif, _: lif(X)[1]),
    "torch.zeros": two_sequences(lambda _: torch.zeros(2, FEATURES), pass_mem),
    "zeros_like": two_sequences(lambda _: torch.zeros_like(X), pass_mem),
    "mem as keyword": two_sequences(lambda lif: lif.init_leaky(), lambda lif, mem: lif(X, mem=mem)[1]),
    "all keywords": two_sequences(lambda lif: lif.init_leaky(), lambda lif, mem: lif(mem=mem, input_=X)[1]),
    "output=True": two_sequences(lambda lif: lif.init_leaky(), pass_mem, output=True),
    "mem=None, then passed": two_sequences(
        lambda lif: lif.reset_mem() is None or None, lambda lif, mem: lif(X, mem)[1]
    ),
    "detach": two_sequences(lambda lif: lif.init_leaky(), lambda lif, mem: pass_mem(lif, mem.detach())),
    "detach_": two_sequences(lambda lif: lif.init_leaky(), lambda lif, mem: pass_mem(lif, mem.detach_())),
    "detach as keyword": two_sequences(
        lambda lif: lif.init_leaky(), lambda lif, mem: lif(X, mem=mem.detach())[1]
    ),
    "data": two_sequences(lambda lif: lif.init_leaky(), lambda lif, mem: pass_mem(lif, mem.data)),
}
IDIOMS |= {
    f.__name__.replace("_", " "): f
    for f in (
        sequential_with_utils_reset,
        hidden_without_output,
        nested_part_reset_inside_forward,
        state_through_the_models_arguments,
        two_streams_of_one_neuron,
        two_streams_detached,
        an_older_state_detached,
        alias_and_tied_names,
        hooks_still_fire,
        variable_number_of_steps,
        smaller_last_batch_without_reset,
        stale_batch_size_of_init_leaky,
        unbatched,
        one_step_nets,
        detach_hidden_between_chunks,
        to_between_steps,
        explicit_state_to_between_steps,
        rows_written_in_place,
        views_between_steps,
        masked_and_declared,
        masked_and_not_declared,
        preset_membrane,
        no_grad_and_inference_mode,
        functional_call_uses_the_given_v0,
        never_reset,
    )
}


@pytest.mark.parametrize("name", IDIOMS)
def test_v0_is_added_at_every_start_and_nowhere_else(name: str) -> None:
    seen, expected = IDIOMS[name]()
    assert seen == expected


def _caught(name: str) -> bool:
    try:
        seen, expected = IDIOMS[name]()
    except AssertionError:  # an idiom's own check already objected
        return True
    return seen != expected


# Every step of these is a start, so nothing can be added too often.
ONLY_STARTS = {"one step nets", "masked and not declared"}


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("name", IDIOMS)
def test_wrong_twins_are_caught_by_every_idiom(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons.IMP, "mem_reset", _never_adds)
    assert _caught(name)
    monkeypatch.setattr(neurons.IMP, "mem_reset", _always_adds)
    assert _caught(name) or name in ONLY_STARTS
