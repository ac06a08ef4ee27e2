"""MPBN in SpikingJelly's neurons: equations, the framework's own variant, the fold, and refusals."""

from __future__ import annotations

import copy
import math
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import snn_ext
from snn_ext import IMP, MPBN, FoldError, OptionError, ShapeMismatchError, UnsupportedSiteError
from snn_ext.kernels import use_backend
from snn_ext.norms import FoldedMembraneNorm, MembraneBatchNorm
from tests.property.test_fold import Tally, rounding_bound
from tests.unit.test_mpbn import (
    EPS,
    MOMENTUM,
    Neuron,
    Step,
    loss_weights,
    reference_step,
    step_inputs,
    step_of,
)
from tests.unit.test_plan import fingerprint, same

TAU = 1.6


def conv_net(node: Callable[[], nn.Module] = neuron.LIFNode, mode: str = "m") -> nn.Sequential:
    """Conv, BN, neuron, pool, flatten, linear, neuron; input [T, N, 2, 6, 6]."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        node(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(36, 5),
        node(),
    )
    with torch.no_grad():
        net[5].weight.mul_(6)  # so that the last neurons fire
    functional.set_step_mode(net, mode)
    return net


def batch(steps: int = 4, size: int = 3) -> Tensor:
    return torch.randn(steps, size, 2, 6, 6) * 2


def norms(net: nn.Module) -> list[MembraneBatchNorm]:
    return [m for m in net.modules() if isinstance(m, MembraneBatchNorm)]


def trained(net: nn.Module, x: Tensor) -> nn.Module:
    """Affines as training could leave them, both signs and zeros, and statistics that belong to them."""
    for norm in norms(net):
        n = norm.bn.num_features
        with torch.no_grad():
            norm.bn.weight.copy_((torch.rand(n) + 0.3) * torch.where(torch.arange(n) % 3 == 1, -1, 1))
            norm.bn.weight[::4] = torch.where(torch.arange(n)[::4] % 8 == 0, 0.0, -0.0)
            norm.bn.bias.copy_(torch.rand(n) + 0.5)
    net.train()
    for _ in range(8):
        run(net, x)
    return net.eval()


def run(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    with torch.no_grad():
        return net(x)  # type: ignore[no-any-return]


# --- the training step ---------------------------------------------------------------------------------

Charge = Callable[[Tensor, Tensor], Tensor]


def if_charge(rest: float) -> Charge:
    return lambda x, v: v + x


def lif_charge(rest: float) -> Charge:
    return lambda x, v: v + (x - (v - rest)) / TAU


def lif_plain_input_charge(rest: float) -> Charge:
    return lambda x, v: v - (v - rest) / TAU + x


KINDS: dict[str, tuple[Callable[..., nn.Module], Callable[[float], Charge]]] = {
    "IF": (neuron.IFNode, if_charge),
    "LIF": (lambda **k: neuron.LIFNode(tau=TAU, **k), lif_charge),
    "LIF, plain input": (
        lambda **k: neuron.LIFNode(tau=TAU, decay_input=False, **k),
        lif_plain_input_charge,
    ),
}
RESETS: dict[str, float | None] = {"hard": 0.0, "hard to 0.25": 0.25, "soft": None}


def patched(node: Any, per: str, carry: str, inputs: dict[str, Tensor]) -> Any:
    """`node` in float64 with MPBN and IMP, and the given parameters."""
    node.step_mode = "m"
    option = MPBN(features=per, carry=carry, eps=EPS, momentum=MOMENTUM)  # type: ignore[arg-type]
    snn_ext.patch(node, mpbn=option, imp=IMP(init=0.0), example_input=inputs["x"])
    node.double()
    with torch.no_grad():
        node.mpbn.bn.weight.copy_(inputs["gamma"])
        node.mpbn.bn.bias.copy_(inputs["beta"])
        node.imp.copy_(inputs["v0"])
    return node


def node_step(node: Any, x: Tensor, mode: str) -> Step:
    x = x.clone().requires_grad_()
    node.step_mode = mode
    spikes = node(x) if mode == "m" else torch.stack([node(x_t) for x_t in x])
    ((spikes * loss_weights(spikes)).sum() + (node.v * loss_weights(node.v)).sum()).backward()
    learnt = {"w": node.w} if hasattr(node, "w") else {}
    return step_of(spikes, node.v, node.mpbn, {"x": x, "v0": node.imp, **learnt})


def soft_or_hard(reset: float | None) -> dict[str, Any]:
    return {"reset": "soft"} if reset is None else {"reset": "hard", "rest": reset}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("carry", ["raw", "normalised"])
@pytest.mark.parametrize("per", ["channel", "element"])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_training_step_equals_the_equations(kind: str, reset: str, carry: str, per: str, mode: str) -> None:
    inputs, v_reset = step_inputs(per), RESETS[reset]
    make, charge = KINDS[kind]
    node = make(v_reset=v_reset, v_threshold=0.8, surrogate_function=surrogate.ATan())
    equations = Neuron(
        charge(v_reset or 0.0), threshold=0.8, carry=carry, at_equality=True, **soft_or_hard(v_reset)
    )
    expected = reference_step(**inputs, per=per, neuron=equations)
    node_step(patched(node, per, carry, inputs), inputs["x"], mode).check_equals(expected)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("carry", ["raw", "normalised"])
def test_plif_learns_its_decay(decay_input: bool, reset: str, carry: str) -> None:
    inputs, v_reset = step_inputs("channel"), RESETS[reset]
    rest = v_reset or 0.0
    w = torch.tensor(-math.log(TAU - 1), dtype=torch.float32).double().requires_grad_()

    def charge(x: Tensor, v: Tensor) -> Tensor:
        leak = 1 / (1 + torch.exp(-w))
        return v + (x - (v - rest)) * leak if decay_input else v - (v - rest) * leak + x

    node = neuron.ParametricLIFNode(
        init_tau=TAU, decay_input=decay_input, v_reset=v_reset, surrogate_function=surrogate.ATan()
    )
    equations = Neuron(charge, carry=carry, **soft_or_hard(v_reset))
    expected = reference_step(**inputs, per="channel", neuron=equations, learnt={"w": w})
    assert "w" in expected.gradients
    node_step(patched(node, "channel", carry, inputs), inputs["x"], "m").check_equals(expected)


@pytest.mark.parametrize("detach", [True, False])
def test_the_reset_is_detached_where_the_neuron_says_so(detach: bool) -> None:
    inputs = step_inputs("channel")
    node = patched(
        neuron.IFNode(detach_reset=detach, surrogate_function=surrogate.ATan()), "channel", "raw", inputs
    )
    step = node_step(node, inputs["x"], "m")
    for other in (True, False):
        equations = Neuron(if_charge(0.0), detach=other)
        wrong = step.differs_from(reference_step(**inputs, per="channel", neuron=equations))
        assert wrong == (other != detach)


def test_the_comparison_sees_another_charge_reset_or_carry() -> None:
    inputs = step_inputs("channel")
    make, charge = KINDS["LIF"]
    node = patched(make(surrogate_function=surrogate.ATan()), "channel", "raw", inputs)
    step = node_step(node, inputs["x"], "m")
    step.check_equals(reference_step(**inputs, per="channel", neuron=Neuron(charge(0.0))))
    for twin in (
        Neuron(if_charge(0.0)),
        Neuron(charge(0.0), reset="soft"),
        Neuron(charge(0.0), carry="normalised"),
        Neuron(charge(0.25)),
    ):
        assert step.differs_from(reference_step(**inputs, per="channel", neuron=twin))


def test_the_surrogate_is_the_nodes_own() -> None:
    """Any function of the framework or the user, not only those that `Dynamics` can express."""
    x = torch.randn(3, 6, 5)
    gradients = []
    for alpha in (1.0, 4.0):
        node = neuron.IFNode(surrogate_function=surrogate.SoftSign(alpha=alpha), step_mode="m")
        snn_ext.patch(node, mpbn=True, example_input=x)
        node(x).sum().backward()
        gradients.append(node.mpbn.bn.weight.grad)
    assert not torch.equal(*gradients)


def test_store_v_seq_holds_what_is_carried() -> None:
    x = torch.randn(4, 3, 5) + 1
    node = neuron.LIFNode(step_mode="m", store_v_seq=True)
    snn_ext.patch(node, mpbn=True, example_input=x)
    node.eval()
    node(x)
    whole = node.v_seq
    functional.reset_net(node)
    steps = []
    for t in range(4):
        node(x[t : t + 1])
        steps.append(node.v)
    assert torch.equal(whole, torch.stack(steps))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("features", ["channel", "element"])
def test_both_step_modes_are_one(training: bool, features: Any) -> None:
    torch.manual_seed(1)
    net = snn_ext.patch(conv_net(), mpbn=MPBN(features=features), example_input=batch())
    twin = copy.deepcopy(net)
    functional.set_step_mode(twin, "s")
    for m in (net, twin):
        # The framework's own BatchNorm differs between the modes in training.
        m.train(training)[1].eval()
    x = batch()
    assert torch.equal(run(net, x), torch.stack(_per_step(twin, x)))
    for a, b in zip(norms(net), norms(twin), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.buffers(), b.buffers(), strict=True))
        assert int(a.bn.num_batches_tracked) == 4 * training


def _per_step(net: nn.Module, x: Tensor) -> list[Tensor]:
    functional.reset_net(net)
    with torch.no_grad():
        return [net(x_t) for x_t in x]


STOCK: dict[str, Callable[..., nn.Module]] = {
    "IF": neuron.IFNode,
    "LIF": lambda **k: neuron.LIFNode(tau=2.0, decay_input=False, **k),
    "PLIF": lambda **k: neuron.ParametricLIFNode(init_tau=2.0, decay_input=False, **k),
}


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("fold", [False, True])
def test_with_an_identity_norm_it_is_the_stock_neuron(kind: str, v_reset: float | None, fold: bool) -> None:
    """var + eps = 1 and mean 0: bit for bit, with decays that round in one way only."""
    x = torch.randn(8, 5, 40)
    stock, node = (STOCK[kind](v_reset=v_reset, v_threshold=0.7, step_mode="m") for _ in range(2))
    snn_ext.patch(node, mpbn=MPBN(eps=2**-10), example_input=x)
    node.eval()
    node.mpbn.bn.running_var.fill_(1 - 2**-10)
    if fold:
        snn_ext.fold(node)
    spikes = stock(x)
    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(node(x), spikes)
    assert torch.equal(node.v, stock.v)


# --- SpikingJelly's own variant --------------------------------------------------------------------------


def pair(mode: str, shape: tuple[int, ...], **options: Any) -> tuple[Any, Any]:
    """SpikingJelly's MPBNLIFNode, and a patched LIFNode that carries the normalised membrane."""
    size = {"out_features": shape[0]} if len(shape) == 1 else {"out_channels": shape[0]}
    theirs = neuron.MPBNLIFNode(step_mode=mode, **options, **size)
    ours = neuron.LIFNode(step_mode=mode, **{"decay_input": False, **options})
    x = torch.zeros(2, *shape) if mode == "s" else torch.zeros(3, 2, *shape)
    snn_ext.patch(ours, mpbn=MPBN(carry="normalised"), example_input=x)
    with torch.no_grad():
        theirs.vbn.weight.copy_(torch.rand(shape[0]) - 0.3)
        theirs.vbn.bias.copy_(torch.rand(shape[0]) + 0.5)
    ours.mpbn.bn.load_state_dict(theirs.vbn.state_dict())
    return theirs, ours


