"""MPBN in snnTorch's neurons: equations, the reset that agrees with the spike, the fold, and refusals."""

from __future__ import annotations

import copy
import math
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate, utils
from torch import Tensor, nn

import snn_ext
from snn_ext import IMP, MPBN, FoldError, OptionError, ShapeMismatchError, UnsupportedSiteError
from snn_ext.norms import FoldedMembraneNorm, MembraneBatchNorm
from snn_ext_snntorch import neurons
from tests.property.round_trip import without_state
from tests.property.test_fold import Tally, rounding_bound
from tests.unit.test_mpbn import (
    EPS,
    MOMENTUM,
    Neuron,
    Spike,
    Step,
    loss_weights,
    reference_step,
    step_inputs,
    step_of,
)
from tests.unit.test_plan import fingerprint, same


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    """snnTorch lists every neuron of the process and utils.reset walks that list."""
    kept = snn.SpikingNeuron.instances
    snn.SpikingNeuron.instances = []
    yield
    snn.SpikingNeuron.instances = kept


def spike64(u: Tensor) -> Tensor:
    """A surrogate that keeps float64, as snnTorch's own do not: their spikes are always float32."""
    spikes: Tensor = Spike.apply(u, False)
    return spikes


def conv_net(**options: Any) -> nn.Sequential:
    """One step of a small conv net: [B, 2, 6, 6] -> spikes and membrane [B, 5]."""
    options = {"beta": 0.8, "init_hidden": True, **options}
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        snn.Leaky(**options),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
        snn.Leaky(output=True, **options),
    )
    with torch.no_grad():
        net[4].weight.mul_(6)  # so that the last neurons fire
    return net


def sequence(steps: int = 5, size: int = 3) -> Tensor:
    return torch.randn(steps, size, 2, 6, 6) * 2


