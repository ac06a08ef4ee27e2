"""`convert_sync_batchnorm`: two processes with half a batch each equal one process with the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

import snn_ext
from snn_ext.norms import TimedNorm
from tests.adapters.sync_worker import CASES, run

ROOT = Path(__file__).parents[2]
Results = list[dict[str, dict[str, Tensor]]]


def two_processes(folder: Path, mode: str) -> Results:
    command = [sys.executable, "-m", "tests.adapters.sync_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(folder), mode], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]


@pytest.fixture(scope="module")
def synchronised(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return two_processes(tmp_path_factory.mktemp("sync"), "sync")


@pytest.mark.parametrize("case", CASES)
def test_statistics_and_gradients_equal_one_process(case: str, synchronised: Results) -> None:
    alone = run(case, 0, 1)
    assert any("running" in name for name in alone)
    for mine in synchronised:
        assert mine[case].keys() == alone.keys()
        for name, value in alone.items():
            # float64; sums are taken in another order
            torch.testing.assert_close(
                mine[case][name], value, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_without_the_conversion_they_differ(tmp_path: Path) -> None:
    """The twin: statistics of half a batch are other statistics."""
    first, second = two_processes(tmp_path, "plain")
    for case in CASES:
        names = [n for n in first[case] if "running_mean" in n]
        assert any(not torch.allclose(first[case][n], second[case][n], rtol=1e-5) for n in names)


def test_one_process_is_not_changed_by_the_conversion() -> None:
    for case in CASES:
        plain, converted = run(case, 0, 1, synchronise=False), run(case, 0, 1)
        assert plain.keys() == converted.keys()
        assert all(torch.equal(plain[n], converted[n]) for n in plain)


def test_what_torchs_own_conversion_would_lose() -> None:
    """Why there is a conversion of our own: TEBN's scale and the time dimension survive it."""
    net = nn.Sequential(layer.Conv2d(2, 4, 3, step_mode="m"), layer.BatchNorm2d(4, step_mode="m"))
    snn_ext.patch(net, tebn=True, timesteps=3)
    with torch.no_grad():
        net[1].tebn.scale.copy_(torch.tensor([1.0, 2.0, 3.0]))
    expected = net.eval()(torch.ones(3, 2, 2, 6, 6))
    assert torch.equal(snn_ext.convert_sync_batchnorm(net)(torch.ones(3, 2, 2, 6, 6)), expected)
    lost = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert not isinstance(lost[1], TimedNorm)
