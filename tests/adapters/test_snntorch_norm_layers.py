"""BNTT against snnTorch's BatchNormTT1d and BatchNormTT2d, which are lists of norms to be indexed by t.

To the last bit, in training (outputs, all gradients, running statistics after every one of three batches)
and in inference; as modules on their own, and in patched networks next to networks that index the lists.
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
from snn_ext import BNTT, Time
from snn_ext.norms import BatchNormThroughTime
from tests.adapters.norm_layers import Side, compare, data, randomise
from tests.adapters.snntorch_nets import private_instances

T, C = 4, 3
SHAPES = {"dense": (T, 5, C), "sequences": (T, 5, C, 6), "maps": (T, 5, C, 4, 3)}
EPS = 1e-5
"""snnTorch's default; ours is the authors' 1e-4."""


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def list_of_norms(rank: int, channels: int, **options: Any) -> nn.ModuleList:
    factory = snn.BatchNormTT2d if rank == 2 else snn.BatchNormTT1d
    made: nn.ModuleList = factory(channels, T, **options)
    randomise(made)
    return made


# --- the modules on their own ----------------------------------------------------------------------------


def sides(shape: str, time: Time, **options: Any) -> tuple[Side, Side]:
    ours = BatchNormThroughTime(T, C, time=time, **{"eps": EPS, **options})
    theirs = list_of_norms(2 if shape == "maps" else 1, C, **options)

    def per_call(x: Tensor) -> Tensor:
        ours.reset()
        return torch.stack([ours(x_t) for x_t in x])

    return (
        Side(ours, per_call if time is Time.PER_CALL else ours),
        Side(
            theirs,
            lambda x: torch.stack([bn(x_t) for bn, x_t in zip(theirs, x, strict=True)]),
            lambda key: f"slots.{key}",
        ),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("time", [Time.LEADING, Time.PER_CALL])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": 0.4}], ids=["defaults", "options"])
def test_bntt_is_theirs(shape: str, time: Time, options: dict[str, Any]) -> None:
    assert compare(*sides(shape, time, **options), data(SHAPES[shape])) == []


def another_eps(module: Any) -> None:
    module.slots[1].eps = 1e-4


def another_momentum(module: Any) -> None:
    module.slots[1].momentum = 0.2


def rolled_slots(module: Any) -> None:
    module.slots = nn.ModuleList([*module.slots[1:], module.slots[0]])


STATISTICS = "slots.1.running_var after 0"
TWINS: dict[str, tuple[Callable[[Any], None], set[str], set[str]]] = {
    "eps": (another_eps, {"output 0", "gradient 0 of slots.1.weight"}, {STATISTICS}),
    "momentum": (another_momentum, {STATISTICS, "inference"}, {"output 0"}),
    "the slots of other steps": (rolled_slots, {"output 0", "inference"}, set()),
}


@pytest.mark.parametrize("twin", TWINS)
def test_the_comparison_sees_a_wrong_bntt(twin: str) -> None:
    change, must, must_not = TWINS[twin]
    found = set(compare(*sides("maps", Time.PER_CALL), data(SHAPES["maps"]), change))
    assert must <= found
    assert not must_not & found


# --- patched networks ------------------------------------------------------------------------------------


class Loop(nn.Module):
    """Conv, norm, neuron, linear, norm, neuron; the time loop in forward, x [T, B, 2, 6, 6].

    The norms are indexed by the step where they are lists, as snnTorch's users write it, and called
    otherwise.
    """

    def __init__(self, norm: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(2, C, 3, padding=1), norm(2, C)
        self.lif1 = snn.Leaky(beta=0.8, threshold=0.2)
        self.fc, self.bn2 = nn.Linear(36 * C, 5), norm(1, 5)
        self.lif2 = snn.Leaky(beta=0.8, threshold=0.2)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        membranes = []
        for t, x_t in enumerate(x):
            spk1, mem1 = self.lif1(normalised(self.bn1, self.conv(x_t), t), mem1)
            _, mem2 = self.lif2(normalised(self.bn2, self.fc(spk1.flatten(1)), t), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def normalised(norm: nn.Module, x: Tensor, t: int) -> Tensor:
    y: Tensor = norm[t](x) if isinstance(norm, nn.ModuleList) else norm(x)
    return y


class Step(nn.Module):
    """The same with ``init_hidden``, one step a call."""

    def __init__(self, norm: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(2, C, 3, padding=1), norm(2, C)
        self.lif1 = snn.Leaky(beta=0.8, threshold=0.2, init_hidden=True)
        self.fc, self.bn2 = nn.Linear(36 * C, 5), norm(1, 5)
        self.lif2 = snn.Leaky(beta=0.8, threshold=0.2, init_hidden=True, output=True)

    def forward(self, x: Tensor, t: int) -> Tensor:
        spikes = self.lif1(normalised(self.bn1, self.conv(x), t))
        _, mem = self.lif2(normalised(self.bn2, self.fc(spikes.flatten(1)), t))
        return mem  # type: ignore[no-any-return]


def play(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        utils.reset(net)
        return torch.stack([net(x_t, t) for t, x_t in enumerate(x)])

    return run


NETS: dict[str, tuple[Callable[..., nn.Module], Callable[[nn.Module], Callable[[Tensor], Tensor]]]] = {
    "a loop inside": (Loop, lambda net: net),
    "a loop outside": (Step, play),
}


def plain_norm(rank: int, channels: int, **options: Any) -> nn.Module:
    kind = nn.BatchNorm2d if rank == 2 else nn.BatchNorm1d
    return kind(channels, **options)


def converted_slot(key: str) -> str:
    """The name our tensor has in the list: the converted norm is slot 0."""
    site, *rest = key.split(".")
    if not site.startswith("bn"):
        return key
    if rest[0] == "bntt":
        return f"{site}.{int(rest[1]) + 1}.{rest[2]}"
    return "" if rest[0] == "bias" else f"{site}.0.{rest[0]}"  # beta is kept, and has no part


def neuron_slot(key: str) -> str:
    return key.replace("lif", "bn").replace(".bntt.slots.", ".") if ".bntt." in key else key


def network_sides(name: str, *, at: str, **options: Any) -> tuple[Side, Side]:
    make, runner = NETS[name]
    theirs = make(lambda rank, c: list_of_norms(rank, c, **options))
    if at == "norm":
        ours = snn_ext.patch(make(lambda rank, c: plain_norm(rank, c, **options)), bntt=True, timesteps=T)
    else:
        example = (torch.rand(T, 2, 2, 6, 6),) if name == "a loop inside" else (torch.rand(2, 2, 6, 6), 0)
        bntt = BNTT(at="neuron", **{"eps": EPS, **options})
        ours = snn_ext.patch(
            make(lambda rank, c: nn.Identity()), bntt=bntt, timesteps=T, example_input=example
        )
    rename = converted_slot if at == "norm" else neuron_slot
    return Side(ours, runner(ours), rename), Side(theirs, runner(theirs))


def images() -> list[Tensor]:
    """Large enough to make the neurons fire."""
    return data((T, 6, 2, 6, 6), scale=2.0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("at", ["norm", "neuron"])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": 0.4}], ids=["defaults", "options"])
def test_a_patched_network_is_one_that_indexes_the_list(name: str, at: str, options: dict[str, Any]) -> None:
    assert compare(*network_sides(name, at=at, **options), images()) == []


@pytest.mark.parametrize("name", NETS)
def test_without_affine_too(name: str) -> None:
    assert compare(*network_sides(name, at="norm", affine=False), images()) == []


@pytest.mark.parametrize("name", NETS)
def test_the_comparison_sees_a_wrong_network(name: str) -> None:
    def roll(net: Any) -> None:
        net.bn1.bntt[0], net.bn1.bntt[1] = net.bn1.bntt[1], net.bn1.bntt[0]

    found = compare(*network_sides(name, at="norm"), images(), roll)
    assert {"output 0", "inference", "gradient 0 of conv.weight"} <= set(found)
