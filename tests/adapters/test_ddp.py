"""Distributed data parallel: two gloo processes train the same V0 as one process on the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import snn_ext
from tests.adapters.ddp_worker import NETS, train

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("framework", NETS)
def test_two_processes_equal_one(framework: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.adapters.ddp_worker", framework]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"rank{rank}") for rank in range(2))
    alone = train(framework, 0, 1)
    assert alone
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), "both ranks hold the same V0"
        # the sum over the batch is taken in another order
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("framework", NETS)
def test_the_workers_do_train_v0(framework: str) -> None:
    """The twin: V0 after training is not V0 before."""
    trained = train(framework, 0, 1)
    torch.manual_seed(0)
    net = NETS[framework]()
    untrained = dict(snn_ext.patch(net, imp=True).named_parameters())
    assert all(not torch.equal(value, untrained[name]) for name, value in trained.items())


def test_a_wrapped_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(NETS["snntorch"]())
        before = list(model.state_dict())
        for call in (snn_ext.patch, snn_ext.plan):
            with pytest.raises(
                snn_ext.UnsupportedSiteError, match=r"(?s)DistributedDataParallel.*do: use the original"
            ):
                call(model, imp=True)
        assert list(model.state_dict()) == before
        snn_ext.patch(model.module, imp=True)
        assert "lif1" in str(snn_ext.report(model)), "looking is allowed"
    finally:
        distributed.destroy_process_group()