def both(nodes: tuple[Any, Any], x: Tensor, training: bool) -> list[tuple[Tensor, ...]]:
    """Spikes, last membrane, dL/dx and dL/dgamma of each."""
    results = []
    for node, norm in zip(nodes, (nodes[0].vbn, nodes[1].mpbn.bn), strict=True):
        node.train(training)
        functional.reset_net(node)
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        y = node(leaf) if node.step_mode == "m" else torch.stack([node(x_t) for x_t in leaf])
        (y * loss_weights(y)).sum().backward()
        results.append((y.detach(), node.v.detach(), leaf.grad, norm.weight.grad.clone()))
    return results


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("shape", [(5,), (3, 2, 2)])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("step", ["framework", "auto"])
def test_it_equals_mpbnlifnode_bit_for_bit(
    mode: str, shape: tuple[int, ...], v_reset: float | None, step: str
) -> None:
    """Its default neuron (tau = 2, plain input), whose charge rounds in one way only. One function over
    all steps adds gradients in another order."""
    nodes = pair(mode, shape, v_reset=v_reset)
    for iteration in range(4):
        training = iteration < 3
        with use_backend(step):
            theirs, ours = both(nodes, torch.randn(5, 4, *shape) * 2, training)
        assert all(torch.equal(a, b) for a, b in zip(theirs[:2], ours[:2], strict=True))
        for a, b in zip(theirs[2:], ours[2:], strict=True):
            assert torch.equal(a, b) if step == "framework" else torch.allclose(a, b, rtol=1e-4, atol=1e-5)
        assert 0.05 < ours[0].mean() < 0.95
        for a, b in zip(nodes[0].vbn.buffers(), nodes[1].mpbn.bn.buffers(), strict=True):
            assert torch.equal(a, b)
        assert int(nodes[1].mpbn.bn.num_batches_tracked) == 5 * min(iteration + 1, 3), "T per forward"


