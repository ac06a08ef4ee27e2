"""MPBN as one function against the loop over `MembraneBatchNorm`: spikes and statistics bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snn_ext import OptionError, ShapeMismatchError, functional
from snn_ext.dynamics.description import Dynamics, Leak
from snn_ext.dynamics.surrogates import ATan, Rectangle, Sigmoid, fire
from snn_ext.kernels import mpbn, torch_gradients
from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.mpbn import MembraneNorm, run
from snn_ext.norms import MembraneBatchNorm
from tests.kernels.composite import FORMS, assert_close, assert_same, composite, dyadic, gradients, learning
from tests.kernels.mutants import mutate

RESETS, TIMINGS = ["hard", "soft", "none"], ["immediate", "delayed"]
CARRIES, PERS = ["raw", "normalised"], ["channel", "element"]
KINDS = list(itertools.product(RESETS, TIMINGS, CARRIES, PERS))


def membrane_norm(
    features: tuple[int, ...], dtype: torch.dtype = torch.float32, *, track: bool = True, **options: Any
) -> MembraneBatchNorm:
    """One whose parameters and statistics are not those of a fresh one."""
    module = MembraneBatchNorm(features, eps=1e-3, **{"momentum": 0.3, **options})
    bn = module.bn
    if bn.affine:
        torch.nn.init.uniform_(bn.weight, -1.0, 1.5)
        torch.nn.init.uniform_(bn.bias, -0.5, 1.0)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.uniform_(-0.5, 0.5)
    bn.running_var.uniform_(0.5, 1.5)
    if not track:
        bn.track_running_stats = False
        bn.running_mean = bn.running_var = bn.num_batches_tracked = None  # type: ignore[assignment]
    return module.to(dtype)


def described(module: MembraneBatchNorm, steps: int) -> MembraneNorm:
    """What `batch_norms.normalise` would do with it in each of these steps."""
    bn = module.bn
    batches = range(int(bn.num_batches_tracked or 0) + 1, 10**6)
    return MembraneNorm(
        bn.running_mean,
        bn.running_var,
        bn.weight,
        bn.bias,
        bn.eps,
        [
            1.0 / n if bn.momentum is None else bn.momentum
            for n, _ in zip(batches, range(steps), strict=False)
        ],
        batch=bn.training or bn.running_mean is None,
        carry=module.carry,
        per=module.per,
    )


def fused(module: MembraneBatchNorm, **options: Any) -> Callable[[Call], Result]:
    return lambda call: run(call, described(module, len(call.x)), **options)


def loop(
    module: MembraneBatchNorm, pending: Tensor | None = None, smooth: bool = False
) -> Callable[[Call], Result]:
    def run_loop(call: Call) -> Result:
        d = call.dynamics

        def spike(u: Tensor) -> Tensor:
            return fire(u, d.surrogate, fires_at_equality=d.fires_at_equality, smooth=smooth)

        decide = functional.decide_normalised(module, d.threshold, spike, carry=module.carry)
        return composite(call, decide=decide, pending=pending)

    return run_loop


def check(
    call: Call,
    module: MembraneBatchNorm,
    *,
    pending: Tensor | None = None,
    relative: float | None = None,
) -> None:
    """Outputs and running statistics bit for bit; gradients of everything to rounding."""
    if relative is None:
        relative = 1e-9 if call.x.dtype is torch.float64 else 2e-6
    ours, theirs = module, deepcopy(module)
    result, grads = gradients(call, fused(ours, pending=pending), ours.parameters())
    truth, wanted = gradients(call, loop(theirs, pending), theirs.parameters())
    assert_same(result, truth)
    for name, statistic in theirs.bn.named_buffers():
        if name != "num_batches_tracked":
            assert torch.equal(ours.bn.get_buffer(name), statistic), name
    assert_close(grads, wanted, relative)


# --- every norm and neuron -------------------------------------------------------------------------------


@pytest.mark.parametrize(("reset", "timing", "carry", "per"), KINDS)
def test_every_norm_and_neuron(reset: str, timing: str, carry: str, per: str) -> None:
    options = itertools.product(FORMS, [True, False], [torch.float32, torch.float64])
    for n, (form, training, dtype) in enumerate(options):
        d = replace(
            FORMS[form](),
            reset=reset,
            timing=timing,
            detach_reset=n % 3 == 0,
            fires_at_equality=n % 5 < 3,
            surrogate=[ATan(), Sigmoid(), Rectangle(0.5)][n % 3],
        )
        module = membrane_norm((3, 2, 2), dtype, carry=carry, per=per, affine=n % 4 != 0).train(training)
        x, v, v0 = (
            torch.randn(shape, dtype=dtype) * 1.5 for shape in ((4, 5, 3, 2, 2), (5, 3, 2, 2), (3, 1, 1))
        )
        call = Call(x, d, v=v, v0=v0, store=n % 2 == 0)
        check(call, module, pending=(torch.rand(5, 3, 2, 2) < 0.5).to(dtype))


@given(
    st.sampled_from(KINDS),
    st.sampled_from([(3,), (2, 3), (2, 2, 3)]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 10**6),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_every_parameter(
    kind: Any, features: tuple[int, ...], dtype: torch.dtype, seed: int, data: Any
) -> None:
    reset, timing, carry, per = kind
    torch.manual_seed(seed)
    steps, batch = data.draw(st.integers(1, 4)), data.draw(st.integers(3, 6))
    flag, pick = (lambda: data.draw(st.booleans())), (lambda *choices: data.draw(st.sampled_from(choices)))

    def tensor(shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, dtype=dtype) * (high - low) + low

    shapes = [(), features, (features[0], *[1] * (len(features) - 1))]
    d = Dynamics(
        tensor(pick(*shapes), 0.3, 0.9),
        tensor(pick(*shapes), 0.5, 1.5),
        leak=pick(None, Leak(tensor(pick(*shapes), 1.5, 3.0), input=flag())),
        threshold=tensor(pick(*shapes), 0.2, 0.8),
        rest=pick(0.0, -0.25),
        reset=reset,
        timing=timing,
        detach_reset=flag(),
    )
    module = membrane_norm(
        features, dtype, carry=carry, per=per, affine=flag(), momentum=pick(None, 0.2), track=flag()
    ).train(flag())
    call = Call(
        tensor((steps, batch, *features), -2, 3),
        d,
        v=pick(None, tensor((batch, *features))),
        v0=pick(None, 0.3, tensor(shapes[1])),
        scale=pick(None, tensor((steps, features[0]), 0.5, 1.5), tensor((features[0],))),
        shift=pick(None, tensor((features[0],))),
        store=flag(),
    )
    pending = pick(None, (torch.rand(batch, *features) < 0.5).to(dtype))
    check(call, module, pending=None if call.v is None else pending)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("momentum", [0.2, None])
def test_statistics_follow_every_step(momentum: float | None, per: str) -> None:
    module = membrane_norm((3, 2), per=per, momentum=momentum)
    module.bn.num_batches_tracked.fill_(7)
    check(Call(torch.randn(5, 4, 3, 2), Dynamics()), module)
    other = membrane_norm((3, 2), per=per, momentum=momentum)
    before = other.bn.running_mean.clone()
    wrong = replace(described(other, 5), factors=[0.2, 0.2, 0.2, 0.2, 0.0])
    run(Call(torch.randn(5, 4, 3, 2), Dynamics()), wrong)
    assert not torch.equal(other.bn.running_mean, before)


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("carry", CARRIES)
def test_decisions_at_the_threshold(carry: str, per: str) -> None:
    """A norm that changes nothing (mean 0, deviation 1) leaves dyadic membranes on the threshold."""
    module = MembraneBatchNorm((4,), per=per, carry=carry, eps=0.0).eval()  # type: ignore[arg-type]
    counts = []
    for equality in (True, False):
        d = Dynamics(fires_at_equality=equality)
        check(Call(dyadic(8, 16, 4), d), module)
        counts.append(run(Call(torch.full((3, 2, 4), 0.5), d), described(module, 3)).spikes.sum().item())
    assert counts == [8, 8] or counts[0] > counts[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_half_inputs_keep_a_float32_state(training: bool, cast: bool, dtype: torch.dtype) -> None:
    """Also where the norm's own parameters and statistics were cast to half."""
    for carry, per in itertools.product(CARRIES, PERS):
        module = membrane_norm((3, 2), dtype if cast else torch.float32, carry=carry, per=per).train(training)
        call = Call((torch.randn(4, 6, 3, 2) * 1.5).to(dtype), Dynamics(0.9), store=True)
        theirs = deepcopy(module)
        result, grads = gradients(call, fused(module), module.parameters())
        truth, wanted = gradients(call, loop(theirs), theirs.parameters())
        assert_same(result, truth)
        for name, statistic in theirs.bn.named_buffers():
            if name != "num_batches_tracked":
                assert torch.equal(module.bn.get_buffer(name), statistic)
        assert {k: g.dtype for k, g in grads.items()} == {k: g.dtype for k, g in wanted.items()}
        assert_close(grads, wanted, 2 * torch.finfo(dtype).eps)