def play(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and membranes of the last neuron, from a reset on."""
    utils.reset(net)
    with torch.no_grad():
        spikes, membranes = zip(*(net(x_t) for x_t in x), strict=True)
    return torch.stack(spikes), torch.stack(membranes)


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
        play(net, x)
    return net.eval()


def one(neuron: nn.Module, features: tuple[int, ...] = (3,), **methods: Any) -> Any:
    """A neuron patched on its own."""
    return snn_ext.patch(neuron, **(methods or {"mpbn": True}), example_input=torch.zeros(2, *features))


# --- the training step ---------------------------------------------------------------------------------

RESETS = {"subtract": "soft", "zero": "hard", "none": "none"}


def patched(neuron: Any, per: str, carry: str, inputs: dict[str, Tensor]) -> Any:
    """`neuron` in float64 with MPBN and IMP, and the given parameters."""
    option = MPBN(features=per, carry=carry, eps=EPS, momentum=MOMENTUM)  # type: ignore[arg-type]
    snn_ext.patch(neuron, mpbn=option, imp=IMP(init=0.0), example_input=inputs["x"][0])
    neuron.double()
    with torch.no_grad():
        neuron.mpbn.bn.weight.copy_(inputs["gamma"])
        neuron.mpbn.bn.bias.copy_(inputs["beta"])
        neuron.imp.copy_(inputs["v0"])
    return neuron


def neuron_step(neuron: Any, x: Tensor) -> Step:
    """One training step in the loop that snnTorch's users write."""
    x = x.clone().requires_grad_()
    mem, spikes = neuron.reset_mem(), []
    for x_t in x:
        spk, mem = neuron(x_t, mem)
        spikes.append(spk)
    s = torch.stack(spikes)
    ((s * loss_weights(s.double())).sum() + (mem * loss_weights(mem)).sum()).backward()
    learnt = {"decay": neuron.beta} if isinstance(neuron.beta, nn.Parameter) else {}
    return step_of(s.double(), mem, neuron.mpbn, {"x": x, "v0": neuron.imp, **learnt})


def leaky(decay: Tensor, **equations: Any) -> Neuron:
    return Neuron(lambda x, v: decay * v + x, at_equality=False, **equations)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("carry", ["raw", "normalised"])
@pytest.mark.parametrize("per", ["channel", "element"])
def test_a_training_step_of_leaky_equals_the_equations(reset: str, delay: bool, carry: str, per: str) -> None:
    """The delayed reset is detached, the immediate one is not."""
    inputs = step_inputs(per)
    neuron = snn.Leaky(
        beta=0.8,
        threshold=0.9,
        spike_grad=spike64,
        learn_beta=True,
        reset_mechanism=reset,
        reset_delay=delay,
    )
    patched(neuron, per, carry, inputs)
    decay = neuron.beta.detach().clone().requires_grad_()
    theta = neuron.threshold.detach().clone()
    equations = leaky(decay, threshold=theta, reset=RESETS[reset], delayed=delay, carry=carry)
    expected = reference_step(**inputs, per=per, neuron=equations, learnt={"decay": decay})
    assert "decay" in expected.gradients
    neuron_step(neuron, inputs["x"]).check_equals(expected)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("carry", ["raw", "normalised"])
def test_a_training_step_of_lapicque_equals_the_equations(reset: str, carry: str) -> None:
    """Its reset to zero wipes the new input, too."""
    inputs = step_inputs("channel")
    neuron = snn.Lapicque(R=2.0, C=1.5, time_step=0.9, spike_grad=spike64, reset_mechanism=reset)
    patched(neuron, "channel", carry, inputs)
    dt = neuron.time_step.double()
    equations = Neuron(
        lambda x, v: x * dt / 1.5 + (1 - dt / 3) * v,
        at_equality=False,
        reset=RESETS[reset],
        delayed=True,
        late_wipe=True,
        carry=carry,
    )
    expected = reference_step(**inputs, per="channel", neuron=equations)
    neuron_step(neuron, inputs["x"]).check_equals(expected)


def test_a_training_step_with_the_stock_surrogate() -> None:
    """Its spikes are float32, so the loss weighs them by short binary fractions; membranes are float64."""
    inputs = step_inputs("channel")
    neuron = patched(snn.Leaky(beta=0.8, spike_grad=surrogate.atan(alpha=2.0)), "channel", "raw", inputs)
    equations = leaky(neuron.beta.detach(), reset="soft", delayed=True)
    expected = reference_step(**inputs, per="channel", neuron=equations)
    neuron_step(neuron, inputs["x"]).check_equals(expected)


@pytest.mark.parametrize(
    "twin",
    [{"reset": "hard"}, {"delayed": False}, {"carry": "normalised"}, {"threshold": 1.1}],
    ids=str,
)
def test_the_comparison_sees_wrong_equations(twin: dict[str, Any]) -> None:
    inputs = step_inputs("channel")
    neuron = patched(snn.Leaky(beta=0.8, spike_grad=spike64), "channel", "raw", inputs)
    step = neuron_step(neuron, inputs["x"])
    right: dict[str, Any] = {"reset": "soft", "delayed": True}
    decay = neuron.beta.detach()
    step.check_equals(reference_step(**inputs, per="channel", neuron=leaky(decay, **right)))
    wrong = leaky(decay, **{**right, **twin})
    assert step.differs_from(reference_step(**inputs, per="channel", neuron=wrong))


def test_a_stock_reset_beside_mpbn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin that hooks into `fire` alone: the next step then resets by another decision."""
    inputs = step_inputs("channel")
    neuron = patched(snn.Leaky(beta=0.8, spike_grad=spike64), "channel", "raw", inputs)
    right = neuron_step(copy.deepcopy(neuron), inputs["x"])
    monkeypatch.setattr(neurons.MPBN, "mem_reset", snn.SpikingNeuron.mem_reset)
    assert neuron_step(neuron, inputs["x"]).differs_from(right)


# --- an identity norm changes nothing --------------------------------------------------------------------


def identity(net: nn.Module) -> nn.Module:
    """Norms that return their input to the bit: var + eps = 1, mean 0."""
    for norm in norms(net):
        norm.bn.eps = 2**-10
        norm.bn.running_var.fill_(1 - 2**-10)
    return net.eval()


@pytest.mark.parametrize("kind", ["Leaky", "Leaky, immediate", "Lapicque"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("carry", ["raw", "normalised"])
@pytest.mark.parametrize("fold", [False, True])
def test_with_an_identity_norm_it_is_the_stock_neuron(kind: str, reset: str, carry: Any, fold: bool) -> None:
    if fold and carry == "normalised":
        carry = "raw"
    make: dict[str, Callable[[], nn.Module]] = {
        "Leaky": lambda: snn.Leaky(beta=0.9, threshold=0.7, reset_mechanism=reset),
        "Leaky, immediate": lambda: snn.Leaky(beta=0.9, reset_mechanism=reset, reset_delay=False),
        "Lapicque": lambda: snn.Lapicque(beta=0.9, threshold=0.05, reset_mechanism=reset),
    }
    stock, neuron = make[kind](), make[kind]()
    identity(one(neuron, (40,), mpbn=MPBN(carry=carry)))
    if fold:
        snn_ext.fold(neuron)
    mems: list[Tensor] = [stock.reset_mem(), neuron.reset_mem()]
    fired = 0.0
    # An immediate reset of the stock neuron is not final where the membrane is above the threshold after
    # it (it decides the next step as if that were a second reset): inputs of at most the threshold.
    for x in torch.randn(8, 5, 40).clamp(max=1.0):
        s, mems[0] = stock(x, mems[0])
        z, mems[1] = neuron(x, mems[1])
        assert torch.equal(s, z)
        assert torch.equal(*mems)
        fired += s.mean().item()
    assert 0.5 < fired < 7.5


# --- the spikes travel with the membrane ----------------------------------------------------------------


def firing(threshold: float = 1.0, **options: Any) -> Any:
    """A neuron whose norm shifts every membrane by 2, so that it fires far below its threshold."""
    neuron = identity(one(snn.Leaky(beta=0.5, threshold=threshold, **options)))
    with torch.no_grad():
        norms(neuron)[0].bn.bias.fill_(2.0)
    return neuron


def stepped(neuron: Any, mem: Tensor, x: float = 0.0) -> tuple[list[float], list[float]]:
    spikes, after = neuron(torch.full((2, 3), x), mem)
    return spikes[:, 0].tolist(), after[:, 0].tolist()


def first(neuron: Any) -> Tensor:
    """The membrane after one step with input 0.25, in which it fired."""
    spikes, mem = neuron(torch.full((2, 3), 0.25), neuron.reset_mem())
    assert spikes.tolist() == [[1.0] * 3] * 2
    return mem  # type: ignore[no-any-return]


def test_it_resets_where_it_fired() -> None:
    """0.25 is below the threshold: the stock neuron would not reset."""
    neuron = firing()
    assert stepped(neuron, first(neuron)) == ([1, 1], [0.125 - 1] * 2)
    zero = firing(reset_mechanism="zero")
    assert stepped(zero, first(zero), 0.5) == ([1, 1], [0.5] * 2)
    none = firing(reset_mechanism="none")
    assert stepped(none, first(none)) == ([1, 1], [0.125] * 2)


def test_it_does_not_reset_where_it_did_not_fire() -> None:
    neuron = identity(one(snn.Leaky(beta=0.5)))
    with torch.no_grad():
        norms(neuron)[0].bn.bias.fill_(-10.0)
    _, mem = neuron(torch.full((2, 3), 4.0), neuron.reset_mem())
    assert stepped(neuron, mem) == ([0, 0], [2.0] * 2)


def test_an_immediate_reset_is_not_repeated() -> None:
    neuron = firing(reset_delay=False)
    mem = first(neuron)
    assert mem[:, 0].tolist() == [0.25 - 1] * 2
    assert stepped(neuron, mem) == ([1, 1], [(0.25 - 1) / 2 - 1] * 2)


def test_graded_spikes_reset_once() -> None:
    single, double = firing(), firing(graded_spikes_factor=2.0)
    mems = [n.reset_mem() for n in (single, double)]
    for x in torch.randn(5, 2, 3):
        a, mems[0] = single(x, mems[0])
        b, mems[1] = double(x, mems[1])
        assert torch.equal(2 * a, b)
        assert torch.equal(*mems)


def test_a_start_owes_no_reset() -> None:
    """A membrane that no input charged never fired, however high: V0 and the user's own start values."""
    neuron = identity(one(snn.Leaky(beta=0.5), mpbn=True, imp=IMP(init=4.0)))
    assert stepped(neuron, neuron.reset_mem()) == ([1, 1], [2.0] * 2)
    plain = identity(one(snn.Leaky(beta=0.5)))
    assert stepped(plain, torch.full((2, 3), 4.0)) == ([1, 1], [2.0] * 2)


CARRIED: dict[str, Callable[[Tensor], Tensor]] = {
    "the same": lambda mem: mem,
    "detach": lambda mem: mem.detach(),
    "detach_": lambda mem: mem.detach_(),
    "in place": lambda mem: mem.detach().mul_(1.0),
    "to": lambda mem: mem.to(torch.float32),
    "carried clone": lambda mem: snn_ext.carried(mem.clone(), of=mem),
    "carried mask": lambda mem: snn_ext.carried(mem * torch.ones(2, 1), of=mem),
    "carried twice": lambda mem: _again(snn_ext.carried(mem.clone(), of=mem)),
}


def _again(mem: Tensor) -> Tensor:
    return snn_ext.carried(mem + 0, of=mem)


@pytest.mark.parametrize("how", CARRIED)
@pytest.mark.parametrize("imp", [False, True])
def test_the_pending_reset_survives(how: str, imp: bool) -> None:
    methods = {"mpbn": True, "imp": IMP(init=0.0)} if imp else {"mpbn": True}
    neuron = identity(one(snn.Leaky(beta=0.5), **methods))
    with torch.no_grad():
        norms(neuron)[0].bn.bias.fill_(2.0)
    assert stepped(neuron, CARRIED[how](first(neuron))) == ([1, 1], [0.125 - 1] * 2)


def test_masked_membranes_keep_the_reset_of_the_others() -> None:
    """Reinforcement learning: episode 0 ends between two steps, episode 1 goes on."""
    neuron = firing()
    mem = first(neuron)
    done = torch.tensor([[1.0], [0.0]])
    _, after = stepped(neuron, snn_ext.carried(mem * (1 - done), of=mem))
    assert after[1] == 0.125 - 1


@pytest.mark.parametrize("how", ["carried mask", "in place"])
def test_a_membrane_set_to_zero_owes_no_reset(how: str) -> None:
    """As in the stock neuron, which sees no spike in a membrane of zero: an episode that ended must not
    be charged for its last spike."""
    for neuron in (snn.Leaky(beta=0.5, threshold=0.2), firing(threshold=0.2)):
        mem = first(neuron)
        if how == "in place":
            with torch.no_grad():
                mem[0] = 0
        else:
            mem = snn_ext.carried(mem * torch.tensor([[0.0], [1.0]]), of=mem)
        _, after = stepped(neuron, mem)
        assert after == pytest.approx([0.0, 0.125 - 0.2]), type(neuron).__name__


def test_carried_without_the_membrane_it_comes_from() -> None:
    neuron = firing()
    mem = first(neuron)
    with pytest.raises(
        OptionError, match=r"(?s)which spikes it fired.*do: snn_ext\.carried\(new_mem, of=mem\)"
    ):
        neuron(torch.zeros(2, 3), snn_ext.carried(mem * 1.0))
    late = firing(reset_delay=False)
    stepped(late, snn_ext.carried(first(late) * 1.0))  # nothing is pending: nothing is missing


def test_without_carried_a_new_tensor_is_a_new_sequence() -> None:
    """Documented: such a tensor cannot be told from the user's own start value."""
    neuron = firing()
    assert stepped(neuron, first(neuron).clone()) == ([1, 1], [0.125] * 2)


def test_resets_end_the_sequence() -> None:
    x = torch.full((2, 3), 0.25)
    for end in (
        utils.reset,
        snn_ext.reset,
        lambda net: net[0].reset_mem(),
        lambda net: net[0].init_leaky(),
        lambda net: snn.Leaky.reset_hidden(),
    ):
        net = nn.Sequential(firing(init_hidden=True))
        before = net(x), net[0].mem.clone()
        net(x)
        end(net)
        after = net(x), net[0].mem
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        snn.Leaky.detach_hidden()
        net(x)
        assert net[0].mem[0, 0] == 0.125 + 0.25 - 1, "detaching is not a reset"


def test_another_batch_size_starts_anew() -> None:
    neuron = firing(init_hidden=True)
    neuron(torch.full((2, 3), 0.25))
    neuron(torch.full((4, 3), 0.25))
    assert torch.equal(neuron.mem, torch.full((4, 3), 0.25))


def test_every_loop_gives_the_same() -> None:
    """init_leaky, zeros, states without passing them, init_hidden: the idioms of snnTorch's users."""
    torch.manual_seed(3)
    x = torch.randn(6, 4, 3) * 2
    explicit, hidden = one(snn.Leaky(beta=0.8)), one(snn.Leaky(beta=0.8, init_hidden=True))

    def loop(start: Callable[[], Any]) -> Tensor:
        mem, spikes = start(), []
        for x_t in x:
            spk, mem = explicit(x_t, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    def unpassed() -> Tensor:
        explicit.reset_mem()
        return torch.stack([explicit(x_t)[0] for x_t in x])

    def init_hidden() -> Tensor:
        utils.reset(nn.Sequential(hidden))
        return torch.stack([hidden(x_t) for x_t in x])

    expected = loop(explicit.init_leaky)
    assert 0.1 < expected.mean() < 0.9
    for other in (loop(lambda: torch.zeros(4, 3)), unpassed(), init_hidden()):
        assert torch.equal(other, expected)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "dtype"])