@pytest.mark.parametrize(
    "options",
    [
        {"tau": 1.7},
        {"tau": 3.0, "v_reset": None},
        {"decay_input": True},
        {"decay_input": True, "v_reset": 0.25},
        {"v_threshold": 0.7, "v_reset": -0.1, "detach_reset": True},
    ],
    ids=str,
)
def test_it_equals_mpbnlifnode_up_to_the_rounding_of_the_charge(options: dict[str, Any]) -> None:
    """(x - v) / tau against decay * v + gain * x: float64, so that no spike flips."""
    nodes = pair("m", (3, 2, 2), **options)
    for node in nodes:
        node.double()
    for iteration in range(3):
        x = torch.randn(5, 4, 3, 2, 2, dtype=torch.float64) * 2
        theirs, ours = both(nodes, x, iteration < 2)
        assert torch.equal(theirs[0], ours[0])
        for a, b in zip(theirs[1:], ours[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_raw_carry_is_another_neuron() -> None:
    theirs, _ = pair("m", (5,))
    raw = neuron.LIFNode(decay_input=False, step_mode="m")
    snn_ext.patch(raw, mpbn=True, example_input=torch.zeros(3, 2, 5))
    raw.mpbn.bn.load_state_dict(theirs.vbn.state_dict())
    x = torch.randn(5, 40, 5) * 2
    assert torch.equal(theirs(x)[0], raw(x)[0]), "the first decision is the same"
    functional.reset_net(theirs)
    assert not torch.equal(theirs(x), raw(x))


# --- the fold ------------------------------------------------------------------------------------------


class Recorder:
    """Spikes of every neuron, and where rounding alone may decide, in one run."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.spikes: dict[int, list[Tensor]] = {}
        self.near = False
        sites = [m for m in net.modules() if hasattr(m, "mpbn")]
        handles = [s.register_forward_hook(self._note) for s in sites]
        handles += [s.mpbn.register_forward_hook(self._distance(s)) for s in sites]
        self.output = run(net, x)
        for handle in handles:
            handle.remove()

    def _note(self, site: nn.Module, _: Any, output: Tensor) -> None:
        self.spikes.setdefault(id(site), []).append(output)

    def pairs(self, other: Recorder) -> list[tuple[Tensor, Tensor]]:
        """The spikes of both runs, site by site."""
        return [(torch.stack(s), torch.stack(other.spikes[site])) for site, s in self.spikes.items()]

    def _distance(self, site: Any) -> Callable[..., None]:
        def hook(norm: Any, args: tuple[Tensor], _: Tensor) -> None:
            theta = norm.fold(site.v_threshold, fires_at_equality=True).threshold.double()
            distance = (args[0].double() - theta).abs()
            self.near |= bool((distance <= rounding_bound(args[0], site.v_threshold, norm)).any())

        return hook if isinstance(site.mpbn, MembraneBatchNorm) else lambda *_: None


def random_net(r: random.Random) -> tuple[nn.Module, Tensor]:
    """Two patched layers with statistics of their own data (down to variances of 1e-12), and an input."""
    torch.manual_seed(r.randrange(2**31))
    common = {"v_reset": r.choice([0.0, None, 0.25]), "v_threshold": r.choice([1.0, 0.7])}
    node = r.choice(
        [
            lambda: neuron.IFNode(**common),
            lambda: neuron.LIFNode(tau=1.7, decay_input=r.random() < 0.5, **common),
            lambda: neuron.ParametricLIFNode(**common),
        ]
    )
    net = nn.Sequential(layer.Linear(3, 4), node(), layer.Linear(4, 3), node())
    functional.set_step_mode(net, r.choice(["m", "m", "s"]))
    dtype = r.choice([torch.float32, torch.float64])
    net.to(dtype)
    scale = r.choice([1.0, 1e-3, 1e-6])
    with torch.no_grad():
        for i in (0, 2):
            net[i].weight.mul_(3 * scale)
            net[i].bias.mul_(scale)
    option = MPBN(
        features=r.choice(["channel", "element"]),
        eps=r.choice([1e-5, 1e-9]),
        momentum=1.0,
        affine=r.random() < 0.9,
    )
    x = torch.randn(r.randint(1, 6), r.randint(2, 4), 3, dtype=dtype)
    net = Looped(net) if net[1].step_mode == "s" else net
    snn_ext.patch(net, mpbn=option, example_input=x)
    net.double() if dtype is torch.float64 else net.float()
    run(net.train(), x)
    for norm in norms(net):
        _affine(norm, r)
    return net.eval(), x


class Looped(nn.Module):
    """The time loop users write around a network in 's' mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x_t) for x_t in x])


