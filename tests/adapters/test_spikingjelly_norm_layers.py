"""TEBN and BNTT against SpikingJelly's layers of these names: one computation, to the last bit.

In training (outputs, all gradients, running statistics after every one of three batches) and in inference;
as modules on their own, and in patched networks next to networks built with the framework's layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, TEBN, Time
from snn_ext.norms import BatchNormThroughTime, TemporalEffectiveBatchNorm
from tests.adapters.norm_layers import Side, compare, data, randomise

T, C = 4, 3
SHAPES = {
    "dense": (T, 5, C),
    "sequences": (T, 5, C, 6),
    "maps": (T, 5, C, 4, 3),
    "volumes": (T, 5, C, 4, 3, 2),
}
RANK = {"dense": "1d", "sequences": "1d", "maps": "2d", "volumes": "3d"}
EPS = 1e-5
"""SpikingJelly's default for both; ours is the authors' 1e-4 for BNTT."""


def theirs_of(kind: str, shape: str, **options: Any) -> nn.Module:
    """SpikingJelly's layer with random affines and scales."""
    made: nn.Module = getattr(layer, f"{kind}{RANK[shape]}")(T, C, **options)
    randomise(made)
    return made


# --- the modules on their own ----------------------------------------------------------------------------


def tebn_sides(shape: str, **options: Any) -> tuple[Side, Side]:
    ours = TemporalEffectiveBatchNorm(T, C, **options)
    theirs = theirs_of("TemporalEffectiveBatchNorm", shape, **options)
    return Side(ours, ours), Side(theirs, theirs, lambda key: key if key == "scale" else f"bn.{key}")


def bntt_sides(shape: str, mode: str, **options: Any) -> tuple[Side, Side]:
    ours = BatchNormThroughTime(
        T, C, time=Time.PER_CALL if mode == "s" else Time.LEADING, **{"eps": EPS, **options}
    )
    theirs = theirs_of("BatchNormThroughTime", shape, step_mode=mode, **options)
    return (
        Side(ours, stepping(ours, mode)),
        Side(theirs, stepping(theirs, mode), lambda key: key.replace("bn_list.", "slots.")),
    )


def stepping(module: Any, mode: str) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        functional.reset_net(module)  # which calls the reset of both
        return torch.stack([module(x_t) for x_t in x]) if mode == "s" else module(x)

    return run


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": 0.4}], ids=["defaults", "options"])
def test_tebn_is_theirs(shape: str, options: dict[str, Any]) -> None:
    assert compare(*tebn_sides(shape, **options), data(SHAPES[shape])) == []


def test_tebn_without_affine_is_theirs() -> None:
    assert compare(*tebn_sides("maps", affine=False), data(SHAPES["maps"])) == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("options", [{}, {"eps": 1e-3, "momentum": 0.4}], ids=["defaults", "options"])
def test_bntt_is_theirs(shape: str, mode: str, options: dict[str, Any]) -> None:
    assert compare(*bntt_sides(shape, mode, **options), data(SHAPES[shape])) == []


def test_the_authors_eps_is_another_one() -> None:
    """Why `EPS` is passed: our default is not SpikingJelly's."""
    ours, theirs = bntt_sides("maps", "m", eps=1e-4)
    for bn in theirs.module.bn_list:  # type: ignore[union-attr]
        bn.eps = EPS
    assert "output 0" in compare(ours, theirs, data(SHAPES["maps"]))


# --- what the comparison sees ----------------------------------------------------------------------------

Twin = tuple[Callable[[Any], object], set[str], set[str]]
"""What is done to our module, what must differ then, and what must not."""


def setting(target: Callable[[Any], Any], **values: Any) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        for name, value in values.items():
            setattr(target(module), name, value)

    return change


def the_norm(module: Any) -> Any:
    return module.bn


def slot_2(module: Any) -> Any:
    return module.slots[2]


def rolled_slots(module: Any) -> None:
    module.slots = nn.ModuleList([*module.slots[1:], module.slots[0]])


def rolled_scale(module: Any) -> None:
    with torch.no_grad():
        module.scale.copy_(module.scale.roll(1))


