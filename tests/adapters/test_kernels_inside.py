"""The kernels inside patched neurons: the same outputs to the last bit, the same gradients to rounding,
and the framework's own step wherever something else must be able to look inside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import snn_ext
from snn_ext import (
    BNTT,
    IMP,
    MPBN,
    TEBN,
    FoldError,
    OptionError,
    TimestepError,
    UnsupportedSiteError,
    kernels,
)
from snn_ext.kernels import use_backend
from snn_ext.kernels.arguments import Call, Result
from snn_ext.norms import FoldedTime

ROUNDING = 2e-6  # of the largest gradient: sums associate in another order
STEPS, FEATURES = 5, (6, 5, 5)

SPIKINGJELLY: dict[str, Callable[[], nn.Module]] = {
    "IF": lambda: neuron.IFNode(surrogate_function=surrogate.ATan()),
    "IF soft": lambda: neuron.IFNode(v_reset=None),
    "IF rest": lambda: neuron.IFNode(v_reset=-0.25, detach_reset=True),
    "LIF": lambda: neuron.LIFNode(tau=2.0),
    "LIF tau": lambda: neuron.LIFNode(tau=3.0, surrogate_function=surrogate.Rect()),
    "LIF no input decay": lambda: neuron.LIFNode(tau=1.7, decay_input=False, v_reset=None),
    "LIF rest": lambda: neuron.LIFNode(v_reset=0.125, surrogate_function=surrogate.PiecewiseQuadratic()),
    "PLIF": lambda: neuron.ParametricLIFNode(init_tau=2.5),
    "PLIF no input decay": lambda: neuron.ParametricLIFNode(decay_input=False, v_reset=0.1),
}
SNNTORCH: dict[str, Callable[[], Any]] = {
    "Leaky": lambda: snn.Leaky(beta=0.8),
    "Leaky zero": lambda: snn.Leaky(beta=0.75, reset_mechanism="zero"),
    "Leaky none": lambda: snn.Leaky(beta=0.75, reset_mechanism="none"),
    "Leaky learnable": lambda: snn.Leaky(
        beta=torch.rand(5) * 0.5 + 0.4, threshold=torch.rand(5) + 0.2, learn_beta=True, learn_threshold=True
    ),
    "Leaky fast sigmoid": lambda: snn.Leaky(beta=0.9, spike_grad=snn.surrogate.fast_sigmoid(slope=10)),
    "Leaky graded": lambda: snn.Leaky(beta=0.8, learn_graded_spikes_factor=True),
    "Lapicque": lambda: snn.Lapicque(beta=0.7),
    "Lapicque RC": lambda: snn.Lapicque(R=1.0, C=4.0),
}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that the kernels ran."""
    from snn_ext.methods import fused

    calls: list[Call] = []
    run = kernels.run

    def noted(call: Call) -> Result:
        calls.append(call)
        return run(call)

    monkeypatch.setattr(fused.kernels, "run", noted)
    return calls


def dyadic(*shape: int) -> Tensor:
    """Inputs that meet thresholds exactly."""
    return torch.randint(-4, 25, shape) / 8.0