def test_a_sequence_goes_on_in_a_copy(how: str) -> None:
    neuron = firing(init_hidden=True, surrogate_disable=True)
    with torch.no_grad():
        neuron(torch.full((2, 3), 0.25))
        other = {
            "deepcopy": lambda: copy.deepcopy(neuron),
            "pickle": lambda: pickle.loads(pickle.dumps(neuron)),
            "dtype": lambda: copy.deepcopy(neuron).double().float(),
        }[how]()
        other(torch.zeros(2, 3))
    assert torch.equal(other.mem, torch.full((2, 3), 0.125 - 1))


def test_patched_in_the_middle_of_a_sequence() -> None:
    """The pending reset is then the stock neuron's: with an identity norm the sequence goes on unchanged."""
    stock, neuron = (snn.Leaky(beta=0.9, init_hidden=True) for _ in range(2))
    x = torch.randn(8, 4, 3) * 2
    with torch.no_grad():
        for x_t in x[:4]:
            stock(x_t)
            neuron(x_t)
        assert bool((neuron.mem > 1).any()), "a reset is pending"
        snn_ext.patch(neuron, mpbn=True, example_input=x[0])
        identity(neuron)
        for x_t in x[4:]:
            assert torch.equal(stock(x_t), neuron(x_t))
            assert torch.equal(stock.mem, neuron.mem)


