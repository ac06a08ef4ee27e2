"""Optimisers reach V0 in SpikingJelly networks."""

from __future__ import annotations

import pytest
import torch

import snn_ext
from tests.adapters.spikingjelly_nets import TIMESTEPS, StepLoop, conv_net, functional, gradients


@pytest.mark.parametrize("mode", ["s", "m"])
def test_training_moves_v0(mode: str) -> None:
    x = torch.rand(TIMESTEPS, 4, 2, 6, 6) * 4
    net = conv_net(mode=mode)
    net = net if mode == "m" else StepLoop(net)
    snn_ext.patch(net, imp=True, example_input=x)
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.5, weight_decay=1e-3))
    snn_ext.check_optimizer(net, optimizer)
    before = {name: p.detach().clone() for name, p in net.named_parameters() if name.endswith("imp")}
    crit = snn_ext.loss(net, "tet")
    for _ in range(10):
        optimizer.zero_grad()
        crit(net(x), torch.arange(4)).backward()
        optimizer.step()
        functional.reset_net(net)
    now = dict(net.named_parameters())
    assert len(before) == 2
    assert all(not torch.equal(now[name], value) for name, value in before.items())
    assert all(g is not None for g in gradients(net, of_methods=True).values())


def test_an_optimiser_from_before_the_patch_is_caught() -> None:
    net = conv_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    snn_ext.patch(net, imp=True, example_input=torch.rand(TIMESTEPS, 2, 2, 6, 6))
    with pytest.raises(snn_ext.OptionError, match="misses 2") as caught:
        snn_ext.check_optimizer(net, optimizer)
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")