def _affine(norm: MembraneBatchNorm, r: random.Random) -> None:
    if not norm.bn.affine:
        return
    for i in range(norm.bn.num_features):
        gamma = r.choice([0.0, -0.0, *[r.choice([-1, 1]) * r.uniform(0.2, 3)] * 5])
        with torch.no_grad():
            norm.bn.weight[i] = gamma
            # At the threshold with a constant input nothing but rounding would decide.
            norm.bn.bias[i] = r.choice([0.0, 0.7, 1.0]) if gamma == 0 else r.uniform(0, 2)


EXAMPLES = 350


def test_no_spike_of_a_network_differs() -> None:
    tally = Tally()

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(r=st.randoms(use_true_random=True))  # else most of the examples are others again
    def check(r: random.Random) -> None:
        net, x = random_net(r)
        tally.tried(x)
        before = Recorder(net, x)
        snn_ext.fold(net)
        after = Recorder(net, x)
        for s, f in before.pairs(after):
            # A spike of the first layer reaches every neuron of the second: all or nothing.
            assert tally.compare(s, f, torch.full_like(s, before.near, dtype=torch.bool)) == 0

    check()
    tally.check_worth(EXAMPLES, left_out=0.05)


def test_the_network_test_sees_a_fold_without_signs() -> None:
    seen = 0
    for seed in range(30):
        net, x = random_net(random.Random(seed))
        before = Recorder(net, x)
        snn_ext.fold(net)
        for module in net.modules():
            if isinstance(module, FoldedMembraneNorm):
                module.sign.abs_()
        seen += any(not torch.equal(s, f) for s, f in before.pairs(Recorder(net, x)))
    assert seen > 15


def test_a_threshold_keeps_its_digits_in_float64() -> None:
    """0.7 through float32 is 1.2e-8 too small: a membrane in between must not fire."""
    node = neuron.IFNode(v_threshold=0.7, step_mode="m")
    snn_ext.patch(node, mpbn=MPBN(eps=2**-10), example_input=torch.zeros(2, 3, 1))
    node.double().eval()
    node.mpbn.bn.running_var.fill_(1 - 2**-10)
    x = torch.tensor([[[0.7 - 5e-9], [0.7 + 5e-9]]], dtype=torch.float64)
    before = run(node, x)
    assert before.flatten().tolist() == [0, 1]
    snn_ext.fold(node)
    assert torch.equal(run(node, x), before)


@pytest.mark.parametrize("v_reset", [0.0, None, 0.25])
@pytest.mark.parametrize("features", ["channel", "element"])
@pytest.mark.parametrize("imp", [None, True])
def test_a_conv_net_folds(v_reset: float | None, features: Any, imp: Any) -> None:
    torch.manual_seed(4)
    x = batch()
    net = conv_net(lambda: neuron.LIFNode(v_reset=v_reset))
    snn_ext.patch(net, mpbn=MPBN(features=features), imp=imp, example_input=x)
    trained(net, x)
    before = run(net, x)
    assert 0 < before.mean() < 1
    assert snn_ext.fold(net) is net
    assert norms(net) == []
    assert torch.equal(run(net, x), before)


def state(net: nn.Module) -> dict[str, Any]:
    return {"modules": fingerprint(net), "keys": [*net.state_dict()], "report": str(snn_ext.report(net))}


def _untracked(net: nn.Module) -> nn.Module:
    bn = norms(net)[-1].bn
    bn.running_mean = bn.running_var = None
    bn.track_running_stats = False
    return net


def _mpbn(**options: Any) -> nn.Module:
    return snn_ext.patch(conv_net(), mpbn=MPBN(**options), example_input=batch())


def _mixed() -> nn.Module:
    option = {"2": MPBN(), "6": MPBN(carry="normalised")}
    return snn_ext.patch(conv_net(), mpbn=option, example_input=batch())


def _half_training() -> nn.Module:
    """Eval at the root and in the norm, training at the neuron between them."""
    net = _mpbn().eval()
    net[6].train()
    net[6].mpbn.eval()
    return net


UNFOLDABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "not patched": (lambda: conv_net().eval(), "nothing to fold"),
    "other methods": (
        lambda: snn_ext.patch(conv_net(), imp=True, example_input=batch()).eval(),
        "nothing to fold",
    ),
    "folded before": (lambda: snn_ext.fold(_mpbn().eval()), "nothing to fold"),
    "training": (lambda: _mpbn(), "training mode"),
    "a norm in training": (lambda: _norm_training(), "training mode"),
    "a neuron in training": (_half_training, "training mode"),
    "normalised carry": (lambda: _mpbn(carry="normalised").eval(), r"carry='normalised'"),
    "one normalised carry": (lambda: _mixed().eval(), r"carry='normalised'"),
    "no statistics": (lambda: _untracked(_mpbn()).eval(), "running statistics"),
}


def _norm_training() -> nn.Module:
    net = _mpbn().eval()
    net[6].mpbn.train()
    return net