def unscaled_beta(module: Any) -> None:
    """p[t] on gamma alone: beta is scaled too in the paper's code and in SpikingJelly's."""

    def sequence(x: Tensor) -> Tensor:
        beta = module.bn.bias.view(-1, 1, 1)
        y = module.bn(x.flatten(0, 1)).view(x.shape)
        return (y - beta) * module.scale.view(-1, 1, 1, 1, 1) + beta

    module.sequence = sequence


STATISTICS = "bn.running_var after 0"
TEBN_TWINS: dict[str, Twin] = {
    "eps": (setting(the_norm, eps=2 * EPS), {"output 0", "gradient 0 of bn.weight"}, {STATISTICS}),
    "momentum": (setting(the_norm, momentum=0.2), {STATISTICS, "inference"}, {"output 0"}),
    "the scale of another step": (rolled_scale, {"output 0", "gradient 0 of scale"}, {STATISTICS}),
    "statistics per step": (setting(lambda m: m, stats="step"), {"output 0", STATISTICS}, set()),
    "beta without the scale": (unscaled_beta, {"output 0", "gradient 0 of bn.bias"}, {STATISTICS}),
}
SLOT = "slots.2.running_var after 0"
BNTT_TWINS: dict[str, Twin] = {
    "eps": (setting(slot_2, eps=2 * EPS), {"output 0", "gradient 0 of slots.2.weight"}, {SLOT}),
    "momentum": (setting(slot_2, momentum=0.2), {SLOT, "inference"}, {"output 0"}),
    "the slots of other steps": (rolled_slots, {"output 0", "inference"}, set()),
}


def check_twin(sides: tuple[Side, Side], twin: Twin) -> None:
    batches = data(SHAPES["maps"])
    assert compare(*sides, batches) == [], "without the change they are one"
    change, must, must_not = twin
    found = set(compare(*sides, batches, change))
    assert must <= found
    assert not must_not & found


@pytest.mark.parametrize("twin", TEBN_TWINS)
def test_the_comparison_sees_a_wrong_tebn(twin: str) -> None:
    check_twin(tebn_sides("maps"), TEBN_TWINS[twin])


@pytest.mark.parametrize("twin", BNTT_TWINS)
def test_the_comparison_sees_a_wrong_bntt(twin: str) -> None:
    check_twin(bntt_sides("maps", "m"), BNTT_TWINS[twin])


# --- patched networks ------------------------------------------------------------------------------------


def conv_net(norm: Callable[[str, int], nn.Module | None], mode: str) -> nn.Sequential:
    """Conv, norm, neuron, flatten, linear, norm, neuron; `norm` makes them from "1d" or "2d" and C."""
    layers = {
        "conv": layer.Conv2d(2, C, 3, padding=1),
        "bn1": norm("2d", C),
        "sn1": neuron.LIFNode(v_threshold=0.2),
        "flat": layer.Flatten(),
        "fc": layer.Linear(36 * C, 5),
        "bn2": norm("1d", 5),
        "sn2": neuron.LIFNode(v_threshold=0.2),
    }
    net = nn.Sequential(OrderedDict({name: module for name, module in layers.items() if module is not None}))
    functional.set_step_mode(net, mode)
    return net


def built(kind: str, mode: str, **options: Any) -> nn.Module:
    """The network as SpikingJelly's users build it, with its layers."""
    net = conv_net(lambda rank, c: getattr(layer, f"{kind}{rank}")(T, c, **options), mode)
    for norm in (net.bn1, net.bn2):
        randomise(norm)
    return net


def patched(method: dict[str, Any], mode: str, **options: Any) -> nn.Module:
    """The network with plain batch norms, converted."""
    net = conv_net(lambda rank, c: getattr(layer, f"BatchNorm{rank}")(c, **options), mode)
    return snn_ext.patch(net, **method, timesteps=T)


def at_neurons(method: dict[str, Any], mode: str) -> nn.Module:
    """The network without norms, patched before its neurons."""
    return snn_ext.patch(conv_net(lambda rank, c: None, mode), **method, timesteps=T)


