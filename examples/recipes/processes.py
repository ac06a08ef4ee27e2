"""One process, or several started by torchrun: gloo on the CPU, nccl on CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """This process among all: `rank` of `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def lead(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model for training: gradients are averaged over all processes."""
        if self.world == 1:
            return model
        cuda = self.device.type == "cuda"
        return DistributedDataParallel(model, device_ids=[self.device] if cuda else None)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def gather(self, item: Any) -> list[Any]:
        """What every process has, in the order of ranks."""
        items = [item] * self.world
        if self.world > 1:
            distributed.all_gather_object(items, item)
        return items

    def same_buffers(self, model: nn.Module) -> None:
        """Give all processes the running statistics of the first one, as DDP does before each forward."""
        if self.world > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    @contextmanager
    def lead_first(self) -> Iterator[None]:
        """The first process goes through the block alone; the others follow when it is done."""
        if self.world > 1 and not self.lead:
            distributed.barrier()
        yield
        if self.world > 1 and self.lead:
            distributed.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """All processes that torchrun started, or this one; a group that exists is used and left open."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = torch.device(device)
    if place.type == "cuda":
        place = torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) if world > 1 else place.index or 0
        )
        torch.cuda.set_device(place)
    if world == 1:
        yield Processes(0, 1, place)
        return
    opened = not distributed.is_initialized()
    if opened:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), world, place)
    finally:
        if opened:
            distributed.destroy_process_group()
