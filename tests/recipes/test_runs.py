"""Every preset learns, alone and in two processes, and goes on after a stop as if there had been none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import snn_ext
from tests.recipes.runs import (
    checkpoint,
    differences,
    events,
    play,
    small,
    straight_and_resumed,
    unequal,
)
from tests.recipes.worker import ALONE

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
pytest.importorskip("snntorch", reason="snntorch is not installed")

ROOT = Path(__file__).parents[2]
NAMES = (
    "cifar10dvs-vgg11-imp-tets",
    "ncaltech101-vgg11-imp-tets",
    "dvscifar10-vgg-tebn",
    "imagenet-sew18-imp-lts",
    "cifar10-resnet-mpbn",
    "cifar100-resnet-mpbn",
    "cifar10-vgg9-bntt",
)


def test_these_are_all_presets() -> None:
    from recipes.presets import PRESETS

    assert tuple(PRESETS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_alone(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Every network once with as many pixels as it is made for."""
    full_size = name not in ("ncaltech101-vgg11-imp-tets", "dvscifar10-vgg-tebn")
    straight_and_resumed(name, small(name, full_size=full_size), folders, tmp_path)
    assert unequal(tmp_path) == []
    check_run(tmp_path / "straight", processes=1)


def test_two_processes(folders: dict[str, Path], tmp_path: Path) -> None:
    """All in one test: the processes start once, also where tests are distributed."""
    start_pair(folders, tmp_path)
    for name in NAMES:
        assert unequal(tmp_path / name) == [], name
        check_run(tmp_path / name / "straight", processes=2)
        first, second = checkpoint(tmp_path / name / "straight")["generators"]
        assert not torch.equal(first["torch"], second["torch"]), "dropout differs between processes"
    check_gradients(folders, tmp_path)


