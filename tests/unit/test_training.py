"""What a training loop uses: groups, the optimiser check, losses, reset."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import LTS, SDT, OptionError, ReadoutError, Time, TimestepError, hookimpl
from snn_ext.norms import BatchNormThroughTime
from tests.toy import StepNeuron, ToyAdapter, leading_net, registered

X = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(1))


def normed() -> nn.Sequential:
    return nn.Sequential(leading_net(), nn.LayerNorm(3))


def test_groups_cover_every_parameter_once_and_spare_v0_and_norms() -> None:
    net = snn_ext.patch(normed(), imp=True)
    decayed, free = snn_ext.param_groups(net, lr=0.1, weight_decay=5e-4)
    assert (decayed["lr"], decayed["weight_decay"]) == (0.1, 5e-4)
    assert (free["lr"], free["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in net.named_parameters()}
    assert {names[id(p)] for p in free["params"]} == {"0.1.imp", "0.3.imp", "1.weight", "1.bias"}
    everything = [id(p) for group in (decayed, free) for p in group["params"]]
    assert sorted(everything) == sorted(names)


def test_a_group_without_parameters_is_left_out() -> None:
    assert len(snn_ext.param_groups(leading_net(), lr=0.1)) == 1


def test_v0_trains_with_an_optimizer_built_after_the_patch() -> None:
    net = snn_ext.patch(leading_net(), imp=True)
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.5))
    snn_ext.check_optimizer(net, optimizer)
    before = {n: p.detach().clone() for n, p in net.named_parameters() if n.endswith("imp")}
    for _ in range(10):
        optimizer.zero_grad()
        snn_ext.loss(net, "tet")(net(X), torch.tensor([0, 1])).backward()
        optimizer.step()
    for name, value in before.items():
        assert not torch.equal(net.get_parameter(name), value)


def test_an_optimizer_built_before_the_patch_is_caught() -> None:
    net = leading_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    snn_ext.check_optimizer(net, optimizer)
    snn_ext.patch(net, imp=True)
    with pytest.raises(OptionError, match=r"(?s)misses 2 .*where: 1\.imp, 3\.imp.*do: build it after"):
        snn_ext.check_optimizer(net, optimizer)
    optimizer.add_param_group({"params": [net[1].imp, net[3].imp]})
    snn_ext.check_optimizer(net, optimizer)


def test_losses_take_scores_and_lists_of_steps() -> None:
    net, y = leading_net(), torch.tensor([0, 1])
    crit = snn_ext.loss(net, "lts")
    output = net(X)
    assert torch.equal(crit(output, y), LTS()(output, y))
    assert torch.equal(crit(list(output), y), LTS()(output, y))
    assert torch.equal(crit.predict(output), output[-1])
    own = SDT(smoothing=0.2)
    assert snn_ext.loss(net, own).objective is own


@pytest.mark.parametrize(
    "output", [torch.zeros(2, 3), None, {"a": 1}, [], (torch.zeros(3, 2, 3), torch.zeros(3, 2, 3))]
)
def test_outputs_without_scores_are_refused(output: Any) -> None:
    crit = snn_ext.loss(leading_net(), "sdt")
    with pytest.raises(ReadoutError, match=r"\n  do: "):
        crit(output, torch.tensor([0, 1]))
    with pytest.raises(ReadoutError, match=r"\n  do: "):
        crit.predict(output)


def test_unknown_recordings_and_objectives_teach() -> None:
    with pytest.raises(OptionError, match="do: pass on='membrane'"):
        snn_ext.loss(leading_net(), "sdt", on="both")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="do: use one of 'sdt'"):
        snn_ext.loss(leading_net(), "mse")


def test_reset_reaches_nested_neurons_and_nothing_else() -> None:
    inside, outside = StepNeuron(), StepNeuron()
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), inside))
    for neuron in (inside, outside):
        neuron(torch.rand(2, 4))
    snn_ext.reset(net)
    assert inside.v is None
    assert outside.v is not None


def test_reset_reaches_norms_that_count_steps() -> None:
    norm = BatchNormThroughTime(2, 4, time=Time.PER_CALL)
    net = nn.Sequential(norm, StepNeuron())
    for _ in range(2):
        net(torch.rand(3, 4))
    with pytest.raises(TimestepError, match=r"do: call snn_ext\.reset"):
        net(torch.rand(3, 4))
    snn_ext.reset(net)
    net(torch.rand(3, 4))


def test_carried_marks_this_tensor_only() -> None:
    from snn_ext.patching.sequence import is_carried

    mem = torch.zeros(2)
    assert snn_ext.carried(mem) is mem
    assert is_carried(mem)
    assert not is_carried(mem * 1)
    assert not is_carried(torch.zeros(2))


class Native(ToyAdapter):
    """Makes losses of its own."""

    name = "native"

    def __init__(self, made: Any) -> None:
        self.made, self.asked = made, []

    @hookimpl
    def snn_ext_describe(self, module: nn.Module, path: str, root: nn.Module) -> None:
        return None

    @hookimpl
    def snn_ext_loss(self, root: nn.Module, objective: Any, readout: Any, want: Any) -> Any:
        self.asked.append((root, objective, want))
        return self.made and self.made(objective, readout)


def _in_the_frameworks_words(objective: Any, readout: Any) -> Any:
    def its_loss(output: Any, target: torch.Tensor) -> torch.Tensor:
        return 2 * objective(readout(output), target)

    return its_loss


class Summed:
    """A loss that is an object."""

    def __call__(self, output: Any, target: torch.Tensor) -> torch.Tensor:
        return output.sum()


def test_a_frameworks_own_loss_is_used_and_still_predicts() -> None:
    net, target, objective = leading_net(), torch.tensor([0, 1]), SDT(smoothing=0.25)
    output = net(X)
    plain = snn_ext.loss(net, objective, on="spikes")
    adapter = Native(_in_the_frameworks_words)
    with registered(adapter):
        crit = snn_ext.loss(net, objective, on="spikes")
    assert adapter.asked == [(net, objective, "spikes")]
    assert crit.__name__ == "its_loss"
    assert (crit.model, crit.objective, crit.on) == (net, objective, "spikes")
    assert repr(crit) == repr(plain) == f"Loss({objective!r}, on='spikes')"
    assert torch.equal(crit(output, target), 2 * plain(output, target))
    assert torch.equal(crit.predict(output), output.mean(0))
    with registered(Native(lambda objective, readout: Summed())):
        crit = snn_ext.loss(net, objective)
    assert crit.__name__ == "Summed"
    assert torch.equal(crit(output, target), output.sum())
    assert crit.on == "membrane"
    with registered(Native(None)):
        assert type(snn_ext.loss(net, objective)) is type(plain)