def play(node: Any, x: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Outputs [T, B, *] and the last membrane, two sequences one after the other."""
    outputs = []
    for sequence in (x, x.flip(0)):
        if isinstance(node, snn.SpikingNeuron):
            mem, spikes = torch.zeros_like(sequence[0]), []
            for x_t in sequence:
                spk, mem = node(x_t, mem)
                spikes += [spk, mem]
            outputs.append(torch.stack(spikes))
        else:
            functional.reset_net(node)
            node.step_mode = mode
            outputs.append(node(sequence) if mode == "m" else torch.stack([node(x_t) for x_t in sequence]))
            mem = node.v
    return torch.cat(outputs), mem


def train(node: Any, x: Tensor, mode: str, weights: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x = x.clone().requires_grad_()
    y, v = play(node, x, mode)
    ((y * weights[: len(y)]).sum() + v.square().sum()).backward()
    grads = {name: p.grad for name, p in node.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return y.detach(), v.detach(), {"x": x.grad, **grads}


def close(a: Tensor, b: Tensor) -> bool:
    scale = max(float(b.abs().max()), 1e-12)
    return float((a - b).abs().max()) <= ROUNDING * scale * 10 ** (a.numel() == 1)  # one sum over everything


CASES = [(name, mode) for name in SPIKINGJELLY for mode in "ms"] + [(name, "s") for name in SNNTORCH]


def make(name: str) -> Any:
    torch.manual_seed(3)
    return (SPIKINGJELLY | SNNTORCH)[name]()


@pytest.mark.parametrize("backend", ["host", "torch"])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_outputs_to_the_bit_and_gradients_to_rounding(
    name: str, mode: str, backend: str, ran: list[Call]
) -> None:
    for x in (torch.randn(STEPS, 3, *FEATURES) + 0.5, dyadic(STEPS, 3, *FEATURES)):
        weights = torch.randn(4 * STEPS, 3, *FEATURES)
        stock = train(make(name), x, mode, weights)
        assert stock[0].any()
        with use_backend("framework"):
            node = make(name)
            node.step_mode = mode
            snn_ext.patch(node, imp=IMP(init="rest", shape=FEATURES))
            own = train(node, x, mode, weights)
        with use_backend(backend):
            node = make(name)
            node.step_mode = mode
            snn_ext.patch(node, imp=IMP(init="rest", shape=FEATURES))
            before = len(ran)
            ours = train(node, x, mode, weights)
        assert len(ran) - before == (2 if mode == "m" else 2 * STEPS), "the kernels did run"
        for i in (0, 1):
            assert torch.equal(stock[i], own[i])
            assert torch.equal(ours[i], own[i])
        assert ours[2].keys() == own[2].keys()
        for key in own[2]:
            assert close(ours[2][key], own[2][key]), key


def test_twin_another_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_ext.dynamics.surrogates import Sigmoid
    from snn_ext_spikingjelly import describe

    x, weights = torch.randn(STEPS, 3, *FEATURES) + 0.5, torch.randn(4 * STEPS, 3, *FEATURES)
    expected = train(make("LIF"), x, "m", weights)
    monkeypatch.setattr(describe, "_surrogate", lambda function: Sigmoid(4.0001))
    node = make("LIF")
    node.step_mode = "m"
    snn_ext.patch(node, imp=IMP(init="rest", shape=FEATURES))
    assert not close(train(node, x, "m", weights)[2]["x"], expected[2]["x"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_keep_a_float32_state(dtype: torch.dtype, ran: list[Call]) -> None:
    node = neuron.LIFNode(step_mode="m")
    snn_ext.patch(node, imp=IMP(init=0.25, shape="layer"))
    x = (torch.randn(STEPS, 3, 8) * 2).to(dtype)
    y = node(x)
    assert (y.dtype, node.v.dtype, len(ran)) == (dtype, torch.float32, 1)
    functional.reset_net(node)
    assert torch.equal(y.float(), node(x.float())), "as float32 of the rounded inputs"


def test_autocast_runs_the_fused_path(ran: list[Call]) -> None:
    net = nn.Sequential(layer.Linear(8, 16, step_mode="m"), neuron.LIFNode(step_mode="m"))
    snn_ext.patch(net, imp=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(torch.randn(STEPS, 3, 8))
    assert [c.x.dtype for c in ran] == [torch.bfloat16]
    assert y.dtype is torch.bfloat16
    assert net[1].v.dtype is torch.float32
    y.float().sum().backward()
    assert net[1].imp.grad is not None


@pytest.mark.parametrize("patched", [True, False])
def test_a_trace_shows_who_runs_neurons_under_autocast(patched: bool) -> None:
    net = nn.Sequential(layer.Linear(8, 16, step_mode="m"), neuron.LIFNode(step_mode="m"))
    if patched:
        snn_ext.patch(net, imp=True)
    with torch.profiler.profile() as trace, torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(STEPS, 3, 8))
    names = [event.name for event in trace.events()]
    steps = names.count("aten::ge")  # one comparison with the threshold per step, in a loop
    assert (names.count("snn_ext::neuron[host]"), steps) == ((1, 0) if patched else (0, STEPS))


class Counter(TorchDispatchMode):
    """Any tool that watches operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def leaky() -> Any:
    return snn.Leaky(beta=0.8, init_hidden=True)


OUTSIDE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "an operation counter": lambda node, x: _counted(node, x),
    "vmap": lambda node, x: torch.func.vmap(node)(x.unsqueeze(0)),
    "float64": lambda node, x: node(x.double()),
    "integers": lambda node, x: node((x * 4).long()),
    "a compiled program": lambda node, x: torch.compile(node, backend="eager")(x),
    "use_backend": lambda node, x: _framework(node, x),
}