def test_truncated_backpropagation() -> None:
    """detach between chunks: the second backward does not reach into the first chunk."""
    neuron = one(snn.Leaky(beta=0.8))
    mem = neuron.init_leaky()
    for _ in range(3):
        mem, spikes = mem.detach(), []
        for x in torch.randn(3, 4, 3):
            spk, mem = neuron(x, mem)
            spikes.append(spk)
        torch.stack(spikes).sum().backward()
    assert int(neuron.mpbn.bn.num_batches_tracked) == 9


# --- the fold ------------------------------------------------------------------------------------------


def random_net(r: random.Random) -> tuple[nn.Module, Tensor]:
    """Two patched layers with statistics of their own data (down to tiny variances), and an input."""
    torch.manual_seed(r.randrange(2**31))
    dtype, reset = r.choice([torch.float32, torch.float64]), r.choice([*RESETS])
    common: dict[str, Any] = {"init_hidden": True, "reset_mechanism": reset, "spike_grad": spike64}
    threshold = r.choice([1.0, 0.7, torch.rand(()) + 0.5, torch.rand(1) + 0.5])

    def neuron(n: int) -> nn.Module:
        theta = torch.rand(n) + 0.5 if isinstance(threshold, Tensor) and threshold.ndim else threshold
        if lapicque:
            return snn.Lapicque(beta=0.6, threshold=theta, **common)
        return snn.Leaky(beta=0.8, threshold=theta, reset_delay=delay, **common)

    lapicque, delay = r.random() < 0.3, r.random() < 0.7
    net = nn.Sequential(nn.Linear(3, 4), neuron(4), nn.Linear(4, 3), neuron(3)).to(dtype)
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
    snn_ext.patch(net, mpbn=option, example_input=x[0])
    steps(net.train(), x)
    for i in (1, 3):
        _affine(net[i], r)
    return net.eval(), x


def _affine(neuron: Any, r: random.Random) -> None:
    bn = neuron.mpbn.bn
    thetas = neuron.threshold.expand(bn.num_features).tolist()
    for i in range(bn.num_features if bn.affine else 0):
        gamma = r.choice([0.0, -0.0, *[r.choice([-1, 1]) * r.uniform(0.2, 3)] * 5])
        with torch.no_grad():
            bn.weight[i] = gamma
            # At the threshold with a constant input nothing but rounding would decide.
            bn.bias[i] = r.choice([0.0, thetas[i], 2.0]) if gamma == 0 else r.uniform(0, 2)


def steps(net: nn.Module, x: Tensor) -> Tensor:
    snn_ext.reset(net)
    with torch.no_grad():
        return torch.stack([net(x_t) for x_t in x])


