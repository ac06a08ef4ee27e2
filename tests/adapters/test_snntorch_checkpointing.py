"""Activation checkpointing of single steps gives the gradients of the plain net."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import snn_ext
from snn_ext_snntorch import neurons
from tests.adapters.snntorch_nets import private_instances
from tests.adapters.test_snntorch_equations import _always_adds


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


class _Checkpointed(nn.Module):
    """Explicit states, every step recomputed in the backward pass; `reentrant` None: plain."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fc1, self.lif1 = nn.Linear(6, 8), snn.Leaky(0.8)
        self.fc2, self.lif2 = nn.Linear(8, 4), snn.Synaptic(0.5, 0.8)
        self.reentrant = reentrant

    def _step(self, x: Tensor, mem1: Tensor, syn2: Tensor, mem2: Tensor) -> tuple[Tensor, ...]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        _, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
        return mem1, syn2, mem2

    def forward(self, sequence: Tensor) -> Tensor:
        batch = sequence.shape[1]
        states: tuple[Tensor, ...] = (torch.zeros(batch, 8), torch.zeros(batch, 4), torch.zeros(batch, 4))
        steps = []
        for x in sequence:
            if self.reentrant is None:
                states = self._step(x, *states)
            else:
                states = checkpoint(self._step, x, *states, use_reentrant=self.reentrant)
            steps.append(states[-1])
        return torch.stack(steps)


def _gradients(reentrant: bool | None, imp: snn_ext.IMP | None) -> dict[str, Tensor]:
    net: nn.Module = _Checkpointed(reentrant)
    x = (torch.randn(6, 3, 6, generator=torch.Generator().manual_seed(8)) * 4).requires_grad_()
    if imp is not None:
        snn_ext.patch(net, imp=imp)
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters()} | {"x": x.grad}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_steps_give_the_gradients_of_plain_ones(reentrant: bool) -> None:
    """Stock snnTorch is exact in both modes; so must a patched net be."""
    imp = snn_ext.IMP(init=0.6)
    for option in (None, imp):
        plain, recomputed = _gradients(None, option), _gradients(reentrant, option)
        assert len(plain) == 5 + 2 * (option is not None)
        for name, gradient in plain.items():
            assert gradient.abs().sum() > 0
            torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-6)


def test_wrong_twin_an_extra_v0_is_seen_by_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _gradients(None, snn_ext.IMP(init=0.6))
    monkeypatch.setattr(neurons.IMP, "mem_reset", _always_adds)
    wrong = _gradients(False, snn_ext.IMP(init=0.6))
    assert not torch.allclose(plain["lif1.imp"], wrong["lif1.imp"])