def test_layouts() -> None:
    """The order in which a batch norm sums follows the layout; the loop's is that of its first membrane."""
    x = torch.randn(3, 4, 6, 5, 7) * 1.5
    last = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (3, 4))
    for layout, carry, per in itertools.product((last, x[..., ::2]), CARRIES, PERS):
        module = membrane_norm(tuple(layout.shape[2:]), carry=carry, per=per)
        check(Call(layout, Dynamics(0.5, reset="soft"), v=torch.randn_like(layout[0])), module)


# --- gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("reset", "timing", "carry", "per"), KINDS)
def test_gradcheck_in_smooth_mode(reset: str, timing: str, carry: str, per: str, training: bool) -> None:
    kind: dict[str, Any] = {"reset": reset, "timing": timing}
    module = membrane_norm((2,), torch.float64, carry=carry, per=per).train(training)
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    call, tensors = learning(Call(x, Dynamics(), v=x[0].clone(), v0=x[0, 0].clone(), store=True))
    decay, theta = (torch.full(s, 0.7, dtype=torch.float64, requires_grad=True) for s in ((), (2,)))
    pending = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, v, v0, decay, theta, pending, weight, bias = inputs
        d = Dynamics(decay, threshold=theta, rest=-0.2, **kind)
        norm = replace(described(module, 3), weight=weight, bias=bias)
        new = replace(call, x=x, v=v, v0=v0, dynamics=d)
        return tuple(t for t in run(new, norm, pending=pending, smooth=True) if t is not None)

    affine = (p.detach().requires_grad_() for p in (module.bn.weight, module.bn.bias))
    assert torch.autograd.gradcheck(outputs, (*tensors.values(), decay, theta, pending, *affine))


