"""One process of a two-process gloo run with synchronised norms; writes gradients and statistics."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import snn_ext
from snn_ext import BNTT, TEBN

STEPS, BATCH = 3, 8


def spikingjelly_net() -> nn.Module:
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), neuron.IFNode(), layer.Flatten(), layer.Linear(4 * 16, 3)
    )
    functional.set_step_mode(net, "m")
    return net


class SnnTorchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.lif = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), snntorch.Leaky(beta=0.75)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        mem, out = self.lif.init_leaky(), []
        for x_t in x:
            spikes, mem = self.lif(self.bn(self.conv(x_t)), mem)
            out.append(self.fc(spikes.flatten(1).to(x.dtype)))  # snnTorch's spikes are float32
        return torch.stack(out)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "spikingjelly, plain batch norm": (spikingjelly_net, {}),
    "spikingjelly, TEBN": (spikingjelly_net, {"tebn": True}),
    "spikingjelly, BNTT and MPBN": (spikingjelly_net, {"bntt": BNTT(bias=True), "mpbn": True, "imp": True}),
    "snntorch, plain batch norm": (SnnTorchNet, {}),
    "snntorch, BNTT and MPBN": (SnnTorchNet, {"bntt": True, "mpbn": True}),
    "snntorch, TEBN per step": (SnnTorchNet, {"tebn": TEBN(stats="step")}),
}


def run(case: str, rank: int, world: int, *, synchronise: bool = True) -> dict[str, Tensor]:
    """One training step on this rank's share of the batch: gradients and running statistics."""
    torch.manual_seed(0)
    make, methods = CASES[case]
    net = make().double()
    x, y = torch.rand(STEPS, BATCH, 2, 6, 6).double() * 4, torch.randint(0, 3, (BATCH,))
    if methods:
        snn_ext.patch(net, example_input=x, **methods)
    if synchronise:
        snn_ext.convert_sync_batchnorm(net)
    model = DistributedDataParallel(net) if world > 1 else net
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    snn_ext.loss(net, "tet")(model(x[:, mine]), y[mine]).backward()
    found = {f"grad {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    return found | {n: b for n, b in net.named_buffers() if "running" in n}


if __name__ == "__main__":
    rank, folder, synchronise = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "sync"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({c: run(c, rank, 2, synchronise=synchronise) for c in CASES}, folder / f"rank{rank}")
    distributed.destroy_process_group()
