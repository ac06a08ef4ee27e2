"""Batch norms inside SpikingJelly's containers, which hide the time axis in different ways."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, TEBN, SnnExtError, TimestepError, UnsupportedSiteError

STEPS = 3
Make = Callable[..., nn.Module]

CONTAINERS: dict[str, Make] = {
    "SeqToANN": layer.SeqToANNContainer,
    "StepMode, stateless": lambda *parts: layer.StepModeContainer(False, "m", *parts),
    "MultiStep": layer.MultiStepContainer,
    "StepMode, stateful": lambda *parts: layer.StepModeContainer(True, "m", *parts),
}
STEPWISE = ("MultiStep", "StepMode, stateful")
NORMS: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: nn.BatchNorm1d(4),
    "spikingjelly": lambda: layer.BatchNorm1d(4),
}


def net_with(container: str, norm: str = "torch") -> nn.Module:
    """Linear and norm in a container, and a neuron after it that sees whole sequences."""
    torch.manual_seed(0)
    block = CONTAINERS[container](nn.Linear(5, 4), NORMS[norm]())
    return nn.Sequential(block, neuron.LIFNode(step_mode="m"), layer.Linear(4, 2, step_mode="m"))


def run(net: nn.Module, x: Tensor) -> Tensor:
    functional.reset_net(net)
    return net(x)  # type: ignore[no-any-return]


def trained(net: nn.Module) -> tuple[nn.Module, Tensor]:
    x = torch.randn(STEPS, 6, 5) * 3
    for _ in range(3):
        run(net, x)
    nn.init.uniform_(net[0][1].weight, 0.5, 2.0)
    nn.init.uniform_(net[0][1].bias, 0.2, 1.0)
    return net.eval(), x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_fresh_norms_change_no_bit_and_every_step_has_its_slot(container: str, norm: str) -> None:
    net, x = trained(net_with(container, norm))
    expected = run(net, x)
    assert expected.any()
    snn_ext.patch(net, bntt=BNTT(bias=True), example_input=x)
    assert torch.equal(run(net, x), expected)
    seen: list[Tensor] = []
    net[0].register_forward_hook(lambda m, i, y: seen.append(y.detach()))
    run(net, x)
    for t, slot in enumerate(net[0][1].bntt, start=1):
        slot.weight.data.zero_()
        slot.bias.data.fill_(float(t))
    run(net, x)
    assert torch.equal(seen[1][0], seen[0][0]), "slot 0 is the norm itself"
    for t in range(1, STEPS):
        assert torch.equal(seen[1][t], torch.full_like(seen[1][t], t))
    run(net, x[:2])  # fewer steps, and the count begins anew
    assert torch.equal(seen[2], seen[1][:2])
    with pytest.raises(TimestepError, match=f"made for {STEPS} steps"):
        run(net, torch.cat([x, x]))


@pytest.mark.parametrize("container", CONTAINERS)
def test_tebn_where_joint_statistics_exist(container: str) -> None:
    net, x = trained(net_with(container))
    expected = run(net, x)
    if container in STEPWISE:
        with pytest.raises(UnsupportedSiteError, match="joint statistics need whole sequences"):
            snn_ext.patch(net, tebn={"0.1": True}, example_input=x)
    snn_ext.patch(net, tebn=TEBN(stats="step") if container in STEPWISE else True, example_input=x)
    assert torch.equal(run(net, x), expected)
    net.train()
    run(net, x).sum().backward()
    assert net[0][1].tebn.scale.grad.isfinite().all()


@pytest.mark.parametrize("container", CONTAINERS)
def test_round_trip(container: str) -> None:
    net, x = trained(net_with(container))
    before, expected = copy.deepcopy(net.state_dict()), run(net, x)
    hooks = len(net[0]._forward_hooks)
    snn_ext.patch(net, bntt=True, example_input=x)
    run(net.train(), x).sum().backward()
    assert all(p.grad is not None for p in net[0][1].bntt.parameters())
    snn_ext.unpatch(net.eval())
    net.load_state_dict(before)
    assert torch.equal(run(net, x), expected)
    assert len(net[0]._forward_hooks) == hooks


def test_a_neuron_in_the_same_container_changes_nothing() -> None:
    parts = [nn.Linear(5, 4), nn.BatchNorm1d(4), neuron.LIFNode()]
    net, x = layer.MultiStepContainer(*parts).eval(), torch.randn(STEPS, 6, 5)
    expected = run(net, x)
    snn_ext.patch(net, bntt=BNTT(bias=True), example_input=x)
    assert torch.equal(run(net, x), expected)


def test_called_without_its_container_it_raises() -> None:
    for container in CONTAINERS:
        net, x = trained(net_with(container))
        snn_ext.patch(net, bntt=True, example_input=x)
        with pytest.raises(TimestepError, match="container"):
            net[0][1](x[0, :, :4])


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "time last": (lambda: layer.TLastSeqToANNContainer(nn.BatchNorm1d(4)), "last dimension"),
    "time last, stepwise": (lambda: layer.TLastMultiStepContainer(nn.BatchNorm1d(4)), "last dimension"),
    "nested": (
        lambda: layer.SeqToANNContainer(layer.MultiStepContainer(nn.BatchNorm1d(4))),
        "one container around it",
    ),
    "lazy": (lambda: layer.SeqToANNContainer(nn.LazyBatchNorm1d()), "no shape yet"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_why_and_change_nothing(case: str) -> None:
    make, why = REFUSED[case]
    net = nn.Sequential(make(), neuron.LIFNode(step_mode="m"))
    kinds = [type(m) for m in net.modules()]
    for option in ({"bntt": True}, {"tebn": True}):
        with pytest.raises(SnnExtError, match=why) as caught:
            snn_ext.patch(net, timesteps=2, **option)
        assert "do:" in str(caught.value)
        assert [type(m) for m in net.modules()] == kinds


def test_twin_a_count_that_is_not_restarted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from snn_ext_spikingjelly.norms import CountingNorm

    net, x = trained(net_with("MultiStep"))
    snn_ext.patch(net, bntt=True, example_input=x)

    def begin(self: Any, steps: int | None) -> None:
        self._ext_length = steps

    monkeypatch.setattr(CountingNorm, "begin", begin)
    run(net, x)
    with pytest.raises(TimestepError):
        run(net, x)