def test_only_the_norm_learns() -> None:
    module = membrane_norm((3,))
    x = torch.randn(4, 5, 3)
    run(Call(x, Dynamics()), described(module, 4)).spikes.sum().backward()
    assert module.bn.weight.grad is not None
    with torch.no_grad():
        assert not run(Call(x, Dynamics()), described(module, 4)).spikes.requires_grad


def test_spikes_may_be_changed_in_place() -> None:
    module = membrane_norm((3,))
    x = torch.randn(4, 5, 3, requires_grad=True)
    for timing, carry in itertools.product(TIMINGS, CARRIES):
        module.carry = carry  # type: ignore[assignment]
        outputs = run(Call(x, Dynamics(timing=timing), store=True), described(module, 4))  # type: ignore[arg-type]
        (plain,) = torch.autograd.grad(outputs.spikes.sum(), x, retain_graph=True)
        for output in outputs:
            if output is not None:
                output.add_(1.0)
        (changed,) = torch.autograd.grad(outputs.spikes.sum(), x)
        assert torch.equal(plain, changed)


def test_refusals_teach() -> None:
    x = torch.randn(4, 1, 3, requires_grad=True)
    for per, shape in (("channel", (4, 1, 3)), ("element", (4, 1, 3, 2))):
        norm = described(membrane_norm(shape[2:], per=per), 4)
        with pytest.raises(OptionError, match=r"one value per .*\n  do: train with more"):
            run(Call(torch.randn(shape), Dynamics()), norm)
    for field, size in itertools.product(["running_mean", "running_var", "weight", "bias"], [2, 4]):
        norm = replace(described(membrane_norm((3,)), 4), **{field: torch.ones(size)})
        with pytest.raises(ShapeMismatchError, match=rf"{field} .*3 channels.*\n  do: pass one value"):
            run(Call(torch.randn(4, 2, 3), Dynamics()), norm)
    norm = replace(described(membrane_norm((3,)).eval(), 4), running_var=None)
    with pytest.raises(OptionError, match=r"without running statistics.*\n  do: pass batch=True"):
        run(Call(torch.randn(4, 2, 3), Dynamics()), norm)
    norm = described(membrane_norm((3,)).eval(), 4)
    with pytest.raises(OptionError, match=r"differentiated again.*\n.*\n  do: .*reference"):
        torch.autograd.grad(run(Call(x, Dynamics()), norm).spikes.sum(), x, create_graph=True)


