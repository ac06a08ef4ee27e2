"""Which samples are in which batch: a function of seed, epoch and position, so that it can be continued."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

import snn_ext
from recipes.processes import Processes


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for this process, shuffled every epoch; an incomplete last one is left out.

    Every process takes its part of the same shuffled order. Set `epoch`, and `start` to begin in its middle.

    Args:
        samples: how many there are.
        batch: how many of them a process sees at once.

    Raises:
        OptionError: there are fewer samples than one batch of all processes together.
    """

    def __init__(self, samples: int, batch: int, processes: Processes, seed: int) -> None:
        self.samples, self.batch, self.processes, self.seed = samples, batch, processes, seed
        self.epoch = self.start = 0
        if len(self) < 1:
            raise snn_ext.OptionError(
                f"{samples} training samples are less than one batch.",
                why=f"{processes.world} processes with {batch} samples each",
                do="choose a smaller batch: --batch N",
            )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.samples // (self.batch * self.processes.world)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.samples, generator=generator).tolist()
        for position in range(self.start, len(self)):
            first = (position * self.processes.world + self.processes.rank) * self.batch
            yield [(self.epoch, index) for index in order[first : first + self.batch]]


class TestBatches(Sampler[list[tuple[int, int]]]):
    """Every sample once, over all processes together."""

    def __init__(self, samples: int, batch: int, processes: Processes) -> None:
        self.mine = range(processes.rank, samples, processes.world)
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.mine), self.batch):
            yield [(0, index) for index in self.mine[first : first + self.batch]]