@pytest.mark.parametrize("what", UNFOLDABLE)
def test_what_cannot_be_folded_stays_as_it_is(what: str) -> None:
    """Also where another site could have been folded: all of the model or nothing."""
    make, words = UNFOLDABLE[what]
    net = make()
    before = state(net)
    with pytest.raises(FoldError, match=words) as caught:
        snn_ext.fold(net, example_input=batch())
    assert str(caught.value).splitlines()[-1].startswith("  do: ")
    assert same(before, state(net))


def test_a_refusal_says_which_site() -> None:
    net = _mixed().eval()
    with pytest.raises(FoldError, match=r"(?s)where: 6\n.*why: .*do: train with MPBN\(carry='raw'\)") as e:
        snn_ext.fold(net)
    assert e.value.where == "6"


def test_an_example_that_does_not_run_leaves_the_model_unfolded() -> None:
    net = _mpbn().eval()
    before = state(net)
    with pytest.raises(RuntimeError):
        snn_ext.fold(net, example_input=torch.zeros(4, 3, 1, 6, 6))
    assert same(before, state(net))


def test_wrapped_models_are_refused() -> None:
    with pytest.raises(UnsupportedSiteError, match=r"(?s)DataParallel.*do: "):
        snn_ext.fold(nn.DataParallel(_mpbn()).eval())


def folded_net(**options: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A folded net, an input, and the output from before the fold."""
    torch.manual_seed(5)
    x = batch()
    net = trained(snn_ext.patch(conv_net(), mpbn=MPBN(**options), imp=True, example_input=x), x)
    before = run(net, x)
    snn_ext.fold(net)
    snn_ext.reset(net)
    return net, x, before


@pytest.mark.parametrize("features", ["channel", "element"])
def test_a_folded_model_is_saved_and_copied(features: Any, tmp_path: Path) -> None:
    net, x, before = folded_net(features=features)
    copies = {
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "torch.save": _through_torch(net, tmp_path),
        "snn_ext.save": _through_snn_ext(net, tmp_path),
    }
    for how, other in copies.items():
        assert torch.equal(run(other.eval(), x), before), how
        assert [*other.state_dict()] == [*net.state_dict()], how
        assert str(snn_ext.report(other)) == str(snn_ext.report(net)), how
        with pytest.raises(FoldError):
            snn_ext.unpatch(other)


def _through_torch(net: nn.Module, folder: Path) -> nn.Module:
    torch.save(net, folder / "whole")
    return torch.load(folder / "whole", weights_only=False)  # type: ignore[no-any-return]


def _through_snn_ext(net: nn.Module, folder: Path) -> nn.Module:
    snn_ext.save(net, folder / "folded")
    fresh = snn_ext.load(conv_net(), folder / "folded")
    # A folded model loads its own kind of checkpoint too.
    assert snn_ext.load(fresh, folder / "folded") is fresh
    return fresh


def test_folded_checkpoints_need_a_fresh_model(tmp_path: Path) -> None:
    net, _, _ = folded_net()
    snn_ext.save(net, tmp_path / "folded")
    unfolded = snn_ext.patch(conv_net(), mpbn=True, imp=True, example_input=batch())
    with pytest.raises(snn_ext.AlreadyPatchedError, match="do: load into a fresh model"):
        snn_ext.load(unfolded, tmp_path / "folded")
    small = nn.Sequential(*conv_net()[:3])
    keys = [*small.state_dict()]
    with pytest.raises(snn_ext.CheckpointError):
        snn_ext.load(small, tmp_path / "folded")
    assert [*small.state_dict()] == keys
    assert type(small[2]) is neuron.LIFNode


def test_what_a_folded_model_says_of_itself() -> None:
    net, x, before = folded_net()
    keys = [key for key in net.state_dict() if ".mpbn." in key]
    assert keys == ["2.mpbn.threshold", "2.mpbn.sign", "6.mpbn.threshold", "6.mpbn.sign"]
    assert net.state_dict()["2.mpbn.threshold"].shape == (4, 1, 1)
    assert net.state_dict()["6.mpbn.threshold"].shape == (5,)
    assert "folded, cannot be" in str(snn_ext.report(net))
    notes = [row["note"] for row in snn_ext.report(net).to_dict()["sites"]]
    assert notes == ["folded, cannot be unpatched"] * 2
    with pytest.raises(FoldError, match=r"(?s)is folded.*where: 2, 6.*do: load the checkpoint from before"):
        snn_ext.unpatch(net)
    assert torch.equal(run(net, x), before), "the attempt changed nothing"
    with pytest.raises(FoldError, match=r"(?s)cannot be trained.*do: call model\.eval"):
        run(net.train(), x)
    assert torch.equal(run(net.eval(), x), before)


def test_folding_makes_no_gradient() -> None:
    net, x, _ = folded_net()
    assert not any(b.requires_grad for b in net.buffers())
    functional.reset_net(net)
    assert not net(x).requires_grad, "no path through the decision of the last neuron"


def test_the_example_measures_the_difference(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    x = batch()
    net = trained(snn_ext.patch(conv_net(), mpbn=True, example_input=x), x)
    snn_ext.fold(copy.deepcopy(net))
    assert capsys.readouterr().out == "", "nothing to measure without an example"
    snn_ext.fold(net, example_input=x)
    printed = capsys.readouterr().out
    assert printed == "folded 2 sites: largest output difference 0, spike mismatch 0\n"


def test_a_wrong_fold_would_be_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    x = batch()
    net = trained(snn_ext.patch(conv_net(), mpbn=True, example_input=x), x)
    right = MembraneBatchNorm.fold

    def flipped(self: MembraneBatchNorm, threshold: Any, *, fires_at_equality: bool) -> FoldedMembraneNorm:
        f = right(self, threshold, fires_at_equality=fires_at_equality)
        return FoldedMembraneNorm(f.threshold, -f.sign)

    monkeypatch.setattr(MembraneBatchNorm, "fold", flipped)
    snn_ext.fold(net, example_input=x)
    _, _, difference, mismatch = _numbers(capsys.readouterr().out)
    assert difference == 1.0
    assert 0.3 < mismatch <= 1.0


def _numbers(printed: str) -> tuple[str, str, float, float]:
    head, output, spikes = printed.strip().replace(":", ",").split(",")
    return head, printed, float(output.split()[-1]), float(spikes.split()[-1])


class Named(nn.Module):
    """Returns a dict, as networks with several heads do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, layer.Linear(5, 2, step_mode="m")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.head(self.net(x))}