class Recorder:
    """Spikes of every neuron, and where rounding alone may decide, in one run."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        self.spikes: dict[int, list[Tensor]] = {}
        self.near = False
        sites = [m for m in net.modules() if hasattr(m, "mpbn")]
        handles = [s.register_forward_hook(self._note) for s in sites]
        handles += [s.mpbn.register_forward_hook(self._distance(s)) for s in sites]
        steps(net, x)
        for handle in handles:
            handle.remove()

    def _note(self, site: nn.Module, _: Any, output: Any) -> None:
        self.spikes.setdefault(id(site), []).append(output)

    def _distance(self, site: Any) -> Callable[..., None]:
        def hook(norm: Any, args: tuple[Tensor], _: Tensor) -> None:
            theta = norm.fold(site.threshold, fires_at_equality=False).threshold.double()
            distance = (args[0].double() - theta).abs()
            self.near |= bool((distance <= rounding_bound(args[0], site.threshold, norm)).any())

        return hook if isinstance(site.mpbn, MembraneBatchNorm) else lambda *_: None


EXAMPLES = 350


def test_no_spike_of_a_network_differs() -> None:
    tally = Tally()

    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    @given(r=st.randoms(use_true_random=True))  # else most of the examples are others again
    def check(r: random.Random) -> None:
        snn.SpikingNeuron.instances.clear()
        net, x = random_net(r)
        tally.tried(x)
        before = Recorder(net, x)
        snn_ext.fold(net)
        after = Recorder(net, x)
        for site, recorded in before.spikes.items():
            s, f = torch.stack(recorded), torch.stack(after.spikes[site])
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
        after = Recorder(net, x)
        pairs = zip(before.spikes.values(), after.spikes.values(), strict=True)
        seen += any(not torch.equal(torch.stack(s), torch.stack(f)) for s, f in pairs)
    assert seen > 15


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("features", ["channel", "element"])
@pytest.mark.parametrize("imp", [None, True])
def test_a_conv_net_folds(reset: str, features: Any, imp: Any) -> None:
    torch.manual_seed(1)
    x = sequence()
    net = conv_net(reset_mechanism=reset)
    snn_ext.patch(net, mpbn=MPBN(features=features), imp=imp, example_input=x[0])
    trained(net, x)
    before = play(net, x)
    assert 0 < before[0].mean() < 1
    assert snn_ext.fold(net) is net
    assert all(torch.equal(a, b) for a, b in zip(play(net, x), before, strict=True))


def test_the_spikes_of_a_folded_neuron_have_the_same_dtype() -> None:
    """Float32 for a float64 neuron too, as snnTorch's surrogates have it."""
    neuron = one(snn.Leaky(beta=0.8)).double().eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    before = neuron(x, neuron.reset_mem())
    snn_ext.fold(neuron)
    after = neuron(x, neuron.reset_mem())
    assert [t.dtype for t in after] == [t.dtype for t in before]


class Loop(nn.Module):
    """The class net of snnTorch's tutorials: the time loop inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(beta=0.8)
        self.fc2, self.lif2 = nn.Linear(8, 4), snn.Leaky(beta=0.8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        recorded = []
        for _ in range(5):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            recorded.append(self.lif2(self.fc2(spk1), mem2))
            mem2 = recorded[-1][1]
        spikes, membranes = zip(*recorded, strict=True)
        return torch.stack(spikes), torch.stack(membranes)


def loop_net() -> tuple[Loop, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(7, 6) * 3
    net = Loop()
    snn_ext.patch(net, mpbn=True, imp=True, example_input=x)
    with torch.no_grad():
        for _ in range(3):
            net(x)
        net.lif1.mpbn.bn.weight[:3] = torch.tensor([-1.0, 0.0, -0.0])
        net.lif2.mpbn.bn.weight[:2] = torch.tensor([-0.5, 0.0])
    return net.eval(), x


def test_the_example_measures_the_difference(capsys: pytest.CaptureFixture[str]) -> None:
    net, x = loop_net()
    before = net(x)
    snn_ext.fold(copy.deepcopy(net_at_rest(net)))
    assert capsys.readouterr().out == "", "nothing to measure without an example"
    snn_ext.fold(net, example_input=x)
    printed = "folded 2 sites: largest output difference 0, spike mismatch 0\n"
    assert capsys.readouterr().out == printed
    assert all(torch.equal(a, b) for a, b in zip(net(x), before, strict=True))


def net_at_rest(net: nn.Module) -> nn.Module:
    snn_ext.reset(net)  # states with a graph cannot be copied
    return net


def test_every_step_of_a_loop_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = loop_net()
    right = MembraneBatchNorm.fold

    def flipped(self: MembraneBatchNorm, threshold: Any, *, fires_at_equality: bool) -> FoldedMembraneNorm:
        f = right(self, threshold, fires_at_equality=fires_at_equality)
        return FoldedMembraneNorm(f.threshold, -f.sign)

    monkeypatch.setattr(MembraneBatchNorm, "fold", flipped)
    snn_ext.fold(net, example_input=x)
    output, spikes = capsys.readouterr().out.strip().split(",")
    assert float(output.split()[-1]) > 0.5
    assert 0.3 < float(spikes.split()[-1]) <= 1


def test_measuring_leaves_no_trace() -> None:
    torch.manual_seed(5)
    x = sequence()
    net = trained(snn_ext.patch(conv_net(), mpbn=True, imp=True, example_input=x[0]), x)
    play(net, x)
    other = copy.deepcopy(net)
    mem, value, example = net[1].mem, net[1].mem.clone(), sequence(1, 7)[0]
    draws = torch.random.get_rng_state()
    snn_ext.fold(net, example_input=example)
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert net[1].mem is mem
    assert torch.equal(mem, value)
    assert not net[1]._forward_hooks
    with torch.no_grad():
        for x_t in x:
            for a, b in zip(net(x_t), other(x_t), strict=True):
                assert torch.equal(a, b), "the sequence goes on where it was"


def _patched_conv(**options: Any) -> nn.Module:
    return snn_ext.patch(conv_net(), mpbn=MPBN(**options), example_input=sequence()[0]).eval()


def state(net: nn.Module) -> dict[str, Any]:
    return {"modules": fingerprint(net), "keys": [*net.state_dict()], "report": str(snn_ext.report(net))}


@pytest.mark.parametrize("shape", [(4, 6, 6), (6,), (6, 6), (1, 6, 1)], ids=lambda s: "x".join(map(str, s)))
def test_a_threshold_finer_than_the_norm_is_refused(shape: tuple[int, ...]) -> None:
    """[6] and [1, 6, 1] broadcast over height and width, not over channels."""
    thetas = torch.rand(shape) + 0.5

    def net(features: Any) -> nn.Module:
        made = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), snn.Leaky(beta=0.8, threshold=thetas, init_hidden=True)
        )
        x = sequence()
        snn_ext.patch(made, mpbn=MPBN(features=features), example_input=x[0])
        steps(made.train(), x)
        return made.eval()

    coarse = net("channel")
    before = state(coarse)
    with pytest.raises(
        FoldError, match=r"(?s)finer than the norm.*where: 1\n.*do: use MPBN\(features='element'"
    ):
        snn_ext.fold(coarse, example_input=sequence()[0])
    assert same(before, state(coarse))
    fine, x = net("element"), sequence()
    spikes = steps(fine, x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(steps(snn_ext.fold(fine), x), spikes)


THRESHOLDS = [1, 0.7, torch.tensor([0.7]), torch.tensor([0.9, 0.6, 1.3, 0.8]).view(4, 1, 1)]


@pytest.mark.parametrize("threshold", THRESHOLDS, ids=["int", "float", "one", "channels"])
@pytest.mark.parametrize("learn", [False, True])
def test_thresholds_that_fold_per_channel(threshold: Any, learn: bool) -> None:
    if learn and isinstance(threshold, int):
        threshold = 1.0
    lif = snn.Leaky(beta=0.8, threshold=threshold, learn_threshold=learn, init_hidden=True)
    net, x = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), lif), sequence()
    snn_ext.patch(net, mpbn=True, example_input=x[0])
    steps(net.train(), x)
    before = steps(net.eval(), x)
    assert 0 < before.mean() < 1
    assert torch.equal(steps(snn_ext.fold(net), x), before)
    assert net[1].mpbn.threshold.shape == (4, 1, 1)
    assert torch.equal(torch.as_tensor(threshold), net[1].threshold.detach()), "the reset's own is kept"


UNFOLDABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "not patched": (lambda: conv_net().eval(), "nothing to fold"),
    "training": (lambda: _patched_conv().train(), "training mode"),
    "normalised carry": (lambda: _patched_conv(carry="normalised"), r"carry='normalised'"),
}


@pytest.mark.parametrize("what", UNFOLDABLE)
def test_what_cannot_be_folded_stays_as_it_is(what: str) -> None:
    make, words = UNFOLDABLE[what]
    net = make()
    before = state(net)
    with pytest.raises(FoldError, match=words) as caught:
        snn_ext.fold(net, example_input=sequence()[0])
    assert str(caught.value).splitlines()[-1].startswith("  do: ")
    assert same(before, state(net))


def test_a_folded_model_is_saved_and_copied(tmp_path: Path) -> None:
    """Pickling works wherever the unpatched model pickles: snnTorch's surrogates are closures."""
    torch.manual_seed(5)
    x = sequence()
    net = conv_net(surrogate_disable=True)
    trained(snn_ext.patch(net, mpbn=True, imp=True, example_input=x[0]), x)
    before = play(net, x)
    snn_ext.fold(net)
    snn_ext.reset(net)
    keys = [key for key in net.state_dict() if ".mpbn." in key]
    assert keys == ["1.mpbn.threshold", "1.mpbn.sign", "5.mpbn.threshold", "5.mpbn.sign"]
    snn_ext.save(net, tmp_path / "folded")
    copies = {
        "deepcopy": copy.deepcopy(net),
        "pickle": pickle.loads(pickle.dumps(net)),
        "snn_ext.save": snn_ext.load(conv_net(surrogate_disable=True), tmp_path / "folded").eval(),
    }
    for how, other in copies.items():
        snn_ext.reset(other)
        with torch.no_grad():
            spikes, _ = zip(*(other(x_t) for x_t in x), strict=True)
        assert torch.equal(torch.stack(spikes), before[0]), how
        assert [*other.state_dict()] == [*net.state_dict()], how
        assert [row["note"] for row in snn_ext.report(other).to_dict()["sites"]] == [
            "folded, cannot be unpatched"
        ] * 2
        with pytest.raises(FoldError, match=r"(?s)where: 1, 5.*do: load the checkpoint from before"):
            snn_ext.unpatch(other)


