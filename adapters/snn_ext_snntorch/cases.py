"""Networks for the compliance suite: hidden states with the loop outside, explicit states with it inside."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

from snn_ext.testing import Case

__all__ = ["cases"]


def _hidden() -> nn.Module:
    """A Sequential of one step; snnTorch keeps the states."""
    common = {"init_hidden": True}
    net = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        snn.Leaky(beta=0.5, **common),
        nn.Linear(6, 5),
        snn.Leaky(beta=0.5, reset_mechanism="zero", spike_grad=surrogate.fast_sigmoid(slope=5), **common),
        nn.Linear(5, 5),
        snn.Synaptic(alpha=0.5, beta=0.5, reset_mechanism="zero", **common),  # charges twice per step
        nn.Linear(5, 3),
        snn.Leaky(beta=torch.tensor([0.5, 0.25, 1.0]), threshold=0.5, output=True, **common),
    )
    return _driven(net)


def _picklable() -> nn.Module:
    """snnTorch's surrogates are closures, which do not pickle; without them its neurons do."""
    leaky = {"beta": 0.5, "init_hidden": True, "surrogate_disable": True}
    return _driven(nn.Sequential(nn.Linear(4, 5), snn.Leaky(**leaky), nn.Linear(5, 3), snn.Leaky(**leaky)))


class _Explicit(nn.Module):
    """The loop and the states in forward, as in snnTorch's tutorials; returns both recordings.

    Spikes are float32 in snnTorch whatever their input is: the cast lets the net run in half precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1, self.lif1 = nn.Linear(4, 6), nn.BatchNorm1d(6), snn.Leaky(beta=0.5)
        self.fc2, self.lif2 = nn.Linear(6, 3), snn.Lapicque(R=2.0, C=1.0, time_step=1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = x.new_zeros(x.shape[1], 6), self.lif2.init_lapicque()  # both ways to begin
        spikes, membranes = [], []
        for x_t in x:
            spk1, mem1 = self.lif1(self.bn1(self.fc1(x_t)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1.to(x_t)), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def _driven(net: nn.Module) -> nn.Module:
    """So that every neuron fires now and then."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(5)
    return net


def _loop(net: nn.Module, x: Tensor) -> Any:
    """Hidden states: every call is a step."""
    steps = [net(x_t) for x_t in x]
    if isinstance(steps[0], tuple):
        return tuple(torch.stack(recording) for recording in zip(*steps, strict=True))
    return torch.stack(steps)


def _play(neuron: Any, x: Tensor) -> Tensor:
    """Spikes of one neuron, whoever keeps its state."""
    spikes, state = [], ()
    for x_t in x:
        output = neuron(x_t, *state)
        spike, *rest = output if isinstance(output, tuple) else (output,)
        state = () if neuron.init_hidden else tuple(rest)
        spikes.append(spike)
    return torch.stack(spikes)


def _scores(output: Any, want: str) -> Tensor:
    if isinstance(output, tuple):
        output = output[0] if want == "spikes" else output[-1]
    scores: Tensor = output
    return scores


def cases() -> tuple[Case, ...]:
    """Made when asked for: snnTorch is imported here."""

    def sequences(batch: int) -> Tensor:
        return torch.rand(6, batch, 4) * 4 - 1

    return (
        Case(
            name="snntorch-hidden",
            make_model=_hidden,
            make_input=sequences,
            run=_loop,
            play=_play,
            reset=utils.reset,
            example=lambda x: x[0],
            scores=_scores,
            neurons=("2", "4", "6", "8"),
        ),
        Case(
            name="snntorch-explicit",
            make_model=lambda: _driven(_Explicit()),
            make_input=sequences,
            play=_play,
            scores=_scores,
            neurons=("lif1", "lif2"),
        ),
        Case(
            name="snntorch-picklable",
            make_model=_picklable,
            make_input=sequences,
            run=_loop,
            play=_play,
            reset=utils.reset,
            example=lambda x: x[0],
            scores=_scores,
            neurons=("1", "3"),
        ),
    )
