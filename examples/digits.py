"""Two networks on real digits, each trained plain and with snn-ext: what does which method change?

A SpikingJelly and an snnTorch network learn scikit-learn's digits with four objectives (SDT, TET, TET-S,
LTS), each without and with learnable initial membrane potentials (IMP), over several seeds. It prints a
table and says where a method made a difference larger than the spread over seeds, and where it did not.

    python examples/digits.py                  about two minutes on one core
    python examples/digits.py --quick          seconds: is everything in place?
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import digits_figures
import digits_results
import digits_tables
import torch
from digits_networks import NETWORKS, STEPS, Digits, digits
from digits_results import Run
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

import snn_ext

OBJECTIVES = {"SDT": "sdt", "TET": "tet", "TET-S": "tet-s", "LTS": "lts"}
IMP = snn_ext.IMP(init="half")  # every V0 starts at half the threshold, ± 0.1
LEARNING_RATE, WEIGHT_DECAY, BATCH = 2e-3, 1e-2, 64
TITLES = {
    "SpikingJelly": f"SpikingJelly, convolutional integrate-and-fire network, digits, T = {STEPS}",
    "snnTorch": f"snnTorch, fully connected leaky network, digits, T = {STEPS}",
}


def build(framework: str, imp: bool, seed: int, example: Tensor) -> nn.Module:
    """A network; with `imp` the same network, same initial weights, with V0 in it."""
    torch.manual_seed(seed)
    model = NETWORKS[framework]()
    if imp:
        snn_ext.patch(model, imp=IMP, example_input=example)
    return model


def train(
    framework: str,
    objective: str,
    imp: bool,
    seed: int,
    data: Digits,
    epochs: int,
    tell: Callable[[], None],
) -> Run:
    """Train one network; `tell` is called after every epoch."""
    started = time.perf_counter()
    model = build(framework, imp, seed, data.train_images[:1])
    before = initial_potentials(model)
    accuracy, steps = fit(model, snn_ext.loss(model, OBJECTIVES[objective]), seed, data, epochs, tell)
    moved = {name: (v0 - before[name]).abs().mean().item() for name, v0 in initial_potentials(model).items()}
    seconds = time.perf_counter() - started
    return Run(framework, objective, imp, seed, accuracy, steps, moved, seconds)


def fit(
    model: nn.Module,
    crit: snn_ext.Loss,
    seed: int,
    data: Digits,
    epochs: int,
    tell: Callable[[], None],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Train; one loop serves both frameworks. Returns the test accuracy after every epoch, and at the end
    that of every single step."""
    optimizer = torch.optim.AdamW(snn_ext.param_groups(model, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    snn_ext.check_optimizer(model, optimizer)
    order = torch.Generator().manual_seed(seed)
    accuracy: list[float] = []
    steps: tuple[float, ...] = ()
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(data.train_labels), generator=order).split(BATCH):
            snn_ext.reset(model)
            loss = crit(model(data.train_images[batch]), data.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        overall, steps = evaluate(model, crit, data)
        accuracy.append(overall)
        tell()
    return tuple(accuracy), steps


@torch.no_grad()
def evaluate(model: nn.Module, crit: snn_ext.Loss, data: Digits) -> tuple[float, tuple[float, ...]]:
    """Test accuracy in percent: with the readout of the objective, and reading one step alone (T values)."""
    model.eval()
    snn_ext.reset(model)
    output = model(data.test_images)
    steps = tuple(percent(step, data.test_labels) for step in crit.scores(output))
    return percent(crit.predict(output), data.test_labels), steps


def percent(scores: Tensor, labels: Tensor) -> float:
    return 100 * int((scores.argmax(1) == labels).sum()) / len(labels)


def initial_potentials(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every V0 in the model."""
    named = model.named_parameters()
    return {name: v0.detach().clone() for name, v0 in named if name.endswith(".imp")}


def train_all(console: Console, data: Digits, seeds: int, epochs: int) -> list[Run]:
    """Every seed, objective and framework, without and with IMP, under one progress bar."""
    # frameworks alternate: they take different times, and the bar's estimate should hold from the start
    todo = list(itertools.product(range(seeds), OBJECTIVES, (False, True), NETWORKS))
    runs = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(todo) * epochs)
        for seed, objective, imp, framework in todo:
            name = f"{framework} {objective}{' + IMP' if imp else ''}"
            bar.update(task, description=f"{name:<24} seed {seed}")
            runs.append(train(framework, objective, imp, seed, data, epochs, lambda: bar.advance(task)))
        bar.update(task, description="trained")
    return runs


def progress_bar(console: Console, unit: str = "epochs") -> Progress:
    """What is trained now, epochs (or other units) done, time gone and left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
    )


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def arguments(
    description: str | None, out: Path, seeds: int, epochs: int, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """The command line of a demo, with these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=positive, help=f"trainings per configuration (default {seeds})")
    parser.add_argument("--epochs", type=positive, help=f"epochs per training (default {epochs})")
    parser.add_argument("--out", type=Path, default=out, help="folder for pictures and numbers")
    parser.add_argument(
        "--quick", action="store_true", help="2 seeds, 2 epochs, few images: seconds, no result"
    )
    args = parser.parse_args(argv)
    args.seeds = args.seeds or (2 if args.quick else seeds)
    args.epochs = args.epochs or (2 if args.quick else epochs)
    return args


def settings(args: argparse.Namespace, data: Digits, **more: Any) -> dict[str, Any]:
    """Everything that a repetition needs to know."""
    return {
        "command": shlex.join(["python", f"examples/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "seeds": list(range(args.seeds)),
        "epochs": args.epochs,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "steps": STEPS,
        "batch": BATCH,
        "optimizer": f"AdamW(lr={LEARNING_RATE}, weight_decay={WEIGHT_DECAY}; none on V0 and norms)",
        **more,
    }


def main() -> None:
    args = arguments(__doc__, Path("runs/digits"), seeds=5, epochs=8)
    torch.set_num_threads(1)  # layers this small gain little from a second, and results stay reproducible
    console = Console()
    data = digits(200, 100) if args.quick else digits()
    console.rule("[bold]snn-ext: IMP and objectives on scikit-learn's digits")
    for framework in NETWORKS:
        print(snn_ext.report(build(framework, imp=True, seed=0, example=data.train_images[:1])), end="\n\n")
    runs = train_all(console, data, args.seeds, args.epochs)
    comparisons = digits_results.compare(runs, baseline="SDT")
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = {framework: args.out / f"{framework.lower()}.png" for framework in NETWORKS}
    for framework, path in pictures.items():
        digits_figures.draw(runs, framework, TITLES[framework], path)
    numbers = args.out / "results.json"
    setup = settings(args, data, imp=repr(IMP), objectives=OBJECTIVES)
    digits_results.write(numbers, runs, comparisons, setup)
    digits_tables.show(console, runs, comparisons, len(data.test_labels))
    console.print("\nwritten: " + ", ".join(map(str, [*pictures.values(), numbers])), highlight=False)


if __name__ == "__main__":
    main()