def test_a_folded_model_does_not_train() -> None:
    net, x = snn_ext.fold(_patched_conv()), sequence()
    with pytest.raises(FoldError, match=r"(?s)cannot be trained.*do: call model\.eval"):
        net.train()(x[0])
    play(net.eval(), x)


# --- shapes, dtypes, modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", [MPBN(), MPBN(affine=False), MPBN(carry="normalised")], ids=str)
@pytest.mark.parametrize("length", [1, 3])
def test_it_trains(option: MPBN, length: int) -> None:
    net = conv_net(learn_beta=True, learn_threshold=True)
    snn_ext.patch(net, mpbn=option, imp=True, example_input=sequence()[0])
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.1, weight_decay=1e-2))
    snn_ext.check_optimizer(net, optimizer)
    for _ in range(3):
        utils.reset(net)
        optimizer.zero_grad()
        outputs = [net(x) for x in sequence(length)]
        torch.stack([s + m for s, m in outputs]).square().mean().backward()
        optimizer.step()
    missing = [n for n, p in net.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    # One step never uses a threshold's reset, but its firing decision does; so all have gradients.
    assert missing == []
    assert [n.bn.num_batches_tracked.item() for n in norms(net)] == [3 * length] * 2


def test_a_batch_of_one() -> None:
    conv = one(snn.Leaky(beta=0.8), (3, 2, 2))
    assert conv(torch.randn(1, 3, 2, 2))[0].shape == (1, 3, 2, 2), "there is space to average over"
    flat = one(snn.Leaky(beta=0.8))
    with pytest.raises(OptionError, match=r"(?s)one value per channel: \[1, 3\].*do: train with more than"):
        flat(torch.randn(1, 3), flat.reset_mem())
    assert flat.eval()(torch.randn(1, 3), flat.reset_mem())[0].shape == (1, 3)
    assert snn_ext.fold(flat)(torch.randn(1, 3), flat.reset_mem())[0].shape == (1, 3)


def test_a_sample_without_a_batch_is_refused() -> None:
    """Legal in snnTorch, but a batch norm has nothing to average over."""
    with pytest.raises(ShapeMismatchError, match=r"(?s)\[3\].*do: "):
        one(snn.Leaky(beta=0.8))(torch.randn(3))


@pytest.mark.parametrize("mode", ["train", "eval", "folded"])
def test_another_resolution(mode: str) -> None:
    def neuron(features: Any) -> Any:
        made = one(snn.Leaky(beta=0.8), (3, 4, 4), mpbn=MPBN(features=features))
        made.train(mode == "train")
        return snn_ext.fold(made) if mode == "folded" else made

    for side in (6, 1):
        x = torch.randn(5, 3, side, side)
        assert neuron("channel")(x)[0].shape == x.shape
        with pytest.raises(ShapeMismatchError, match=r"(?s)\[3, 4, 4\].*do: "):
            neuron("element")(x)


def test_channels_last() -> None:
    x = torch.randn(5, 3, 4, 4)
    for features in ("channel", "element"):
        neuron = one(snn.Leaky(beta=0.8), (3, 4, 4), mpbn=MPBN(features=features))  # type: ignore[arg-type]
        neuron(x, neuron.reset_mem())
        neuron.eval()
        plain = neuron(x, neuron.reset_mem())
        last = neuron(x.to(memory_format=torch.channels_last), neuron.reset_mem())
        assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))


