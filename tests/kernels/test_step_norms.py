"""Batch norms of all steps as one function: equal to the loop to the last bit, twice differentiable."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snn_ext.kernels import step_norms
from snn_ext.methods.batch_norms import described
from snn_ext.norms import BatchNormThroughTime, TemporalEffectiveBatchNorm

STEPS, CHANNELS = 3, 5


def net(bias: bool = True) -> BatchNormThroughTime:
    torch.manual_seed(1)
    module = BatchNormThroughTime(STEPS, CHANNELS, bias=bias)
    for p in module.parameters():
        nn.init.uniform_(p, -1, 1)
    return module


def x_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(STEPS, 4, CHANNELS, *shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def loop(module: nn.Module, x: Tensor) -> Tensor:
    """What users would write."""
    norms = module.slots if isinstance(module, BatchNormThroughTime) else [module.bn] * STEPS
    return torch.stack([norm(x_t) for norm, x_t in zip(norms, x, strict=False)])


def outcome(run: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Result, gradients and buffers after a step of training."""
    x = x.clone().requires_grad_()
    y = run(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
    used = [p for p in module.parameters() if p.requires_grad]
    grads = torch.autograd.grad((y * weights).sum(), [x, *used], allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None), *module.buffers()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (6,), (3, 7)])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_equal_to_the_loop(
    shape: tuple[int, ...], bias: bool, training: bool, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = net(bias).train(training), net(bias).train(training)
    x = x_of(*shape)[:steps]
    ran = []
    run = step_norms.run
    monkeypatch.setattr(step_norms, "run", lambda *a: ran.append(1) or run(*a))
    assert equal(outcome(ours, ours, x), outcome(lambda x: loop(theirs, x), theirs, x))
    assert ran


def test_one_norm_for_all_steps() -> None:
    torch.manual_seed(0)
    ours = TemporalEffectiveBatchNorm(STEPS, CHANNELS, stats="step")
    theirs = copy.deepcopy(ours)
    scale = theirs.scale.view(-1, 1, 1)
    found, wanted = outcome(ours, ours, x_of()), outcome(lambda x: loop(theirs, x) * scale, theirs, x_of())
    for a, b in zip(found, wanted, strict=True):  # the gradients of the steps are added in another order
        torch.testing.assert_close(a, b)
    assert torch.equal(found[0], wanted[0])
    assert ours.bn.num_batches_tracked == STEPS


def _swapped(x: Tensor, norms: list[step_norms.StepNorm], momenta: list[float]) -> Tensor:
    return step_norms.run(x, norms[::-1], momenta)


def _first_only(x: Tensor, norms: list[step_norms.StepNorm], momenta: list[float]) -> Tensor:
    return step_norms.run(x, norms[:1] * len(norms), momenta)


def _forgetful(x: Tensor, norms: list[step_norms.StepNorm], momenta: list[float]) -> Tensor:
    return step_norms.run(x, norms, [0.0] * len(norms))


@pytest.mark.parametrize("wrong", [_swapped, _first_only, _forgetful])
def test_the_comparison_sees_a_wrong_slot(
    wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = net(), net()
    monkeypatch.setattr("snn_ext.methods.temporal.step_norms", _Module(wrong))
    assert not equal(outcome(ours, ours, x_of()), outcome(lambda x: loop(theirs, x), theirs, x_of()))


class _Module:
    fits = staticmethod(step_norms.fits)

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run


@pytest.mark.parametrize("training", [True, False])
def test_differentiable_twice(training: bool) -> None:
    def penalty(module: nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x = x_of(4).requires_grad_()
        (g,) = torch.autograd.grad(run(x).tanh().sum(), x, create_graph=True)
        (g.square().sum()).backward()
        return [x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]  # type: ignore[list-item]

    ours, theirs = net().train(training), net().train(training)
    found = penalty(ours, ours)
    wanted = penalty(theirs, lambda x: loop(theirs, x))
    assert len(found) == len(wanted) > STEPS
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    module, x = net(), x_of().requires_grad_()
    module.slots[1].requires_grad_(False)
    module(x).sum().backward()
    assert module.slots[1].weight.grad is None
    assert module.slots[0].weight.grad is not None
    module, x = net(), x_of()
    module(x).sum().backward()
    assert x.grad is None
    assert module.slots[2].bias.grad is not None


def test_hooks_of_a_slot_run() -> None:
    module, seen = net(), []
    module.slots[1].register_forward_hook(lambda *_: seen.append("forward"))
    module.slots[2].register_full_backward_hook(lambda *_: seen.append("backward"))
    module(x_of().requires_grad_()).sum().backward()
    assert seen == ["forward", "backward"]


def test_a_slot_frozen_alone_is_taken_by_the_loop() -> None:
    ours, theirs = net(), net()
    for module in (ours, theirs):
        module.slots[1].eval()
    assert equal(outcome(ours, ours, x_of()), outcome(lambda x: loop(theirs, x), theirs, x_of()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_and_memory_orders_are_taken_by_the_loop(dtype: torch.dtype) -> None:
    norms = [described(slot, slot.bias) for slot in net().slots]
    assert step_norms.fits(x_of(3, 2), norms)
    assert not step_norms.fits(x_of().to(dtype), norms)
    assert not step_norms.fits(x_of(3, 2).transpose(3, 4), norms)
    assert not step_norms.fits(x_of(), [norm._replace(weight=torch.ones(1)) for norm in norms])
    assert not step_norms.fits(x_of(), [norm._replace(running_var=torch.ones(5).double()) for norm in norms])
    assert net().to(dtype)(x_of().to(dtype)).dtype is dtype