def test_the_difference_of_a_dict_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference that is not looked at must not be reported as none."""
    torch.manual_seed(5)
    x = batch()
    net = trained(snn_ext.patch(Named(conv_net()), mpbn=True, example_input=x), x)
    right = MembraneBatchNorm.fold

    def never(self: MembraneBatchNorm, threshold: Any, *, fires_at_equality: bool) -> FoldedMembraneNorm:
        f = right(self, threshold, fires_at_equality=fires_at_equality)
        return FoldedMembraneNorm(torch.full_like(f.threshold, math.inf), f.sign.abs())

    monkeypatch.setattr(MembraneBatchNorm, "fold", never)
    snn_ext.fold(net, example_input=x)
    _, _, difference, mismatch = _numbers(capsys.readouterr().out)
    assert mismatch > 0
    assert difference > 0


def test_measuring_leaves_no_trace() -> None:
    """States in the middle of a sequence, random generators, statistics, hooks."""
    torch.manual_seed(5)
    x = batch()
    net = trained(snn_ext.patch(conv_net(), mpbn=True, imp=True, example_input=x), x)
    other = copy.deepcopy(net)
    for m in (net, other):
        with torch.no_grad():
            functional.reset_net(m)
            m(x)  # a sequence that goes on
    v, bn = net[2].v, copy.deepcopy(net[1].state_dict())
    value, example = v.clone(), batch(2, 7)
    draws = torch.random.get_rng_state(), random.getstate()
    snn_ext.fold(net, example_input=example)
    assert net[2].v is v
    assert torch.equal(v, value)
    assert torch.equal(torch.random.get_rng_state(), draws[0])
    assert random.getstate() == draws[1]
    assert all(torch.equal(t, bn[k]) for k, t in net[1].state_dict().items())
    assert not net[2]._forward_hooks
    with torch.no_grad():
        assert torch.equal(net(x), other(x)), "the sequence goes on where it was"


def test_random_inputs_are_drawn_alike_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    """Poisson coding inside the model is noise, not a difference made by folding."""

    class Poisson(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = conv_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net((torch.rand_like(x) < x.abs()).to(x))

    torch.manual_seed(5)
    x = batch()
    net = trained(snn_ext.patch(Poisson(), mpbn=True, example_input=x), x)
    assert not torch.equal(run(net, x), run(net, x))
    snn_ext.fold(net, example_input=x)
    assert capsys.readouterr().out.endswith("largest output difference 0, spike mismatch 0\n")


def test_an_unfolded_checkpoint_is_not_a_folded_one(tmp_path: Path) -> None:
    unfolded = _mpbn()
    snn_ext.save(unfolded, tmp_path / "unfolded")
    net = snn_ext.fold(_mpbn().eval())
    before = state(net)
    with pytest.raises(snn_ext.AlreadyPatchedError):
        snn_ext.load(net, tmp_path / "unfolded")
    assert same(before, state(net))


def test_patching_a_folded_model_again_changes_nothing() -> None:
    net = snn_ext.fold(_mpbn().eval())
    before = state(net)
    snn_ext.patch(net, mpbn=True, example_input=batch())
    assert same(before, state(net))


# --- shapes, dtypes, modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", [MPBN(), MPBN(affine=False), MPBN(carry="normalised"), MPBN(momentum=0.0)])
@pytest.mark.parametrize("steps", [1, 3])
def test_it_trains(option: MPBN, steps: int) -> None:
    net = snn_ext.patch(conv_net(), mpbn=option, imp=True, example_input=batch())
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.1, weight_decay=1e-2))
    snn_ext.check_optimizer(net, optimizer)
    for _ in range(3):
        functional.reset_net(net)
        optimizer.zero_grad()
        net(batch(steps)).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert [n.bn.num_batches_tracked.item() for n in norms(net)] == [3 * steps] * 2


def test_norm_affines_are_not_decayed() -> None:
    net = _mpbn()
    decayed, free = snn_ext.param_groups(net, lr=0.1, weight_decay=1e-2)
    affines = {id(p) for norm in norms(net) for p in norm.parameters()}
    assert affines <= {id(p) for p in free["params"]}
    assert not affines & {id(p) for p in decayed["params"]}


def test_a_batch_of_one() -> None:
    net = snn_ext.patch(conv_net(), mpbn={"2": True}, example_input=batch())
    assert net(batch(size=1)).shape == (4, 1, 5), "per channel there is space to average over"
    flat = snn_ext.patch(conv_net(), mpbn={"6": True}, example_input=batch())
    with pytest.raises(OptionError, match=r"(?s)one value per channel: \[1, 5\].*do: train with more than"):
        flat(batch(size=1))
    assert run(flat.eval(), batch(size=1)).shape == (4, 1, 5)
    assert run(snn_ext.fold(flat), batch(size=1)).shape == (4, 1, 5)


def test_an_example_of_one_is_enough_to_patch() -> None:
    """The trace runs before the norms are there."""
    net = snn_ext.patch(conv_net(), mpbn=True, example_input=batch(1, 1))
    assert [n.features for n in norms(net)] == [(4, 6, 6), (5,)]


@pytest.mark.parametrize("mode", ["train", "eval", "folded"])
def test_another_resolution(mode: str) -> None:
    x = torch.randn(3, 4, 2, 8, 8)

    def net(features: Any) -> nn.Module:
        whole = conv_net()[:3]
        snn_ext.patch(whole, mpbn=MPBN(features=features), example_input=batch())
        whole.train(mode == "train")
        return snn_ext.fold(whole) if mode == "folded" else whole

    assert net("channel")(x).shape == (3, 4, 4, 8, 8)
    with pytest.raises(ShapeMismatchError, match=r"(?s)\[4, 6, 6\].*do: "):
        net("element")(x)


def test_shapes_are_inferred_where_the_layer_before_tells() -> None:
    net = nn.Sequential(layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), neuron.IFNode())
    functional.set_step_mode(net, "m")
    snn_ext.patch(net, mpbn=True)
    assert net(batch()).shape == (4, 3, 4, 4, 4)
    assert net[2].mpbn.bn.num_features == 4
    bare = nn.Sequential(layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), neuron.IFNode())
    with pytest.raises(snn_ext.ShapeUnknownError, match=r"(?s)do: pass example_input"):
        snn_ext.patch(bare, mpbn=MPBN(features="element"))


def test_channels_last() -> None:
    torch.manual_seed(2)
    net = trained(snn_ext.patch(conv_net(), mpbn=True, example_input=batch()), batch())
    functional.set_step_mode(net, "s")
    x = torch.randn(5, 2, 6, 6) * 2
    functional.reset_net(net)
    plain = net[:3](x)
    last = x.to(memory_format=torch.channels_last)
    functional.reset_net(net)
    net[0].to(memory_format=torch.channels_last)
    spikes = net[:3](last)
    assert spikes.is_contiguous(memory_format=torch.channels_last)
    # The convolution itself sums in another order; at most a membrane within rounding may differ.
    assert (spikes != plain).float().mean() < 1e-2
    functional.reset_net(net)
    assert net.train()(last).shape == (5, 5)


@pytest.mark.parametrize("features", ["channel", "element"])
@pytest.mark.parametrize("imp", [None, True])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_states_and_statistics_stay_float32_under_autocast(features: Any, imp: Any, mode: str) -> None:
    net: nn.Module = nn.Sequential(layer.Linear(6, 5), neuron.LIFNode())
    functional.set_step_mode(net, mode)
    x = torch.randn(3, 4, 6)
    snn_ext.patch(net, mpbn=MPBN(features=features), imp=imp, example_input=x if mode == "m" else x[0])
    seen: list[torch.dtype] = []
    net[1].mpbn.register_forward_hook(lambda m, i, o: seen.extend((i[0].dtype, o.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        spikes = net(x) if mode == "m" else torch.stack([net(x_t) for x_t in x])
    assert spikes.dtype is torch.bfloat16
    assert net[1].v.dtype is torch.float32
    assert seen == [torch.float32] * 6
    spikes.float().square().sum().backward()
    assert net[1].mpbn.bn.weight.grad.dtype is torch.float32
    before = _autocast(net.eval(), x)
    assert torch.equal(_autocast(snn_ext.fold(net), x), before), "folding is exact there too"


def _autocast(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        return net(x) if net[1].step_mode == "m" else torch.stack([net(x_t) for x_t in x])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["patch, then convert", "convert, then patch"])
def test_half_models(dtype: torch.dtype, order: str) -> None:
    x = torch.randn(3, 4, 6).to(dtype)
    net: nn.Module = nn.Sequential(layer.Linear(6, 5), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    if order == "patch, then convert":
        snn_ext.patch(net, mpbn=True)
        net.to(dtype)
    else:
        net.to(dtype)
        snn_ext.patch(net, mpbn=True)
    spikes = net(x)
    assert spikes.dtype is dtype
    assert net[1].v.dtype is torch.float32


def test_frozen_statistics() -> None:
    """mpbn.eval() inside a training model: running statistics are used and kept, the affine learns."""
    torch.manual_seed(6)
    x = batch()
    net = trained(snn_ext.patch(conv_net(), mpbn=True, example_input=x), x)
    expected = run(net, x)
    net.train()
    net[1].eval()
    for norm in norms(net):
        norm.eval()
    before = [b.clone() for norm in norms(net) for b in norm.buffers()]
    functional.reset_net(net)
    spikes = net(x)
    assert torch.equal(spikes, expected)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [b for norm in norms(net) for b in norm.buffers()], strict=True)
    )
    spikes.sum().backward()
    assert bool((norms(net)[1].bn.weight.grad != 0).any())
    assert run(net, batch(size=1)).shape == (4, 1, 5), "and a batch of one is fine"


def test_without_affine() -> None:
    net = trained_without_affine()
    assert not [key for key in net.state_dict() if key.endswith("mpbn.bn.weight")]
    x = batch()
    before = run(net, x)
    assert torch.equal(run(snn_ext.fold(net), x), before)


def trained_without_affine() -> nn.Module:
    torch.manual_seed(7)
    net = snn_ext.patch(conv_net(), mpbn=MPBN(affine=False), example_input=batch())
    run(net.train(), batch())
    return net.eval()


# --- with IMP, and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [{"mpbn": True}, {"mpbn": True, "imp": True}], ids=str)
@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode])
def test_patch_and_unpatch(methods: dict[str, Any], node: Callable[[], nn.Module]) -> None:
    x = batch()
    net = conv_net(node)
    original = run(net.eval(), x)
    functional.reset_net(net)
    before, aliases = fingerprint(net), dict(net.named_modules())
    keys = [*net.state_dict()]
    snn_ext.patch(net, example_input=x, **methods)
    after = fingerprint(net)
    snn_ext.patch(net, example_input=x, **methods)
    assert same(after, fingerprint(net)), "again with the same options: nothing"
    assert [k for k in net.state_dict() if k in keys] == keys
    assert isinstance(net[2], node)
    assert {n.split(".")[1] for n in net.state_dict() if n.startswith("2.")} - {"w"} == set(methods)
    run(net, x)
    functional.reset_net(net)
    snn_ext.unpatch(net)
    assert dict(net.named_modules()) == aliases
    assert same(before, fingerprint(net))
    assert torch.equal(run(net, x), original)


def test_imp_sets_the_first_membrane_of_a_normalised_neuron() -> None:
    node = neuron.IFNode(step_mode="m")
    x = torch.zeros(2, 3, 5)
    snn_ext.patch(node, mpbn=True, imp=IMP(init=0.75), example_input=x)
    node.eval()
    assert torch.equal(run(node, x), torch.zeros_like(x))
    assert torch.equal(node.v, torch.full((3, 5), 0.75))
    with torch.no_grad():
        node.imp.fill_(1.25)
    assert run(node, x).tolist() == [[[1] * 5] * 3, [[0] * 5] * 3]


def test_other_options_on_a_patched_model() -> None:
    net = _mpbn()
    with pytest.raises(snn_ext.AlreadyPatchedError, match=r"do: snn_ext\.unpatch"):
        snn_ext.patch(net, mpbn=MPBN(carry="normalised"), example_input=batch())
    with pytest.raises(snn_ext.AlreadyPatchedError, match=r"do: snn_ext\.unpatch"):
        snn_ext.patch(net, imp=True, example_input=batch())


@pytest.mark.parametrize("methods", [{"mpbn": True}, {"mpbn": True, "imp": True}], ids=str)
def test_older_checkpoints_load(methods: dict[str, Any]) -> None:
    old = conv_net()
    net = snn_ext.patch(conv_net(), example_input=batch(), **methods)
    with torch.no_grad():
        norms(net)[0].bn.weight.fill_(0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.load_state_dict(old.state_dict(), strict=True)
    assert len(caught) == 1
    assert "10 tensors" in str(caught[0].message) or "12 tensors" in str(caught[0].message)
    assert torch.equal(net[0].weight, old[0].weight)
    assert torch.equal(norms(net)[0].bn.weight, torch.full((4,), 0.5)), "what is new keeps its value"
    torn = {**old.state_dict(), "2.mpbn.bn.weight": torch.ones(4)}
    with pytest.raises(snn_ext.CheckpointError, match="incomplete"):
        net.load_state_dict(torn)


# --- neurons that MPBN cannot take over -----------------------------------------------------------------


class OwnStep(neuron.LIFNode):
    """A user's charge."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return super().single_step_functional_forward((inputs[0] * 2,), states, **kwargs)