def _counted(node: nn.Module, x: Tensor) -> None:
    with Counter() as counter:
        node(x)
    assert len(counter.seen) > 4 * STEPS, "every operation of every step"


def _framework(node: nn.Module, x: Tensor) -> Any:
    with use_backend("framework"):
        return node(x)


@pytest.mark.parametrize("how", OUTSIDE)
def test_what_must_look_inside_gets_the_frameworks_step(how: str, ran: list[Call]) -> None:
    node = neuron.LIFNode(step_mode="m")
    snn_ext.patch(node, imp=IMP(init=0.25, shape="layer"))
    x = torch.rand(STEPS, 3, 8) * 3
    OUTSIDE[how](node, x)
    assert ran == []
    snn_ext.reset(node)
    node(x)
    assert len(ran) == 1


def test_settings_changed_after_the_patch_are_followed(ran: list[Call]) -> None:
    """Threshold, reset, surrogate and factor of graded spikes are looked at in every call."""
    x = torch.rand(STEPS, 3, 8) * 3
    plain, node = (neuron.LIFNode(step_mode="m") for _ in range(2))
    snn_ext.patch(node, imp=IMP(init="rest", shape="layer"))
    for change in ({"v_threshold": 0.5}, {"v_reset": None}, {"tau": 4.0}, {"store_v_seq": True}):
        for n in (plain, node):
            for name, value in change.items():
                setattr(n, name, value)
            functional.reset_net(n)
        assert torch.equal(node(x), plain(x)), change
        assert torch.equal(node.v, plain.v), change
    assert torch.equal(node.v_seq, plain.v_seq)
    assert len(ran) == 4
    stock, mine = leaky(), leaky()
    snn_ext.patch(mine, imp=IMP(init="rest", shape="layer"))
    for factor in (1.0, 2.0, 1.0):
        for n in (stock, mine):
            n.graded_spikes_factor.fill_(factor)
            n.reset_mem()
        assert torch.equal(mine(x[0]), stock(x[0])), factor
    stock.state_quant = mine.state_quant = lambda mem: mem.round()  # not a kernel's: the framework's step
    count = len(ran)
    assert torch.equal(mine(x[0]), stock(x[0]))
    assert len(ran) == count


def test_user_starts_and_streams_in_snntorch(ran: list[Call]) -> None:
    """Non-zero starts of the user are reset as by the framework, V0 is not; states may be exchanged."""
    x = torch.rand(STEPS, 3, 8)
    start = torch.full((3, 8), 1.5)
    stock, mine = snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)
    snn_ext.patch(mine, imp=IMP(init="rest", shape="layer"))
    for neuron_, seen in ((stock, []), (mine, [])):
        mem_a, mem_b = start, torch.zeros(3, 8)
        for x_t in x:
            spk_a, mem_a = neuron_(x_t, mem_a)
            spk_b, mem_b = neuron_(x_t, mem_b)
            seen += [spk_a, mem_a, spk_b, mem_b]
        neuron_.seen = seen
    assert all(torch.equal(a, b) for a, b in zip(stock.seen, mine.seen, strict=True))
    assert len(ran) == 2 * STEPS