# --- wrong twins -----------------------------------------------------------------------------------------

MUTANTS: list[tuple[ModuleType, str, str, str]] = [
    (mpbn, "_Forward.__call__", 'h if norm.carry == "raw" else y', 'h if norm.carry != "raw" else y'),
    (mpbn, "_Forward.__call__", "norm.factors[t]", "norm.factors[0]"),
    (mpbn, "_Forward.__call__", "norm.eps", "0.0"),
    (mpbn, "_Backward.__call__", "decided if raw or kept is None else decided + kept", "decided"),
    (mpbn, "_Backward.__call__", "later.add_(kept) if raw and kept is not None else later", "later"),
    (mpbn, "_Backward.__call__", "[2 * t : 2 * t + 2]", "[:2]"),
    (mpbn, "_Backward.__call__", "self.charged[t]", "self.charged[0]"),
    (mpbn, "_Backward.__call__", "total += new", "pass"),
    (mpbn, "_Normalised.backward", 'hs if ctx.norm.carry == "raw" else outputs', "hs"),
    (mpbn, "_Normalised.backward", "backward(part, outputs, kept", "backward(part, kept, kept"),
    (
        torch_gradients,
        "backward",
        "through_norm(t, spike * bump, past)",
        "through_norm(t, spike * bump, carried)",
    ),
]


def check_everything() -> None:
    torch.manual_seed(0)
    rate, theta = torch.tensor(0.75).double(), torch.tensor([[1.0], [0.5]]).double()
    for reset, timing, carry, per in KINDS:
        d = Dynamics(rate, threshold=theta, rest=0.25, reset=reset, timing=timing)  # type: ignore[arg-type]
        for training, momentum in ((True, None), (False, 0.1)):
            module = membrane_norm((2, 3), torch.float64, carry=carry, per=per, momentum=momentum)
            call = Call(torch.randn(4, 6, 2, 3).double(), d, v=torch.randn(6, 2, 3).double(), store=True)
            check(call, module.train(training), pending=(torch.rand(6, 2, 3) < 0.5).double())


def test_the_checks_pass() -> None:
    check_everything()


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_wrong_twins_are_caught(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, *MUTANTS[number])
    with pytest.raises((AssertionError, RuntimeError, UnboundLocalError)):
        check_everything()