def start_pair(folders: dict[str, Path], out: Path) -> None:
    command = [sys.executable, "-m", "tests.recipes.worker"]
    folder = str(folders["cifar10"].parent)
    workers = [
        subprocess.Popen([*command, rank, folder, str(out)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors


def check_run(out: Path, processes: int) -> None:
    """Two batches are done: a loss for each, one test, and everything that a repetition has to know."""
    (start,) = events(out, "start")
    assert start["processes"] == processes
    assert start["samples"]["train"] >= 8
    assert len(start["split"]) == 64
    assert start["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"seed", "steps", "batch", "amp", "preset", "settings"} <= set(start)
    losses = [line["loss"] for line in events(out, "batch")]
    assert len(set(losses)) == 2
    assert all(0 < loss < 100 for loss in losses)
    assert [line["iteration"] for line in events(out, "test")] == [2]
    assert list((out / "tensorboard").glob("events*"))


def check_gradients(folders: dict[str, Path], out: Path) -> None:
    """With batch norms over both, two times two samples are four: the gradients are those of one process."""
    one = replace(small(ALONE, batch=4), augmentation=())
    alone = gradients(play(ALONE, one, folders, out / "one", 1))
    # sums over the batch are taken in another order, and a spike at the threshold may fall on either side
    assert (gradients(out / "synchronised") - alone).norm() < 0.02 * alone.norm()
    assert (gradients(out / "apart") - alone).norm() > 0.2 * alone.norm(), "the twin: norms of their own"


def gradients(out: Path) -> torch.Tensor:
    """All of the first batch: where momentum starts."""
    states = checkpoint(out)["parts"]["optimiser"]["state"].values()
    return torch.cat([state["momentum_buffer"].flatten() for state in states])


# ---------------------------------------------------------------- whole epochs


def test_epochs_end_and_go_on(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stopped in the second epoch; workers read the data in one of the runs."""
    preset = small(ALONE)
    preset = replace(preset, schedule=replace(preset.schedule, epochs=2))
    play(ALONE, preset, folders, tmp_path / "straight", 100, workers=2)
    play(ALONE, preset, folders, tmp_path / "resumed", 7)
    place = checkpoint(tmp_path / "resumed")["place"]
    assert (place["epoch"], place["position"], place["iteration"]) == (1, 2, 7)
    play(ALONE, preset, folders, tmp_path / "resumed", 100, resume=True)
    assert unequal(tmp_path) == []
    out = tmp_path / "straight"
    assert [line["lr"] for line in events(out, "batch")] == [0.1] * 5 + [0.05] * 5
    assert checkpoint(out)["place"]["epoch"] == 2
    accuracies = [line["accuracy"] for line in events(out, "test")]
    assert events(out, "test")[-1]["best"] == max(accuracies)
    assert len(accuracies) == 2
    again = build(preset, 10)
    snn_ext.load(again, out / "model.safetensors")
    assert differences(again.state_dict(), checkpoint(out)["parts"]["model"]) == []


def build(preset: Any, classes: int) -> torch.nn.Module:
    from recipes import networks

    model: torch.nn.Module = networks.build(preset, classes)
    return model


def test_a_test_in_between_changes_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are coded at random there too."""
    from recipes.loop import Training

    name = "cifar10-vgg9-bntt"
    play(name, small(name), folders, tmp_path / "tested", 1)
    monkeypatch.setattr(Training, "test", lambda self: 0.0)
    play(name, small(name), folders, tmp_path / "untested", 1)
    tested, untested = (checkpoint(tmp_path / out) for out in ("tested", "untested"))
    assert differences(tested["parts"], untested["parts"]) == []
    assert differences(tested["generators"], untested["generators"]) == []


def test_after_a_crash(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on at the last checkpoint inside the epoch; what was logged after that is forgotten."""
    from recipes import loop

    preset = small(ALONE)
    play(ALONE, preset, folders, tmp_path / "straight", 4)
    step = loop.Training.step

    def crashing(self: Any, *batch: Any) -> Any:
        if self.place.iteration == 3:
            raise KeyboardInterrupt
        return step(self, *batch)

    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    monkeypatch.setattr(loop.Training, "step", crashing)
    with pytest.raises(KeyboardInterrupt):
        play(ALONE, preset, folders, tmp_path / "resumed", 4)
    monkeypatch.setattr(loop.Training, "step", step)
    assert len(events(tmp_path / "resumed", "batch")) == 3
    assert checkpoint(tmp_path / "resumed")["place"]["iteration"] == 2
    with (tmp_path / "resumed" / "log.jsonl").open("a") as log:
        log.write('{"event": "bat')  # torn
    play(ALONE, preset, folders, tmp_path / "resumed", 4, resume=True)
    assert unequal(tmp_path) == []
    starts = [line["iteration"] for line in events(tmp_path / "resumed", "start")]
    assert starts == [0, 2]


# ---------------------------------------------------------------- twins: what would be seen, if forgotten


def forgets_generators(patch: pytest.MonkeyPatch) -> None:
    from recipes import checkpoint

    patch.setattr(checkpoint, "_set_generators", lambda states, device: None)


def forgets_momentum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.optim.SGD, "load_state_dict", lambda self, state: None)


def forgets_position(patch: pytest.MonkeyPatch) -> None:
    from recipes.sampler import TrainingBatches

    patch.setattr(TrainingBatches, "start", property(lambda self: 0, lambda self, value: None), raising=False)


def forgets_statistics(patch: pytest.MonkeyPatch) -> None:
    from recipes.checkpoint import Parts

    load = Parts.load

    def without(self: Any, states: dict[str, Any]) -> None:
        load(self, states)
        for name, buffer in self.model.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()

    patch.setattr(Parts, "load", without)


@pytest.mark.parametrize(
    "forget", [forgets_generators, forgets_momentum, forgets_position, forgets_statistics]
)
def test_twins(
    forget: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cifar10-vgg9-bntt"  # it draws random numbers at every step
    preset = small(name)
    play(name, preset, folders, tmp_path / "straight", 2)
    play(name, preset, folders, tmp_path / "resumed", 1)
    forget(monkeypatch)
    play(name, preset, folders, tmp_path / "resumed", 2, resume=True)
    assert unequal(tmp_path)