@pytest.mark.parametrize("kind", ["Leaky", "Leaky, immediate", "Leaky, none", "Lapicque"])
@pytest.mark.parametrize("imp", [None, True])
def test_states_and_statistics_stay_float32_under_autocast(kind: str, imp: Any) -> None:
    """From the first step on, though snnTorch itself begins with zeros in the dtype of the input."""
    make: dict[str, Callable[[], nn.Module]] = {
        "Leaky": lambda: snn.Leaky(beta=0.9, init_hidden=True),
        "Leaky, immediate": lambda: snn.Leaky(beta=0.9, init_hidden=True, reset_delay=False),
        "Leaky, none": lambda: snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none"),
        "Lapicque": lambda: snn.Lapicque(beta=0.5, init_hidden=True),
    }
    net = nn.Sequential(nn.Linear(6, 5), make[kind]())
    snn_ext.patch(net, mpbn=True, imp=imp)
    seen: list[torch.dtype] = []
    net[1].mpbn.register_forward_hook(lambda m, i, o: seen.extend((i[0].dtype, o.dtype)))
    x, membranes = torch.randn(3, 4, 6), []
    for x_t in x:
        with torch.autocast("cpu", torch.bfloat16):
            net(x_t).float().square().sum()
        membranes.append(net[1].mem.dtype)
    assert membranes == [torch.float32] * 3
    assert seen == [torch.float32] * 6
    with torch.autocast("cpu", torch.bfloat16):
        before = steps(net.eval(), x)
        assert torch.equal(steps(snn_ext.fold(net), x), before), "folding is exact there too"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ["patch, then convert", "convert, then patch"])
def test_half_models(dtype: torch.dtype, order: str) -> None:
    net = nn.Sequential(nn.Linear(6, 5), snn.Leaky(beta=0.9, init_hidden=True))
    if order == "patch, then convert":
        snn_ext.patch(net, mpbn=True)
        net.to(dtype)
    else:
        net.to(dtype)
        snn_ext.patch(net, mpbn=True)
    for x in torch.randn(3, 4, 6).to(dtype):
        net(x)
        assert net[1].mem.dtype is torch.float32