class OwnSequence(neuron.LIFNode):
    """A user's sequence: spikes of two."""

    def multi_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (spikes,), states = super().multi_step_functional_forward(inputs, states, **kwargs)
        return (2 * spikes,), states


class OwnLoop(neuron.IFNode):
    """A user's loop, which takes the initial membrane from the framework and does the rest itself."""

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (v,) = self.materialize_states((x_seq,), tuple(self._memories.values()), "m")
        spikes = []
        for x in x_seq:
            v = v + x
            spikes.append(self.surrogate_function(v - self.v_threshold))
            v = v - spikes[-1].detach()
        return torch.stack(spikes)


ODD: dict[str, Callable[[], nn.Module]] = {
    "QIFNode": neuron.QIFNode,
    "KLIFNode": neuron.KLIFNode,
    "OwnStep": OwnStep,
    "OwnSequence": OwnSequence,
    "OwnLoop": OwnLoop,
}


@pytest.mark.parametrize("name", ODD)
def test_neurons_with_a_step_of_their_own_are_skipped(name: str) -> None:
    """MPBN would replace that step; IMP, which keeps it, is still put in."""

    def net() -> nn.Module:
        made = nn.Sequential(layer.Linear(6, 4), ODD[name](), layer.Linear(4, 5), neuron.IFNode())
        functional.set_step_mode(made, "m")
        return made

    x = torch.randn(3, 4, 6)
    plan = snn_ext.plan(net(), mpbn=True, imp=True, example_input=x)
    assert {d.site.path: {*d.methods} for d in plan.decisions} == {"1": {"imp"}, "3": {"imp", "mpbn"}}
    assert "step" in plan.decisions[0].omitted
    assert "step" in str(plan), "the reason is in the table"
    plan.apply()
    only = snn_ext.plan(net(), mpbn=True, example_input=x)
    assert [{*d.methods} for d in only.decisions] == [set(), {"mpbn"}]
    assert "step" in only.decisions[0].reason
    for named in ({"mpbn": {"1": True}}, {"mpbn": True, "include": ["1", "3"]}):
        fresh = net()
        before = fingerprint(fresh)
        with pytest.raises(UnsupportedSiteError, match=r"(?s)mpbn cannot be put into .*do: leave this site"):
            snn_ext.patch(fresh, example_input=x, **named)
        assert same(before, fingerprint(fresh))


def test_a_subclass_that_only_adds_is_fine() -> None:
    class Counting(neuron.LIFNode):
        calls = 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().forward(*args, **kwargs)

    net = nn.Sequential(layer.Linear(6, 4), Counting())
    functional.set_step_mode(net, "m")
    snn_ext.patch(net, mpbn=True)
    net(torch.randn(3, 4, 6))
    assert net[1].calls == 1
    assert int(net[1].mpbn.bn.num_batches_tracked) == 3


def test_a_threshold_that_became_a_tensor() -> None:
    net = _mpbn()
    net[2].v_threshold = torch.ones(())
    with pytest.raises(UnsupportedSiteError, match=r"(?s)changed since it was patched.*do: set v_threshold"):
        net(batch())
