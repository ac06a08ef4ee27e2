"""What an option becomes at a place: which module, with which settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import BNTT, MPBN, TEBN, AdapterError, NeuronSpec, Time
from snn_ext.methods.options import Method
from snn_ext.methods.parts import Place, new_part, part_shapes
from snn_ext.methods.paths import located, remember_path
from snn_ext.norms import BatchNormThroughTime, MembraneBatchNorm, TemporalEffectiveBatchNorm
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered

T, C = 3, 4
PLACE = Place(nn.Identity(), NeuronSpec(Time.LEADING), (C, 2), T)
X = torch.rand(T, 5, C)


def made(option: Method) -> Any:
    return new_part(option, PLACE, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize(
    ("option", "eps", "momentum"),
    [
        (BNTT(), 1e-4, 0.1),
        (BNTT(eps=0.5, momentum=0.25), 0.5, 0.25),
        (TEBN(), 1e-5, 0.1),
        (TEBN(eps=0.5, momentum=0.25), 0.5, 0.25),
        (MPBN(), 1e-5, 0.1),
        (MPBN(eps=0.5, momentum=0.25), 0.5, 0.25),
    ],
)
def test_settings_of_norms_at_neurons(option: Method, eps: float, momentum: float) -> None:
    part = made(option)
    norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == (T if isinstance(option, BNTT) else 1)
    for norm in norms:
        assert (norm.eps, norm.momentum, norm.num_features) == (eps, momentum, C)
    assert {p.dtype for p in part.parameters()} == {torch.float64}
    assert part_shapes(option, PLACE) == [tuple(p.shape) for p in part.parameters()]


def test_options_reach_the_norms() -> None:
    assert isinstance(made(BNTT()), BatchNormThroughTime)
    assert [slot.bias is None for slot in made(BNTT()).slots] == [True] * T
    assert [slot.bias is None for slot in made(BNTT(bias=True)).slots] == [False] * T
    for stats in ("joint", "step"):
        tebn = made(TEBN(stats=stats))
        assert isinstance(tebn, TemporalEffectiveBatchNorm)
        assert tebn.stats == stats
        assert tebn.scale.shape == (T,)
    mpbn = made(MPBN(features="element", carry="normalised", affine=False))
    assert isinstance(mpbn, MembraneBatchNorm)
    assert (mpbn.per, mpbn.carry, mpbn.bn.affine, mpbn.features) == ("element", "normalised", False, (C, 2))


def test_something_that_is_no_method_has_no_part() -> None:
    with pytest.raises(AdapterError, match=r"object has no part.\n  do: "):
        made(object())  # type: ignore[arg-type]


def test_modules_know_where_they_are() -> None:
    neuron = Neuron()
    assert located(neuron) == "Neuron"
    remember_path(neuron, "")
    assert located(neuron) == "(root) (Neuron)"
    remember_path(neuron, "body.1")
    assert located(neuron) == "body.1 (Neuron)"


@pytest.fixture
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def test_parts_know_where_they_are_and_whose_class_they_have(toy_framework: None) -> None:
    net = nn.Sequential(nn.Linear(C, C), Norm(C), Neuron())
    snn_ext.patch(net, imp=True, mpbn=True, bntt=True, example_input=X)
    assert located(net[2]) == "2 (Neuron)"
    assert located(net[2].mpbn.bn) == "2.mpbn.bn (BatchNorm)"
    assert located(net[1]) == "1 (Norm)"
    assert located(net[1].bntt[0]) == "1.bntt.0 (BatchNorm)"
    alone = snn_ext.patch(Neuron(), mpbn=True, example_input=X)
    assert located(alone.mpbn) == "mpbn (MembraneBatchNorm)"
    rows = {row.site: row.parameters for row in snn_ext.report(net).rows}
    assert rows == {"1": {"bntt": 2 * C}, "2": {"imp": C, "mpbn": 2 * C}}
    biased = snn_ext.patch(nn.Sequential(Norm(C), Neuron()), bntt=BNTT(bias=True), timesteps=T)
    assert snn_ext.report(biased).rows[0].parameters == {"bntt": 4 * C}


@pytest.mark.parametrize("bias", [True, False])
def test_slots_start_as_copies_of_the_batch_norm_of_an_older_checkpoint(
    toy_framework: None, bias: bool
) -> None:
    old = nn.Sequential(nn.Linear(C, C), Norm(C), Neuron())
    for name, tensor in old.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif "tracked" in name:
            tensor.fill_(7)
    net = nn.Sequential(nn.Linear(C, C), Norm(C), Neuron())
    snn_ext.patch(net, bntt=BNTT(bias=bias), mpbn=True, example_input=X)
    kept = net[2].mpbn.bn.weight.detach().fill_(3).clone()
    with pytest.warns(UserWarning, match=r"5 tensors keep their initial values \(2\.mpbn"):
        net.load_state_dict(old.state_dict(), strict=True)
    for slot in net[1].bntt:
        for name in ("weight", "running_mean", "running_var", "num_batches_tracked", *(["bias"] * bias)):
            assert torch.equal(getattr(slot, name), getattr(old[1], name))
            assert getattr(slot, name) is not getattr(net[1], name)
    assert torch.equal(net[2].mpbn.bn.weight, kept)


def test_parts_are_made_on_the_device_of_their_place() -> None:
    for option in (BNTT(), TEBN(), MPBN(), snn_ext.IMP()):
        part = new_part(option, PLACE, device=torch.device("meta"), dtype=torch.float32)
        tensors = [part] if isinstance(part, nn.Parameter) else list(part.parameters())
        assert all(t.is_meta for t in tensors)


@pytest.mark.parametrize("init", [0.0, 1.0, (0.0, 0.5), (0.5, 1.0)])
def test_starts_at_the_ends_of_a_sigmoid_are_refused(init: Any) -> None:
    with pytest.raises(snn_ext.OptionError, match=r"\n  do: "):
        snn_ext.IMP(init=init, squash="sigmoid")


@pytest.mark.parametrize("threshold", [3.0, 2.1, 0.1])
def test_half_a_threshold_outside_of_a_sigmoid_is_refused(threshold: float) -> None:
    place = Place(nn.Identity(), NeuronSpec(Time.LEADING, threshold=threshold), (50,), T)
    with pytest.raises(snn_ext.OptionError, match="in \\(0, 1\\)"):
        new_part(
            snn_ext.IMP(init="half", squash="sigmoid"), place, device=torch.device("cpu"), dtype=torch.float32
        )


def test_over_time_in_training_the_steps_must_be_all_of_them(toy_framework: None) -> None:
    def tebn(stats: Any) -> Any:
        net = nn.Sequential(nn.Linear(C, C), Norm(C), Neuron())
        return snn_ext.patch(net, tebn=TEBN(stats=stats), example_input=X)[1]

    for stats in ("joint", "step"):
        norm = tebn(stats)
        with pytest.raises(snn_ext.TimestepError, match=r"where: 1 \(Norm\)"):
            norm.sequence(torch.rand(T + 1, 5, C))
    joint, step = tebn("joint"), tebn("step")
    with pytest.raises(snn_ext.TimestepError):
        joint.sequence(X[:2])
    assert joint.eval().sequence(X[:2]).shape == (2, 5, C)
    with pytest.raises(snn_ext.SnnExtError, match="joint"):
        joint.train().step(0, X[0])
    assert step.step(0, X[0]).shape == (5, C)
    assert joint.eval().step(0, X[0]).shape == (5, C)
