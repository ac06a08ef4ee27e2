"""The edges of all norms in every idiom of both frameworks: each works, or says why not.

One sample, one step, other numbers of steps, channels last, bfloat16 autocast, frozen norms, and norms
without running statistics or without an affine.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import snn_ext
from snn_ext import BNTT, FoldError, OptionError, SnnExtError, TimestepError
from tests.adapters.edge_nets import (
    IDIOMS,
    METHODS,
    NEUTRAL,
    T,
    images,
    make,
    normalised,
    norms,
    patch,
    run,
    the_norm,
    train_step,
)
from tests.adapters.snntorch_nets import private_instances

AT_NORMS = ("bntt", *NEUTRAL)

everywhere = pytest.mark.parametrize("idiom", IDIOMS)
all_methods = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def joint(idiom: str, method: str) -> bool:
    """Whether statistics are taken over all steps together."""
    return IDIOMS[idiom].whole and method in ("tebn", "tebn at neurons")


def state(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def moved(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


def check_gradients(net: nn.Module, *, unused: str = "-") -> None:
    """All there, finite, and float32."""
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and unused not in name:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.dtype is torch.float32, name


# --- one sample ------------------------------------------------------------------------------------------


@everywhere
@all_methods
def test_a_batch_of_one(idiom: str, method: str) -> None:
    """Behind the linear layer one sample is one value per channel: no variance, unless over time."""
    net, x = make(idiom, method), images()
    whole = run(idiom, net.eval(), x)
    assert whole.std() > 0.1, "an equality of silent networks proves nothing"
    # 1e-5: matrix products of another size sum in another order
    torch.testing.assert_close(run(idiom, net, x[:, :1]), whole[:, :1], rtol=1e-5, atol=1e-5)
    net.train()
    if (method == "mpbn" or "neurons" in method) and not joint(idiom, method):
        with pytest.raises(OptionError, match=r"(?s)one value per channel: \[1, 5\].*do: train with more"):
            train_step(idiom, net, images(batch=1))
        train_step(idiom, net, x)  # the interrupted sequence is forgotten
    else:
        train_step(idiom, net, images(batch=1))
    check_gradients(net)


# --- one step, and other numbers of steps ----------------------------------------------------------------


@everywhere
@all_methods
def test_one_step(idiom: str, method: str) -> None:
    """With T = 1 every norm over time is an ordinary one, in training too: gradients and statistics."""
    net, plain, x = make(idiom, method, timesteps=1), make(idiom, None), images(1)
    outputs = [train_step(idiom, m.train(), x) for m in (net, plain)]
    check_gradients(net)
    if method in NEUTRAL:
        assert torch.equal(*outputs)
        own = dict(net.named_parameters())
        assert all(torch.equal(own[name].grad, p.grad) for name, p in plain.named_parameters())  # type: ignore[arg-type]
        assert not moved(plain, net.state_dict())
    if method == "bntt":
        assert moved(plain, net.state_dict()) == set(), "statistics do not depend on beta"
        assert not torch.equal(normalised(idiom, net, x), normalised(idiom, plain, x)), "outputs do"
    longer = images(2)
    for training in (True, False):
        net.train(training)
        if method == "mpbn":
            run(idiom, net, longer)
        else:
            with pytest.raises(TimestepError, match="made for 1 steps"):
                run(idiom, net, longer)


@everywhere
@all_methods
def test_other_numbers_of_steps_in_inference(idiom: str, method: str) -> None:
    net, x = make(idiom, method).eval(), images(T + 1)
    before, whole = state(net), run(idiom, net, x[:T])
    for steps in range(1, T):
        assert torch.equal(run(idiom, net, x[:steps]), whole[:steps])
    if method == "mpbn":
        assert torch.equal(run(idiom, net, x)[:T], whole)
    else:
        with pytest.raises(TimestepError, match=rf"(?s)step {T + 1} of.*made for {T} steps.*do: call"):
            run(idiom, net, x)
    assert torch.equal(run(idiom, net, x[:T]), whole), "and after a reset all is well"
    assert not moved(net, before)


@everywhere
@all_methods
@pytest.mark.parametrize("steps", [1, T - 1, T + 1])
def test_other_numbers_of_steps_in_training(idiom: str, method: str, steps: int) -> None:
    net, x = make(idiom, method).train(), images(steps)
    before = state(net)
    if steps > T and method != "mpbn":
        with pytest.raises(TimestepError, match=f"step {T + 1} of .*made for {T} steps"):
            train_step(idiom, net, x)
    elif joint(idiom, method):
        with pytest.raises(TimestepError, match=f"made for {T} steps and is trained with {steps}"):
            train_step(idiom, net, x)
    else:
        train_step(idiom, net, x)
        later = [f"bntt.{t - 1}." for t in range(steps, T)] + [f"slots.{t}." for t in range(steps, T)]
        touched = moved(net, before)
        assert any("running_mean" in key for key in touched)
        assert not [key for key in touched if any(part in key for part in later)], "steps never taken"
        return
    if method in AT_NORMS and IDIOMS[idiom].whole:
        assert not moved(net, before), "refused before anything is counted"
    train_step(idiom, net, images())
    check_gradients(net)


# --- where it happened -----------------------------------------------------------------------------------


def named(net: nn.Module, error: SnnExtError) -> str:
    """The path that a message gives; it leads to a module of the class that the message gives."""
    match = re.fullmatch(r"(\S+) \((\w+)\)", error.where)
    assert match, error.where
    module = net.get_submodule(match[1])
    assert snn_ext.original_class(module).__name__ == match[2]
    generated = {type(m).__name__ for m in net.modules() if type(m) is not snn_ext.original_class(m)}
    assert not [name for name in generated if name in str(error)]
    return match[1]


@everywhere
@all_methods
def test_errors_of_norms_say_where(idiom: str, method: str, tmp_path: Path) -> None:
    """Inside another network, as `get_submodule` takes it; after copying and loading too."""
    outer = nn.ModuleDict({"body": make(idiom, None)})
    if method != "mpbn":
        patch(idiom, outer, method)
    else:
        snn_ext.patch(outer, mpbn=True)
    snn_ext.save(outer, tmp_path / "net")
    fresh = nn.ModuleDict({"body": make(idiom, None)})
    for net in (outer, copy.deepcopy(outer), snn_ext.load(fresh, tmp_path / "net")):
        body, sites = net["body"], [p for p, m in net.named_modules() if method.split()[0] in m._modules]
        site = sites[-1] if "neurons" in method or method == "mpbn" else sites[0]
        if method != "mpbn":
            with pytest.raises(TimestepError, match="made for") as caught:
                run(idiom, body.eval(), images(T + 1))
            assert named(net, caught.value).startswith(sites[0])
        if joint(idiom, method):
            with pytest.raises(TimestepError, match="is trained with") as caught:
                train_step(idiom, body.train(), images(T - 1))
            assert named(net, caught.value).startswith(sites[0])
        elif method == "mpbn" or "neurons" in method:
            with pytest.raises(OptionError, match="one value per channel") as value:
                train_step(idiom, body.train(), images(batch=1))
            assert named(net, value.value).startswith(site + ".")
    snn_ext.unpatch(outer)
    assert not [m for m in outer.modules() if "_snn_ext_path" in vars(m)]


def test_errors_of_clocks_say_where() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.spare, self.lif = nn.BatchNorm1d(4), snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)

        def forward(self, x: Tensor) -> Tensor:
            mem = self.lif.init_leaky()
            for _ in range(T):
                spikes, mem = self.lif(self.bn(x), mem)
            return spikes  # type: ignore[no-any-return]

    net = snn_ext.patch(Unused(), bntt=True, timesteps=T).eval()
    with pytest.raises(TimestepError, match="cannot tell which time step") as caught:
        net(torch.rand(2, 4))
    assert caught.value.where == "bn (BatchNorm1d) before spare (Leaky)"
    single = snn_ext.patch(
        nn.Sequential(neuron.IFNode()),
        bntt={"0": BNTT(at="neuron")},
        timesteps=T,
        example_input=torch.rand(2, 4),
    )
    single(torch.rand(2, 4))
    single[0].v = torch.zeros(2, 4)
    with pytest.raises(TimestepError, match="set by hand") as caught:
        single(torch.rand(2, 4))
    assert caught.value.where == "0 (IFNode)"


# --- memory formats and precision ------------------------------------------------------------------------


@everywhere
@all_methods
def test_channels_last(idiom: str, method: str) -> None:
    """Tolerances: in this format convolutions and norms sum in another order; with these values no
    membrane is within that of its threshold."""
    x = images()
    last = x.flatten(0, 1).to(memory_format=torch.channels_last).view(x.shape)
    plain, net = make(idiom, method), make(idiom, method).to(memory_format=torch.channels_last)
    formats: list[bool] = []
    the_norm(net).register_forward_pre_hook(
        lambda m, args: formats.append(args[0].view(-1, *args[0].shape[-3:]).is_contiguous())
    )
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        train_step(idiom, net.train(), last), train_step(idiom, plain.train(), x), **close
    )
    assert formats
    assert not any(formats), "the norm is really given the other format"
    check_gradients(net)
    for (name, a), b in zip(net.named_parameters(), plain.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=name)
    for (name, a), b in zip(net.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, **close, msg=name)
    torch.testing.assert_close(run(idiom, net.eval(), last), run(idiom, plain.eval(), x), **close)


@everywhere
@all_methods
def test_bfloat16_autocast(idiom: str, method: str) -> None:
    """Parameters, statistics and gradients stay float32; fresh neutral norms stay neutral. (Neurons that
    keep time for them keep float32 membranes, so the network's outputs are not compared.)"""
    net, plain, wide, x = make(idiom, method), make(idiom, None), make(idiom, method), images()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [run(idiom, m.eval(), x) for m in (net, plain)]
        inferred = [normalised(idiom, m, x) for m in (net, plain)]
        train_step(idiom, net.train(), x)
    assert outputs[0].dtype is outputs[1].dtype
    assert inferred[0].dtype is inferred[1].dtype is torch.bfloat16
    assert torch.equal(*inferred) or method == "bntt"
    train_step(idiom, wide.train(), x)
    check_gradients(net)
    dtypes = {t.dtype for t in net.state_dict().values() if t.is_floating_point()}
    assert dtypes == {torch.float32}
    for narrow, other in zip(norms(net), norms(wide), strict=True):
        assert int(narrow.num_batches_tracked) == int(other.num_batches_tracked)
    # 0.05: bfloat16 has eight bits; the first norm sees no spikes, which might flip
    mean, expected = the_norm(net).running_mean, the_norm(wide).running_mean
    torch.testing.assert_close(mean, expected, rtol=0.05, atol=0.05)
    assert not torch.equal(mean, expected), "the twin: it was bfloat16 that ran"


# --- frozen norms ----------------------------------------------------------------------------------------


def every_norm(net: nn.Module) -> None:
    for norm in norms(net):
        norm.eval()


def by_the_users_class(net: nn.Module) -> None:
    """As fine-tuning recipes write it: what is part of the norm is frozen with it."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


FREEZING: list[Any] = [
    pytest.param(method, freeze, id=f"{method}-{freeze.__name__}")
    for method in METHODS
    for freeze in (every_norm, by_the_users_class)
    if freeze is every_norm or method in AT_NORMS
]


@everywhere
@pytest.mark.parametrize(("method", "freeze"), FREEZING)
def test_frozen_norms(idiom: str, method: str, freeze: Callable[[nn.Module], None]) -> None:
    """In eval mode inside a network that trains: running statistics are used and kept, affines learn."""
    net, x = make(idiom, method), images()
    train_step(idiom, net.train(), x)  # slots of their own statistics
    expected, before = run(idiom, net.eval(), x), state(net)
    net.train()
    freeze(net)
    assert torch.equal(train_step(idiom, net, x), expected)
    check_gradients(net)
    train_step(idiom, net, images(batch=1))  # which has no statistics of its own
    assert not moved(net, before)
    if method in AT_NORMS:
        train_step(idiom, net, images(2))  # nor are joint ones taken
        assert not moved(net, before)
    net.train()
    assert not torch.equal(train_step(idiom, net, x), expected), "the twin: not frozen"
    assert moved(net, before)


@everywhere
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")], ids="+".join)
def test_a_frozen_affine_is_frozen_at_every_step(idiom: str, frozen: tuple[str, ...]) -> None:
    """Frozen before the patch; whoever thaws the norm afterwards thaws all slots, which are inside it."""
    net, x = make(idiom, None).train(), images()
    for name in frozen:
        the_norm(net).get_parameter(name).requires_grad_(False)
    patch(idiom, net, "bntt with bias")
    slots = [the_norm(net), *the_norm(net).bntt]  # type: ignore[misc]
    assert len(slots) == T
    for slot in slots:
        assert {name for name in ("weight", "bias") if not getattr(slot, name).requires_grad} == {*frozen}
    before = state(net)
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.1))
    train_step(idiom, net, x)
    check_gradients(net)
    optimizer.step()
    site = next(name for name, module in net.named_modules() if module is slots[0])
    learnt = {key.rpartition(".")[2] for key in moved(net, before) if key.startswith(site)}
    assert learnt & {"weight", "bias"} == {"weight", "bias"} - {*frozen}
    the_norm(net).requires_grad_(True)
    assert all(p.requires_grad for slot in slots for p in slot.parameters())


@everywhere
@pytest.mark.parametrize("method", ["tebn", "tebn by step", "tebn at neurons"])
def test_frozen_norms_take_shorter_sequences(idiom: str, method: str) -> None:
    """Only the batch norms are in eval mode: no joint statistics are taken, so none need all T steps."""
    net, x = make(idiom, method).train(), images()
    every_norm(net)
    whole = train_step(idiom, net, x)
    for steps in range(1, T):
        assert torch.equal(train_step(idiom, net, x[:steps]), whole[:steps])
    with pytest.raises(TimestepError, match=f"made for {T} steps"):
        train_step(idiom, net, images(T + 1))


# --- unusual norms ---------------------------------------------------------------------------------------

ODD: dict[str, dict[str, Any]] = {
    "no affine": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "neither": {"affine": False, "track_running_stats": False},
    "cumulative": {"momentum": None},
}


def odd(what: str) -> _BatchNorm:
    return nn.BatchNorm2d(3, **ODD[what])


@everywhere
@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize("what", ODD)
def test_unusual_norms_stay_what_they_are(idiom: str, method: str, what: str, tmp_path: Path) -> None:
    """Neutral in inference, where they have statistics; else every step is normalised by its own."""
    net, plain, x = make(idiom, method, norm=odd(what)), make(idiom, None, norm=odd(what)), images()
    mine, original = normalised(idiom, net.eval(), x), normalised(idiom, plain.eval(), x)
    by_step = the_norm(plain).running_mean is None and IDIOMS[idiom].whole and not joint(idiom, method)
    if by_step:
        steps = [normalised(idiom, plain, x_t[None]) for x_t in x]
        assert torch.equal(mine, torch.cat(steps))
        assert not torch.equal(mine, original)
    else:
        assert torch.equal(mine, original)
    train_step(idiom, net.train(), x)
    check_gradients(net)
    assert snn_ext.param_groups(net, lr=0.1)
    trained = run(idiom, net.eval(), x)
    snn_ext.save(net, tmp_path / "net")
    fresh = snn_ext.load(make(idiom, None, norm=odd(what), seed=2), tmp_path / "net").eval()
    assert torch.equal(run(idiom, fresh, x), trained)
    snn_ext.unpatch(net)
    assert list(net.state_dict()) == list(plain.state_dict())


@everywhere
@all_methods
def test_without_running_statistics_nothing_folds(idiom: str, method: str) -> None:
    """Whoever takes them away gets statistics of the batch in inference; a fold would need running ones."""
    net, x = make(idiom, method), images()
    with_statistics = run(idiom, net.eval(), x)
    for norm in norms(net):
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        norm.track_running_stats = False
    outputs = run(idiom, net.eval(), x)
    assert outputs.isfinite().all()
    assert not torch.equal(outputs, with_statistics)
    with pytest.raises(FoldError, match=r"(?s)(without running statistics|nothing to fold).*do: "):
        snn_ext.fold(copy.deepcopy(net))
    train_step(idiom, net.train(), x)
    check_gradients(net)
    assert torch.equal(run(idiom, net.eval(), x), outputs), "nothing was tracked"
