"""The command: what it prints, under torchrun too, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import snn_ext
from tests.recipes.runs import checkpoint, events, play, small
from tests.recipes.test_runs import NAMES

SCRIPT = Path(__file__).parents[2] / "examples" / "train.py"
NAME = "cifar10-resnet-mpbn"


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.delitem(sys.modules, "train", raising=False)
    import train

    monkeypatch.delitem(sys.modules, "train")
    return lambda *args: train.main([str(arg) for arg in args])


def test_the_list_has_every_setting(main: Callable[..., int], capsys: Any, monkeypatch: Any) -> None:
    from recipes.presets import PRESETS, SETTINGS

    monkeypatch.setenv("COLUMNS", "200")
    assert main("--list") == 0
    printed = capsys.readouterr().out
    for name, preset in PRESETS.items():
        assert name in printed
        assert preset.paper in printed
    for setting in SETTINGS:
        assert printed.count(f"{setting} ") >= len(PRESETS)
    assert printed.count("authors' code") >= 5 * len(PRESETS)


def test_help_and_list_import_no_framework() -> None:
    code = f"""
import runpy, sys
sys.argv = ["train.py", "--list"]
try:
    runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
assert not {{"spikingjelly", "snntorch", "torchvision"}} & set(sys.modules)
"""
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}){code}"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=300)


def test_torchrun(folders: dict[str, Path], tmp_path: Path) -> None:
    """As a user would; two processes, mixed precision, the options of the command line."""
    out = tmp_path / "out"
    options = (
        f"--preset imagenet-sew18-imp-lts --data {folders['imagenet']} --out {out} --iterations 1 --batch 1"
    )
    options += " --steps 2 --seed 5 --epochs 3 --device cpu --workers 0 --amp bf16"
    run = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, "-m", *run, str(SCRIPT), *options.split()],
        check=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    (start,) = events(out, "start")
    chosen = {"preset": "imagenet-sew18-imp-lts", "processes": 2, "batch": 1, "steps": 2}
    assert start.items() >= (chosen | {"seed": 5, "epochs": 3, "amp": "bf16"}).items()
    assert len(events(out, "batch")) == 1


# ---------------------------------------------------------------- what is refused


def test_errors_are_messages(main: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    assert main("--preset", NAME, "--data", tmp_path, "--out", tmp_path / "out", "--device", "cpu") == 2
    told = capsys.readouterr().err
    assert told.startswith("OptionError: ")
    assert f"{tmp_path}/cifar-10-batches-py/data_batch_1" in told
    assert told.strip().splitlines()[-1].startswith("  do: get the data set from its authors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [[], ["--preset", NAME], ["--preset", "alexnet"]])
def test_incomplete_commands(main: Callable[..., int], given: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(*given)
    assert "--" in capsys.readouterr().err


@pytest.fixture
def run(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A run of one batch."""
    return play(NAME, small(NAME), folders, tmp_path / "out", 1)


def test_a_run_is_not_overwritten(run: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(snn_ext.CheckpointError, match="do: go on with it by --resume"):
        play(NAME, small(NAME), folders, run, 2)


def test_a_checkpoint_of_another_run(run: Path, folders: dict[str, Path]) -> None:
    before = (run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_bytes()
    for changes, key in (({"seed": 1}, "seed was 3407 and is 1"), ({"batch": 3}, "batch was 2 and is 3")):
        with pytest.raises(snn_ext.CheckpointError, match=key):
            play(NAME, replace(small(NAME), **changes), folders, run, 2, resume=True)
    with pytest.raises(snn_ext.CheckpointError, match="preset was"):
        play("another", small(NAME), folders, run, 2, resume=True)
    assert ((run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_bytes()) == before


def test_nothing_to_resume(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(snn_ext.CheckpointError, match="nothing to resume"):
        play(NAME, small(NAME), folders, tmp_path / "out", 2, resume=True)


def test_a_torn_checkpoint(run: Path, folders: dict[str, Path]) -> None:
    whole = (run / "checkpoint.pt").read_bytes()
    for torn in (b"", whole[:1000], whole[: len(whole) // 2], b"not a checkpoint"):
        (run / "checkpoint.pt").write_bytes(torn)
        with pytest.raises(snn_ext.CheckpointError, match="cannot be read"):
            play(NAME, small(NAME), folders, run, 2, resume=True)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


def test_a_checkpoint_executes_nothing(run: Path, folders: dict[str, Path]) -> None:
    torch.save({"identity": Payload()}, run / "checkpoint.pt")
    with pytest.raises(snn_ext.CheckpointError, match="cannot be read"):
        play(NAME, small(NAME), folders, run, 2, resume=True)


def test_a_failed_write_leaves_the_old_checkpoint(
    run: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (run / "checkpoint.pt").read_bytes()

    def half(document: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space left"):
        play(NAME, small(NAME), folders, run, 2, resume=True)
    assert (run / "checkpoint.pt").read_bytes() == before
    assert {p.name for p in run.iterdir()} == {"checkpoint.pt", "log.jsonl", "tensorboard"}


def test_too_few_samples(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(snn_ext.OptionError, match=r"(?s)10 training samples.*do: .*--batch N"):
        play(NAME, small(NAME, batch=11), folders, tmp_path / "out", 1)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("name", "amp", "used"),
    [(NAME, None, "no"), (NAME, "bf16", "bf16"), ("imagenet-sew18-imp-lts", None, "bf16")],
)
def test_precision_on_the_cpu(name: str, amp: str | None, used: str) -> None:
    from recipes.loop import Options, Precision

    cpu = torch.device("cpu")
    precision = Precision.of(small(name), Options(Path(), Path(), amp=amp), cpu)
    assert precision.name == used
    with precision.autocast():
        product = torch.rand(2, 2) @ torch.rand(2, 2)
    assert product.dtype == (torch.float32 if used == "no" else torch.bfloat16)
    assert not precision.scaler().is_enabled()


def test_fp16_needs_cuda(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(snn_ext.OptionError, match="--amp bf16"):
        play(NAME, small(NAME), folders, tmp_path / "out", 1, amp="fp16")


@pytest.mark.parametrize("name", NAMES)
def test_bf16(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    play(name, small(name), folders, tmp_path, 1, amp="bf16")
    weights = checkpoint(tmp_path)["parts"]["model"].values()
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.float32}


# ---------------------------------------------------------------- weights to start from


def test_weights(tmp_path: Path) -> None:
    """torchvision's ResNet-18 has the names of SEW-ResNet-18; a layer of another shape stays as it is."""
    from recipes.loop import load_weights
    from recipes.networks import build
    from torchvision.models import resnet18

    ann = resnet18(num_classes=1000)
    torch.save(ann.state_dict(), tmp_path / "ann.pth")
    model = build(small("imagenet-sew18-imp-lts"), 7)
    own = model.fc.weight.detach().clone()
    load_weights(model, tmp_path / "ann.pth")
    state = model.state_dict()
    for key, value in ann.state_dict().items():
        if not key.startswith("fc."):
            assert torch.equal(state.pop(key), value), key
    assert torch.equal(state.pop("fc.weight"), own)
    assert set(state) == {"fc.bias"}


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    from recipes.loop import load_weights

    model = torch.nn.Linear(2, 2)
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(snn_ext.OptionError, match=r"(?s)nothing in .* fits.*other"):
        load_weights(model, tmp_path / "other.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    for path in ("tensor.pth", "nowhere.pth"):
        with pytest.raises(snn_ext.OptionError, match="is not a state dict"):
            load_weights(model, tmp_path / path)