def converted_key(key: str) -> str:
    """The name our tensor has in SpikingJelly's layer."""
    if key.endswith(".tebn.scale"):
        return key.replace(".tebn", "")
    return key


def converted_slot(key: str) -> str:
    site, *rest = key.split(".")
    if not site.startswith("bn"):
        return key
    if rest[0] == "bntt":  # slot 0 is the norm itself
        return f"{site}.bn_list.{int(rest[1]) + 1}.{rest[2]}"
    return "" if rest[0] == "bias" else f"{site}.bn_list.0.{rest[0]}"  # beta is kept, and has no part


def neuron_key(key: str) -> str:
    site, *rest = key.split(".", 2)
    if not site.startswith("sn"):
        return key
    inside = rest[1].removeprefix("bn.").replace("slots.", "bn_list.")
    return f"bn{site[-1]}.{inside}"


def network_side(net: nn.Module, mode: str, rename: Callable[[str], str] = str) -> Side:
    return Side(net, stepping(net, mode), rename)


def images() -> list[Tensor]:
    """Large enough to make the last neurons fire."""
    return data((T, 6, 2, 6, 6), scale=2.0)


NETWORKS: dict[str, tuple[Callable[[str], nn.Module], Callable[[str], str], str, str]] = {
    "tebn": (
        lambda mode: patched({"tebn": True}, mode),
        converted_key,
        "TemporalEffectiveBatchNorm",
        "m",
    ),
    "tebn before neurons": (
        lambda mode: at_neurons({"tebn": TEBN(at="neuron")}, mode),
        neuron_key,
        "TemporalEffectiveBatchNorm",
        "m",
    ),
    "bntt m": (lambda mode: patched({"bntt": True}, mode), converted_slot, "BatchNormThroughTime", "m"),
    "bntt s": (lambda mode: patched({"bntt": True}, mode), converted_slot, "BatchNormThroughTime", "s"),
    "bntt m before neurons": (
        lambda mode: at_neurons({"bntt": BNTT(at="neuron", eps=EPS)}, mode),
        neuron_key,
        "BatchNormThroughTime",
        "m",
    ),
    "bntt s before neurons": (
        lambda mode: at_neurons({"bntt": BNTT(at="neuron", eps=EPS)}, mode),
        neuron_key,
        "BatchNormThroughTime",
        "s",
    ),
}


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_patched_network_is_one_built_with_theirs(name: str) -> None:
    make, rename, kind, mode = NETWORKS[name]
    ours = network_side(make(mode), mode, rename)
    theirs = network_side(built(kind, mode), mode)
    assert compare(ours, theirs, images()) == []


@pytest.mark.parametrize(
    "options", [{"affine": False}, {"eps": 1e-3, "momentum": 0.4}], ids=["plain", "options"]
)
@pytest.mark.parametrize(("method", "mode"), [("tebn", "m"), ("bntt", "m"), ("bntt", "s")])
def test_options_of_the_converted_norm_are_kept(method: str, mode: str, options: dict[str, Any]) -> None:
    _, rename, kind, _ = NETWORKS["tebn" if method == "tebn" else f"bntt {mode}"]
    ours = network_side(patched({method: True}, mode, **options), mode, rename)
    theirs = network_side(built(kind, mode, **options), mode)
    assert compare(ours, theirs, images()) == []


def test_a_network_with_another_scale_is_seen() -> None:
    ours = network_side(patched({"tebn": True}, "m"), "m", converted_key)
    theirs = network_side(built("TemporalEffectiveBatchNorm", "m"), "m")
    found = compare(ours, theirs, images(), lambda net: rolled_scale(net.bn1.tebn))
    assert {"output 0", "gradient 0 of conv.weight"} <= set(found)


def test_a_network_with_another_momentum_is_seen() -> None:
    ours = network_side(patched({"bntt": True}, "m"), "m", converted_slot)
    theirs = network_side(built("BatchNormThroughTime", "m"), "m")
    found = compare(ours, theirs, images(), lambda net: setattr(net.bn1.bntt[1], "momentum", 0.2))
    assert "bn1.bn_list.2.running_mean after 0" in found
    assert "bn1.bn_list.1.running_mean after 0" not in found
    assert "output 0" not in found
