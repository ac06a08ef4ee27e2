"""What a run says: a line of JSON per event, TensorBoard, a progress bar. Only the first process speaks."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import snn_ext
from recipes.checkpoint import Place

FILE = "log.jsonl"
_PACKAGES = ("torch", "torchvision", "spikingjelly", "snntorch", "tonic", "numpy")


def versions() -> dict[str, str | None]:
    """Of everything that takes part; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "snn-ext": snn_ext.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


class Log:
    """Writes `log.jsonl` and a TensorBoard folder, and shows a bar.

    The file has one object per line: ``{"event": "start" | "batch" | "test", "iteration": ..., ...}``. A run
    that goes on at a checkpoint drops what it had written after it.
    """

    def __init__(self, folder: Path, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and only this process needs it

        self.console = Console()
        kept = _until(folder / FILE, place.iteration)
        self.file = (folder / FILE).open("w", encoding="utf-8", buffering=1)
        self.file.writelines(kept)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=place.iteration + 1)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task("")

    def start(self, place: Place, settings: dict[str, Any], description: str) -> None:
        """The beginning, or the going on, of a run."""
        self.console.print(description, highlight=False, soft_wrap=True)
        self._write("start", place, **settings, versions=versions())
        self.bar.start()

    def batch(self, place: Place, loss: float, lr: float, batches: int) -> None:
        """One batch has been learned."""
        self._write("batch", place, loss=loss, lr=lr)
        self.board.add_scalar("loss", loss, place.iteration)
        self.board.add_scalar("lr", lr, place.iteration)
        self.bar.update(
            self.task,
            description=f"epoch {place.epoch + 1}, loss {loss:.3f}",
            completed=place.position,
            total=batches,
        )

    def test(self, place: Place, accuracy: float) -> None:
        """The network has been tested."""
        self._write("test", place, accuracy=accuracy, best=place.best)
        self.board.add_scalar("test accuracy (%)", accuracy, place.iteration)
        self.console.print(
            f"iteration {place.iteration}, {place.epoch} epochs: {accuracy:.2f} % of the test set are right"
            f" (best epoch: {place.best:.2f} %)",
            highlight=False,
        )

    def close(self) -> None:
        self.bar.stop()
        self.board.close()
        self.file.close()

    def _write(self, event: str, place: Place, **more: Any) -> None:
        line = {"event": event, "iteration": place.iteration, "epoch": place.epoch, **more}
        self.file.write(json.dumps(line) + "\n")


class Silence(Log):
    """For all processes but the first."""

    def __init__(self) -> None:
        pass

    def start(self, place: Place, settings: dict[str, Any], description: str) -> None:
        pass

    def batch(self, place: Place, loss: float, lr: float, batches: int) -> None:
        pass

    def test(self, place: Place, accuracy: float) -> None:
        pass

    def close(self) -> None:
        pass


def _until(path: Path, iteration: int) -> list[str]:
    """The lines of an earlier log up to this iteration; a torn last line is left out."""
    if iteration == 0 or not path.is_file():
        return []
    lines = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("}\n")]
    return [line for line in lines if json.loads(line)["iteration"] <= iteration]
