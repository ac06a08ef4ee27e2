"""What a neuron hands to the kernels, with a recorder in the place of the kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snn_ext import Dynamics, ShapeMismatchError, kernels
from snn_ext.methods import fused as module
from snn_ext.methods.fused import FusedNeuron
from snn_ext.norms import MembraneBatchNorm

T, B, C = 3, 2, 4
X = torch.rand(T, B, C)
DYNAMICS = Dynamics(decay=0.5)


class Neuron(FusedNeuron):
    """A neuron whose equations are known."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Which entry of the kernels was used, with what, and under which backend."""
    seen: list[tuple[str, Any]] = []
    monkeypatch.setattr(kernels, "run", lambda call: seen.append((kernels.wanted(), call)))
    monkeypatch.setattr(kernels, "run_normalised", lambda call, norm: seen.append(("norm", (call, norm))))
    return seen


def neuron(backend: str | None = "auto", norm: Any = None) -> Neuron:
    made = Neuron().eval()
    made._ext_backend = backend
    if norm is not None:
        made.mpbn = norm
    return made


def test_defaults_are_those_of_a_fresh_sequence(calls: list[tuple[str, Any]]) -> None:
    neuron().fused(X, DYNAMICS)
    (_, call), *more = calls
    assert not more
    assert call == kernels.Call(X, DYNAMICS)
    assert (call.v, call.v0, call.resume, call.folded, call.scale, call.shift, call.store) == (
        None, None, False, None, None, None, False,
    )  # fmt: skip


def test_everything_is_handed_on(calls: list[tuple[str, Any]]) -> None:
    v, v0, scale, shift = torch.rand(B, C), torch.rand(C), torch.rand(T, C), torch.rand(T, C)
    neuron().fused(X, DYNAMICS, v=v, v0=v0, resume=True, affine=(scale, shift), store=True)
    call = calls[0][1]
    assert call.x is X
    assert call.dynamics is DYNAMICS
    assert call.v is v
    assert call.v0 is v0
    assert call.resume is True
    assert call.scale is scale
    assert call.shift is shift
    assert call.store is True


def test_the_backend_asked_for_at_the_patch_is_preferred(calls: list[tuple[str, Any]]) -> None:
    neuron("reference").fused(X, DYNAMICS)
    neuron("auto").fused(X, DYNAMICS)
    assert calls[0][0] == "reference"
    assert calls[1][0] == kernels.wanted() != "reference"


def test_a_folded_norm_goes_along(calls: list[tuple[str, Any]]) -> None:
    folded = MembraneBatchNorm((C,)).eval().fold(1.0, fires_at_equality=True)
    neuron(norm=folded).fused(X, DYNAMICS)
    threshold, sign = calls[0][1].folded
    assert threshold is folded.threshold
    assert sign is folded.sign
    with pytest.raises(ShapeMismatchError):
        neuron(norm=folded).fused(torch.rand(T, B, C + 1), DYNAMICS)


@pytest.mark.parametrize("per", ["channel", "element"])
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_is_described_step_by_step(per: Any, training: bool, calls: list[tuple[str, Any]]) -> None:
    norm = MembraneBatchNorm((C,), per=per, carry="normalised", eps=0.25, momentum=0.5).train(training)
    neuron(norm=norm).fused(X, DYNAMICS)
    name, (call, told) = calls[0]
    assert name == "norm"
    assert call.x is X
    assert told.running_mean is norm.bn.running_mean
    assert told.running_var is norm.bn.running_var
    assert told.weight is norm.bn.weight
    assert told.bias is norm.bn.bias
    assert (told.eps, list(told.factors)) == (0.25, [0.5] * T)
    assert (told.batch, told.carry, told.per) == (training, "normalised", per)
    assert int(norm.bn.num_batches_tracked) == (T if training else 0)
    with pytest.raises(ShapeMismatchError):
        norm.for_steps(torch.rand(T, B, C + 1))


def test_a_norm_without_statistics_takes_those_of_the_batch() -> None:
    norm = MembraneBatchNorm((C,)).eval()
    norm.bn.running_mean = norm.bn.running_var = None
    told = norm.for_steps(X)
    assert told.batch
    assert told.running_mean is None
    norm = MembraneBatchNorm((C,)).train()
    norm.bn.track_running_stats = False
    told = norm.for_steps(X)
    assert (told.running_mean, told.running_var) == (None, None)


class Test_fuses:  # noqa: N801
    def test_where_nothing_is_in_the_way(self) -> None:
        assert neuron().fuses(X)

    def test_not_where_the_framework_takes_the_step(self) -> None:
        assert not neuron(None).fuses(X)
        with kernels.use_backend(kernels.FRAMEWORK):
            assert not neuron().fuses(X)

    def test_not_for_what_kernels_do_not_take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.kernels, "takes", lambda x: x is not X)
        assert not neuron().fuses(X)
        assert neuron().fuses(X.clone())

    def test_norms(self) -> None:
        norm = MembraneBatchNorm((C,)).eval()
        assert neuron(norm=norm).fuses(X)
        folded = norm.fold(1.0, fires_at_equality=True)
        assert neuron(norm=folded).fuses(X)
        assert not neuron(norm=folded).train().fuses(X)
        norm.bn.register_forward_hook(lambda *_: None)
        assert not neuron(norm=norm).fuses(X), "somebody listens"
