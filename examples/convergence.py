"""How fast does which objective learn by heart, with and without IMP? Figures 5 and 8 of the IMP paper.

An ordinary SpikingJelly MLP learns 1,024 random inputs with random labels, full batch, with the losses SDT,
TET, TET-S and LTS, without and with learnable initial membrane potentials, T = 1, 2, 4 and 6. Each loss is
logged on its own scale, as in the paper, and on scales that are the same for all. Finished trainings are kept
in --out: called again, the script goes on where it was interrupted.

    python examples/convergence.py             about 20 minutes on one core
    python examples/convergence.py --quick     seconds: is everything in place?
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import convergence_figures
import convergence_results as results
import convergence_tables
import torch
from convergence_networks import INPUTS, WIDTHS, Task, draw
from convergence_results import COINCIDE, OBJECTIVES, PUBLISHED, PUBLISHED_STEPS, Run, Setup
from digits import progress_bar
from digits_results import origin
from rich.console import Console
from torch import Tensor, nn

import snn_ext

IMP = snn_ext.IMP(init=(-0.2, 0.2))  # the range of the published script
RESEED = 7  # V0 is drawn from a generator of its own, seeded 2024 + 7 in the published script's first run
FIRST_SEED = 2024
LEARNING_RATE = 1e-3
LOG_EVERY = 10


def build(setup: Setup) -> tuple[nn.Module, Task]:
    """Network and task; IMP changes neither the weights nor the data."""
    model, task = draw(setup.seed, setup.reset)
    if setup.imp:
        torch.manual_seed(setup.seed + RESEED)
        model = snn_ext.patch(model, imp=IMP, example_input=task.sequence(setup.steps)[:, :1])
    return model, task


def train(setup: Setup) -> Run:
    """One training from beginning to end."""
    started = time.process_time()
    model, task = build(setup)
    before = potentials(model)
    points = dict(iterate(setup, model, task))
    moved = [(after - v0).abs().mean().item() for v0, after in zip(before, potentials(model), strict=True)]
    return Run(
        setup,
        tuple(points),
        {name: tuple(point[name] for point in points.values()) for name in points[0]},
        sum(moved) / len(moved) if moved else None,
        round(time.process_time() - started, 2),
    )


def iterate(setup: Setup, model: nn.Module, task: Task) -> Iterator[tuple[int, dict[str, float]]]:
    """Train, and yield what was measured, every `LOG_EVERY` iterations and in the last one."""
    crit = snn_ext.loss(model, OBJECTIVES[setup.objective])
    optimizer = torch.optim.Adam(snn_ext.param_groups(model, lr=LEARNING_RATE))
    snn_ext.check_optimizer(model, optimizer)
    sequence = task.sequence(setup.steps)
    for iteration in range(setup.iterations):
        snn_ext.reset(model)
        output = model(sequence)
        loss = crit(output, task.labels)
        if iteration % LOG_EVERY == 0 or iteration == setup.iterations - 1:
            scores = output.detach()
            yield iteration, results.measure(scores, task.labels, crit.predict(scores), loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def potentials(model: nn.Module) -> list[Tensor]:
    """A copy of every V0 in the model."""
    return [v0.detach().clone() for name, v0 in model.named_parameters() if name.endswith(".imp")]


def identity(seed: int, iterations: int, steps: int = 1) -> dict[str, Any]:
    """With one step SDT, TET and LTS are one loss: are networks trained with them equal to the last bit?"""
    equal = {}
    for imp in (False, True):
        trained = []
        for objective in COINCIDE:
            setup = Setup(objective, imp, steps, seed, iterations)
            model, task = build(setup)
            losses = [point["loss"] for _, point in iterate(setup, model, task)]
            trained.append((losses, torch.nn.utils.parameters_to_vector(model.parameters())))
        (losses, weights), *others = trained
        equal["with IMP" if imp else "without IMP"] = all(
            other_losses == losses and torch.equal(other_weights, weights)
            for other_losses, other_weights in others
        )
    return {
        "objectives": list(COINCIDE),
        "steps": steps,
        "seed": seed,
        "iterations": iterations,
        "loss": losses[
            -1
        ],  # with IMP: it has left ln(16) = 2.773, so that there was something to be equal in
        "equal": equal,
    }


# ---------------------------------------------------------------- the sweep


def sweep(args: argparse.Namespace) -> list[Setup]:
    """All trainings, the most telling ones first: what is interrupted has a result nevertheless."""
    top = PUBLISHED_STEPS if PUBLISHED_STEPS in args.steps else args.steps[-1]
    others = [steps for steps in args.steps if steps != top]
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    pairs = [(top, FIRST_SEED), *((steps, FIRST_SEED) for steps in others)]
    pairs += [(top, seed) for seed in seeds[1:]]
    pairs += [(steps, seed) for seed in seeds[1 : args.grid_seeds] for steps in others]
    found = [
        Setup(objective, imp, steps, seed, iterations(args, objective, steps, seed))
        for (steps, seed), objective, imp in itertools.product(pairs, OBJECTIVES, (False, True))
        if steps > 1 or objective == COINCIDE[0] or objective not in COINCIDE
    ]
    # a deliberately different neuron: would the comparison with the published curves notice?
    controls = [
        Setup(objective, False, top, FIRST_SEED, min(201, args.iterations), reset="hard")
        for objective in PUBLISHED
    ]
    return [*found, *controls]


def iterations(args: argparse.Namespace, objective: str, steps: int, seed: int) -> int:
    """As many as the published curves where there are any. Half as many tell the rest of what comes late:
    for the other objectives at the same T, and for TET, which goes on changing there, with other seeds."""
    if steps != PUBLISHED_STEPS or (seed != FIRST_SEED and objective != "TET"):
        return int(args.iterations)
    followed = seed == FIRST_SEED and objective in PUBLISHED
    return int(args.long if followed else max(args.long // 2 + 1, args.iterations))


def train_all(console: Console, setups: Sequence[Setup], folder: Path) -> list[Run]:
    """Those that are not on disk yet, under one progress bar that counts time steps of iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    with progress_bar(console, "trainings") as bar:
        task = bar.add_task("", total=len(setups))
        for setup in setups:
            bar.update(task, description=f"{setup!s:<34}")
            run = results.kept(folder, setup)
            if run is None:
                run = train(setup)
                results.keep(folder, run)
            runs.append(run)
            bar.advance(task)
        bar.update(task, description="trained")
    return runs


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, choices=range(1, 100), metavar="N", help="at T = 4 (default 3)")
    parser.add_argument("--grid-seeds", type=int, metavar="N", help="at other T (default: the same)")
    parser.add_argument(
        "--steps", type=int, nargs="+", choices=range(1, 100), metavar="T", help="(default 1 2 4 6)"
    )
    parser.add_argument("--iterations", type=int, metavar="N", help="per training (default 201)")
    parser.add_argument("--long", type=int, metavar="N", help="at T = 4 (default 1000)")
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"), help="folder for everything")
    parser.add_argument("--collect", action="store_true", help="train nothing: what is there so far?")
    parser.add_argument("--quick", action="store_true", help="1 seed, T = 1 and 2, 6 iterations: no result")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or (1 if args.quick else 3)
    args.grid_seeds = args.grid_seeds or args.seeds
    args.steps = args.steps or ([1, 2] if args.quick else [1, 2, 4, 6])
    args.iterations = args.iterations or (6 if args.quick else 201)
    args.long = args.long or (6 if args.quick else 1000)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(1)  # layers this small gain little from a second, and results stay reproducible
    console = Console()
    console.rule("[bold]snn-ext: learning by heart")
    print(snn_ext.report(build(Setup("TET", True, args.steps[-1], FIRST_SEED, 1))[0]), end="\n\n")
    setups = sweep(args)
    if args.collect:
        setups = [setup for setup in setups if results.kept(args.out / "trainings", setup)]
    runs = train_all(console, setups, args.out / "trainings")
    same = identity(FIRST_SEED, min(100, args.iterations))
    pictures = convergence_figures.draw(runs, args.out)
    numbers = args.out / "results.json"
    results.write(numbers, runs, settings=settings(args), origin=origin(), identity=same)
    convergence_tables.show(console, runs, same)
    console.print("\nwritten: " + ", ".join(map(str, [*pictures, numbers])), highlight=False)


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that a repetition needs to know."""
    return {
        "command": shlex.join(["python", "examples/convergence.py", *sys.argv[1:]]),
        "seeds": list(range(FIRST_SEED, FIRST_SEED + args.seeds)),
        "steps": args.steps,
        "iterations": args.iterations,
        "iterations_at_published_steps": args.long,
        "widths": WIDTHS,
        "inputs": INPUTS,
        "optimizer": f"Adam(lr={LEARNING_RATE}), full batch",
        "imp": repr(IMP),
    }


if __name__ == "__main__":
    main()