def test_channels_last_stays_channels_last(ran: list[Call]) -> None:
    node = neuron.IFNode(step_mode="m")
    snn_ext.patch(node, imp=IMP(init=0.25, shape="channel"), example_input=torch.zeros(2, 1, 4, 6, 6))
    x = torch.randn(2, 3, 4, 6, 6)
    expected = node(x)
    snn_ext.reset(node)
    last = torch.stack([x_t.contiguous(memory_format=torch.channels_last) for x_t in x])
    wide = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    for version in (last, wide):
        y = node(version)
        assert torch.equal(y, expected)
        snn_ext.reset(node)
    assert node(wide)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("carry", ["raw", "normalised"])
def test_mpbn_trains_and_folded_runs_in_the_kernel(carry: Any, ran: list[Call]) -> None:
    def net() -> nn.Module:
        torch.manual_seed(0)
        node = neuron.LIFNode(step_mode="m")
        return snn_ext.patch(
            node, mpbn=MPBN(carry=carry), imp=IMP(init=0.25), example_input=torch.ones(STEPS, 2, 4, 3, 3)
        )

    ours, own = net(), net()
    for _ in range(2):
        x = torch.randn(STEPS, 6, 4, 3, 3) * 2
        results = []
        for n in (ours, own):
            snn_ext.reset(n)
            with use_backend("auto" if n is ours else "framework"):
                y = n(x)
            y.square().sum().backward()
            results.append(y.detach())
        assert torch.equal(*results)
    for a, b in zip(ours.parameters(), own.parameters(), strict=True):
        assert close(a.grad, b.grad)
    for a, b in zip(ours.buffers(), own.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6)
    if carry == "raw":
        snn_ext.reset(ours)
        snn_ext.fold(ours.eval())
        count, expected = len(ran), own.eval()
        snn_ext.reset(own)
        assert torch.equal(ours(x), expected(x))
        assert len(ran) > count
        assert ran[-1].folded is not None


TIMED: dict[str, dict[str, Any]] = {
    "bntt": {"bntt": BNTT(at="neuron")},
    "tebn": {"tebn": TEBN(at="neuron"), "imp": IMP(init=0.25)},
    "bntt and mpbn": {"bntt": BNTT(bias=True, at="neuron"), "mpbn": True, "imp": True},
}


def folded(what: str, name: str = "LIF", features: tuple[int, ...] = FEATURES) -> nn.Module:
    """A node whose norms over time were trained and folded; [T, B, *features]."""
    node = make(name)
    node.step_mode = "m"
    example = torch.randn(STEPS, 4, *features)
    snn_ext.patch(node, **TIMED[what], example_input=example)
    for _ in range(3):
        functional.reset_net(node)
        node(torch.randn(STEPS, 8, *features) * 2 + 1)
    with torch.no_grad():
        for key, parameter in node.named_parameters():
            if "bn" in key:  # gammas, betas and scales
                parameter.uniform_(-0.5, 2)
    functional.reset_net(node)
    return snn_ext.fold(node.eval())