def test_frozen_statistics() -> None:
    """mpbn.eval() inside a training model: running statistics are used and kept, the affine learns."""
    torch.manual_seed(6)
    x = sequence()
    net = trained(snn_ext.patch(conv_net(), mpbn=True, example_input=x[0]), x)
    expected = play(net, x)
    net.train()
    for norm in norms(net):
        norm.eval()
    before = [b.clone() for norm in norms(net) for b in norm.buffers()]
    utils.reset(net)
    outputs = [net(x_t) for x_t in x]
    assert torch.equal(torch.stack([s for s, _ in outputs]), expected[0])
    after = [b for norm in norms(net) for b in norm.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    torch.stack([s for s, _ in outputs]).sum().backward()
    assert bool((norms(net)[1].bn.weight.grad != 0).any())
    assert play(net, sequence(size=1))[0].shape == (5, 1, 5), "and a batch of one is fine"


def test_shapes_are_inferred_where_the_layer_before_tells() -> None:
    net = conv_net()
    with pytest.raises(snn_ext.ShapeUnknownError, match=r"(?s)do: pass example_input"):
        snn_ext.patch(net, mpbn=MPBN(features="element"))
    snn_ext.patch(net, mpbn=True)
    assert [n.bn.num_features for n in norms(net)] == [4, 5]
    play(net, sequence())


# --- with IMP, and back --------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [{"mpbn": True}, {"mpbn": True, "imp": True}], ids=str)
def test_patch_and_unpatch(methods: dict[str, Any]) -> None:
    x = sequence()
    net = conv_net()
    original = play(net, x)
    utils.reset(net)
    before, aliases, keys = fingerprint(net), dict(net.named_modules()), [*net.state_dict()]
    snn_ext.patch(net, example_input=x[0], **methods)
    after = fingerprint(net)
    snn_ext.patch(net, example_input=x[0], **methods)
    assert same(after, fingerprint(net)), "again with the same options: nothing"
    assert [k for k in net.state_dict() if k in keys] == keys
    new = {k.split(".")[1] for k in net.state_dict() if k not in keys}
    assert new == set(methods)
    play(net, x)
    utils.reset(net)
    snn_ext.unpatch(net)
    assert dict(net.named_modules()) == aliases
    assert same(without_state(before), without_state(fingerprint(net)))
    assert all(torch.equal(a, b) for a, b in zip(play(net, x), original, strict=True))


@pytest.mark.parametrize("methods", [{"mpbn": True}, {"mpbn": True, "imp": True}], ids=str)
def test_older_checkpoints_load(methods: dict[str, Any]) -> None:
    old, net = conv_net(), conv_net()
    snn_ext.patch(net, example_input=sequence()[0], **methods)
    with torch.no_grad():
        norms(net)[0].bn.weight.fill_(0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net.load_state_dict(old.state_dict(), strict=True)
    assert len(caught) == 1
    assert f"{10 + 2 * ('imp' in methods)} tensors keep" in str(caught[0].message)
    assert torch.equal(net[0].weight, old[0].weight)
    assert torch.equal(norms(net)[0].bn.weight, torch.full((4,), 0.5)), "what is new keeps its value"


@pytest.mark.parametrize("methods", [{"mpbn": True}, {"mpbn": True, "imp": True}], ids=str)
def test_saved_and_loaded(methods: dict[str, Any], tmp_path: Path) -> None:
    x = sequence()
    net = trained(snn_ext.patch(conv_net(), example_input=x[0], **methods), x)
    expected = play(net, x)
    snn_ext.save(net, tmp_path / "net")
    fresh = snn_ext.load(conv_net(), tmp_path / "net").eval()
    assert all(torch.equal(a, b) for a, b in zip(play(fresh, x), expected, strict=True))


# --- neurons that MPBN cannot take over -----------------------------------------------------------------


class OwnFire(snn.Leaky):
    """A user's firing rule."""

    def fire(self, mem: Tensor) -> Tensor:
        return super().fire(mem * 2)  # type: ignore[no-any-return]


class OwnForward(snn.Leaky):
    """A user's step."""

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        return super().forward(input_ * 2, mem)


class OwnCharge(snn.Leaky):
    """A user's charge."""

    def _base_state_function(self, input_: Tensor) -> Tensor:
        return super()._base_state_function(input_ * 2)  # type: ignore[no-any-return]


class OwnReset(snn.Lapicque):
    """A user's reset."""

    def mem_reset(self, mem: Tensor) -> Tensor:
        return super().mem_reset(mem * 2)  # type: ignore[no-any-return]


def quantised(mem: Tensor) -> Tensor:
    return (mem * 4).round() / 4


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "Synaptic": (lambda: snn.Synaptic(0.5, 0.5, init_hidden=True), "Leaky and Lapicque"),
    "RLeaky": (lambda: snn.RLeaky(0.5, all_to_all=False, init_hidden=True), "Leaky and Lapicque"),
    "OwnFire": (lambda: OwnFire(0.5, init_hidden=True), "overrides"),
    "OwnForward": (lambda: OwnForward(0.5), "overrides"),
    "OwnCharge": (lambda: OwnCharge(0.5, init_hidden=True), "overrides"),
    "OwnReset": (lambda: OwnReset(beta=0.5, init_hidden=True), "overrides"),
    "state_quant": (lambda: snn.Leaky(0.5, state_quant=quantised, init_hidden=True), "state_quant"),
}


class Pair(nn.Module):
    """The odd neuron, and an ordinary one behind it; one step."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.fc, self.odd, self.lif = nn.Linear(6, 4), odd, snn.Leaky(0.5, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.odd(self.fc(x))
        return self.lif(spikes[0] if isinstance(spikes, tuple) else spikes)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ODD)
def test_neurons_with_rules_of_their_own_are_skipped(name: str) -> None:
    """MPBN would replace those rules; IMP, which keeps them, is still put in."""
    make, words = ODD[name]
    x = torch.randn(4, 6)
    plan = snn_ext.plan(Pair(make()), mpbn=True, imp=True, example_input=x)
    assert {d.site.path: {*d.methods} for d in plan.decisions} == {"odd": {"imp"}, "lif": {"imp", "mpbn"}}
    assert words in plan.decisions[0].omitted
    net = plan.apply()
    net(x)
    assert not hasattr(net.odd, "mpbn")
    only = snn_ext.plan(Pair(make()), mpbn=True, example_input=x)
    assert [{*d.methods} for d in only.decisions] == [set(), {"mpbn"}]
    assert words in only.decisions[0].reason
    for named in ({"mpbn": {"odd": True}}, {"mpbn": True, "include": ["odd", "lif"]}):
        fresh = Pair(make())
        before = fingerprint(fresh)
        with pytest.raises(UnsupportedSiteError, match=r"(?s)mpbn cannot be put into .*do: leave this site"):
            snn_ext.patch(fresh, example_input=x, **named)
        assert same(before, fingerprint(fresh))


def test_inhibition_is_refused() -> None:
    with pytest.warns(UserWarning, match="Inhibition"):
        neuron = snn.Leaky(0.5, inhibition=True)
    with pytest.raises(snn_ext.NothingMatchedError, match="inhibition"):
        one(neuron)


def test_a_subclass_that_only_adds_is_fine() -> None:
    class Described(snn.Leaky):
        def describe(self) -> str:
            return "mine"

    neuron = one(Described(beta=0.5))
    neuron(torch.randn(4, 3))
    assert neuron.describe() == "mine"
    assert int(neuron.mpbn.bn.num_batches_tracked) == 1


def test_the_running_statistics_get_one_update_per_step() -> None:
    neuron = one(snn.Leaky(beta=0.5))
    mem = neuron.reset_mem()
    for i, x in enumerate(torch.randn(6, 5, 3)):
        _, mem = neuron(x, mem)
        assert int(neuron.mpbn.bn.num_batches_tracked) == i + 1
    assert math.isfinite(float(neuron.mpbn.bn.running_var.sum()))
