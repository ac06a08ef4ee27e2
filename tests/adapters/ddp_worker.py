"""One process of a two-process gloo run: trains a patched network and writes V0 to a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import snn_ext


def spikingjelly_net() -> nn.Module:
    from spikingjelly.activation_based import functional, layer, neuron

    net = nn.Sequential(
        layer.Linear(6, 8), neuron.IFNode(), layer.Linear(8, 4), neuron.LIFNode(), layer.Linear(4, 3)
    )
    functional.set_step_mode(net, "m")
    return net


class SnnTorchNet(nn.Module):
    def __init__(self) -> None:
        import snntorch

        super().__init__()
        self.fc1, self.lif1 = nn.Linear(6, 8), snntorch.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(8, 3), snntorch.Leaky(beta=0.9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for x_t in x:
            spikes, mem1 = self.lif1(self.fc1(x_t), mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            out.append(mem2)
        return torch.stack(out)


NETS = {"spikingjelly": spikingjelly_net, "snntorch": SnnTorchNet}


def train(framework: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Three SGD steps on this rank's share of every batch; returns all V0."""
    torch.manual_seed(0)
    net = NETS[framework]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    snn_ext.patch(net, imp=True)
    model = DistributedDataParallel(net) if world > 1 else net
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.5))
    crit = snn_ext.loss(net, "tet")
    for _ in range(3):
        x, y = torch.rand(4, 8, 6) * 3, torch.randint(0, 3, (8,))
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        snn_ext.reset(net)
        optimizer.zero_grad()
        crit(model(x[:, mine]), y[mine]).backward()
        optimizer.step()
    return {n: p.detach() for n, p in net.named_parameters() if n.endswith("imp")}


if __name__ == "__main__":
    framework, rank, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(train(framework, rank, 2), folder / f"rank{rank}")
    distributed.destroy_process_group()