def without_fusing(monkeypatch: pytest.MonkeyPatch, node: nn.Module, x: Tensor) -> Tensor:
    """The folded norm as a pass of its own, then the kernel."""
    with monkeypatch.context() as patched:
        patched.setattr(FoldedTime, "in_kernel", lambda norm, x: None)
        functional.reset_net(node)
        return node(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("backend", ["host", "torch"])
@pytest.mark.parametrize("name", SPIKINGJELLY)
@pytest.mark.parametrize("what", TIMED)
@torch.no_grad()  # the compiled kernels pass no gradient to V0 past a folded MPBN
def test_folded_norms_of_inputs_run_in_the_kernel(
    what: str, name: str, backend: str, ran: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = folded(what, name)
    for x in (torch.randn(STEPS, 3, *FEATURES) * 2, dyadic(STEPS, 3, *FEATURES)):
        for steps in (STEPS, 2):
            with use_backend(backend):
                expected, v = without_fusing(monkeypatch, node, x[:steps]), node.v
                assert ran[-1].scale is None
                functional.reset_net(node)
                assert torch.equal(node(x[:steps]), expected)
                assert torch.equal(node.v, v)
            assert ran[-1].scale.shape == (steps, FEATURES[0])  # type: ignore[union-attr]
            assert ran[-1].x.data_ptr() == x.data_ptr(), "the input itself"
            functional.reset_net(node)
            with use_backend("framework"):
                assert torch.equal(node(x[:steps]), expected)
            assert expected.any()
            assert not expected.all()


@pytest.mark.parametrize("features", [(6,), (6, 4), (6, 3, 3)], ids=str)
def test_a_folded_norm_in_the_kernel_has_its_gradient(
    features: tuple[int, ...], ran: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = folded("bntt", features=features)
    x = torch.randn(STEPS, 3, *features)
    weights = torch.randn(STEPS, 3, *features)
    grads = []
    for run in (node, lambda x: without_fusing(monkeypatch, node, x)):
        functional.reset_net(node)
        leaf = x.clone().requires_grad_()
        (run(leaf) * weights).sum().backward()
        grads.append(leaf.grad)
    assert ran[-2].scale is not None
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]
    assert grads[0].any()  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_of_a_folded_norm_are_rounded_as_before(
    dtype: torch.dtype, ran: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, x = folded("bntt"), (torch.randn(STEPS, 8, *FEATURES) * 2).to(dtype)
    expected = without_fusing(monkeypatch, node, x)
    functional.reset_net(node)
    assert torch.equal(node(x), expected)
    assert ran[-1].scale is None
    functional.reset_net(node)
    assert not torch.equal(node(x.float()).to(dtype), expected), "the twin: in the kernel it is another"


def test_a_folded_norm_in_the_kernel_refuses_what_it_did(ran: list[Call]) -> None:
    node = folded("bntt")
    with pytest.raises(TimestepError, match=f"made for {STEPS} steps"):
        node(torch.randn(STEPS + 1, 3, *FEATURES))
    with pytest.raises(RuntimeError):
        node(torch.randn(STEPS, 3, 4, 5, 5))
    with pytest.raises(FoldError, match=r"(?s)cannot be trained.*where: bntt \(FoldedTime\)"):
        node.train()(torch.randn(STEPS, 3, *FEATURES))
    assert [call for call in ran if call.scale is not None] == []


def test_patch_shows_and_keeps_the_backend(ran: list[Call]) -> None:
    def net() -> nn.Module:
        return nn.Sequential(layer.Linear(4, 3, step_mode="m"), neuron.LIFNode(step_mode="m"))

    x = torch.rand(STEPS, 2, 4)
    plan = snn_ext.plan(net(), imp=True, backend="torch")
    assert plan.to_dict()["sites"][0]["step"] == "torch"
    asked = snn_ext.patch(net(), imp=True, backend="framework")
    assert "framework" in str(snn_ext.report(asked))
    asked(x)
    assert ran == []
    both = copy.deepcopy(snn_ext.patch(net(), imp=True, backend="torch"))
    both(x)
    assert len(ran) == 1
    with pytest.raises(OptionError, match="do: use one of"):
        snn_ext.patch(net(), imp=True, backend="gpu")
    strange = nn.Sequential(layer.Linear(4, 3), neuron.EIFNode())
    with pytest.raises(UnsupportedSiteError, match="backend='host'"):
        snn_ext.patch(strange, imp=True, backend="host")
    assert type(strange[1]) is neuron.EIFNode
    assert snn_ext.plan(strange, imp=True).to_dict()["sites"][0]["step"] == "framework"


@pytest.fixture(autouse=True)
def _unpatched_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()
