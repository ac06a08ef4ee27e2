"""One of two gloo processes: plays all presets, one after the other, in one process group."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import distributed

from tests.recipes import disk
from tests.recipes.runs import play, small, straight_and_resumed

ALONE = "cifar10-resnet-mpbn"

if __name__ == "__main__":
    rank, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    torchvision.datasets.cifar.check_integrity = disk.is_there
    os.environ.update(WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = f"file://{out}/rendezvous"
    distributed.init_process_group("gloo", init_method=store, rank=int(rank), world_size=2)
    from recipes.presets import PRESETS

    folders = {preset.data: folder / preset.data for preset in PRESETS.values()}
    for name in PRESETS:
        straight_and_resumed(name, small(name), folders, out / name)
    plain = replace(small(ALONE), augmentation=())
    play(ALONE, plain, folders, out / "synchronised", 1, sync_batchnorm=True)
    play(ALONE, plain, folders, out / "apart", 1)
    distributed.destroy_process_group()
