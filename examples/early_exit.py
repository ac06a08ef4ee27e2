"""How many time steps does an image need? Early exit on a spiking network with BNTT, on real digits.

A SpikingJelly network, called one step at a time, is patched with BNTT (a batch norm per time step) and
learns scikit-learn's digits from random spikes over 16 steps. Then it classifies the test images

- with the first t steps for everybody, t = 1 ... 16: what any other way to save steps must beat;
- with `ConfidenceExit(p)`: every image leaves as soon as the network is sure enough;
- with the threshold that `calibrate_exit` picks on validation images for one point of accuracy;
- with `BNTTExit`, which reads one step for all images off the trained gammas.

    python examples/early_exit.py              under a minute on one core
    python examples/early_exit.py --quick      seconds: is everything in place?
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import digits_results
import matplotlib
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTTExit, ConfidenceExit
from snn_ext.analysis.early_exit import gamma_sizes

STEPS = 16
THRESHOLDS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97)
ALLOWED_LOSS = 0.01
COLORS = {"fixed": "#6b7380", "confidence": "#0b6e99", "calibrated": "#c2410c"}


@dataclass(frozen=True)
class Part:
    """Images [N, 64] in 0..1 and labels [N]."""

    images: Tensor
    labels: Tensor

    def spikes(self, seed: int) -> Tensor:
        """[T, N, 64]: every pixel spikes at random, with its brightness as probability."""
        generator = torch.Generator().manual_seed(seed)
        return torch.bernoulli(self.images.expand(STEPS, *self.images.shape), generator=generator)


@dataclass(frozen=True)
class Point:
    """Accuracy in percent, and steps used per image on average."""

    accuracy: float
    steps: float


@dataclass(frozen=True)
class Run:
    """What one trained network did.

    `calibrated`, its `threshold` and its time are None where no threshold fitted; `gammas` are the smallest
    and the largest mean |gamma| of a layer and step; `seconds` with all steps and with the calibrated exit.
    """

    seed: int
    fixed: tuple[Point, ...]
    confidence: dict[float, Point]
    calibrated: Point | None
    threshold: float | None
    bntt: Point
    bntt_exits: bool
    gammas: tuple[float, float]
    seconds: tuple[float, float | None]


def from_json(record: dict[str, Any]) -> Run:
    """What `main` wrote."""

    def points(found: Iterable[dict[str, float]]) -> tuple[Point, ...]:
        return tuple(Point(**point) for point in found)

    return Run(
        **{
            **record,
            "fixed": points(record["fixed"]),
            "confidence": {float(p): Point(**point) for p, point in record["confidence"].items()},
            "calibrated": record["calibrated"] and Point(**record["calibrated"]),
            "bntt": Point(**record["bntt"]),
        }
    )


def data(quick: bool) -> tuple[Part, Part, Part]:
    """Training, validation and test part, disjoint; the same for all seeds."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target)
    sizes = (400, 150, 150) if quick else (957, 300, 540)
    rest, test = train_test_split(
        range(len(labels)), train_size=sum(sizes[:2]), test_size=sizes[2], stratify=labels, random_state=0
    )
    train, validation = train_test_split(
        rest, train_size=sizes[0], test_size=sizes[1], stratify=labels[rest], random_state=0
    )
    return tuple(Part(images[part], labels[part]) for part in (train, validation, test))  # type: ignore[return-value]


def network(seed: int) -> nn.Module:
    """An ordinary network of one step, [B, 64] -> [B, 10], and BNTT in the place of its batch norms."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        layer.Linear(64, 64, bias=False),
        layer.BatchNorm1d(64),
        neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan()),
        layer.Linear(64, 64, bias=False),
        layer.BatchNorm1d(64),
        neuron.LIFNode(decay_input=False, surrogate_function=surrogate.ATan()),
        layer.Linear(64, 10),
    )
    return snn_ext.patch(net, bntt=snn_ext.BNTT(bias=True), timesteps=STEPS)


def train(net: nn.Module, part: Part, epochs: int, seed: int) -> None:
    """Cross-entropy of the mean score (SDT): early exit reads the mean, too."""
    crit = snn_ext.loss(net, "sdt")
    optimizer = torch.optim.Adam(snn_ext.param_groups(net, lr=2e-3))
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        net.train()
        spikes = part.spikes(1000 * seed + epoch)
        for batch in torch.randperm(len(part.labels), generator=order).split(64):
            snn_ext.reset(net)
            loss = crit(torch.stack([net(x) for x in spikes[:, batch]]), part.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return 100 * int((scores.argmax(1) == labels).sum()) / len(labels)


def measure(net: nn.Module, validation: Part, test: Part, seed: int) -> Run:
    """Every rule on the same test spikes."""
    spikes, labels = test.spikes(99), test.labels

    def at(rule: BNTTExit | ConfidenceExit) -> tuple[snn_ext.EarlyExit, Point, float]:
        started = time.perf_counter()
        result = snn_ext.early_exit(net, spikes, rule)
        seconds = time.perf_counter() - started
        point = Point(accuracy(result.scores, labels), float(result.steps.double().mean()))
        return result, point, seconds

    with torch.no_grad():
        snn_ext.reset(net)
        scores = torch.stack([net(x) for x in spikes])
        snn_ext.reset(net)
    fixed = tuple(Point(accuracy(scores[:t].mean(0), labels), t) for t in range(1, STEPS + 1))
    confidence = {p: at(ConfidenceExit(p))[1] for p in THRESHOLDS}
    found = snn_ext.calibrate_exit(
        net, validation.spikes(98), validation.labels, max_accuracy_loss=ALLOWED_LOSS
    )
    _, calibrated, fast = at(found.rule) if found.rule else (None, None, None)
    static, bntt, slow = at(BNTTExit())
    print(f"seed {seed}, validation images: {found}\nseed {seed}, test images: {static}")
    sizes = torch.stack(list(gamma_sizes(net).values()))
    return Run(
        seed=seed,
        fixed=fixed,
        confidence=confidence,
        calibrated=calibrated,
        threshold=found.rule.p if found.rule else None,
        bntt=bntt,
        bntt_exits=bool(static.fired.any()),
        gammas=(float(sizes.min()), float(sizes.max())),
        seconds=(slow, fast),
    )


# ---------------------------------------------------------------- what came of it


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def row(table: Table, name: str, points: Sequence[Point | None]) -> None:
    there = [point for point in points if point is not None]
    if not there:
        table.add_row(name, "no threshold fits", "", "")
        return
    steps = [point.steps for point in there]
    saved = f"{100 * (1 - statistics.fmean(steps) / STEPS):.0f} %"
    missing = f" ({len(there)} of {len(points)} seeds)" if len(there) < len(points) else ""
    table.add_row(name + missing, spread([point.accuracy for point in there]), spread(steps), saved)


def table(runs: Sequence[Run]) -> Table:
    result = Table(
        title=f"test accuracy and steps used, mean ± standard deviation of {len(runs)} seeds",
        title_justify="left",
        box=box.SIMPLE_HEAVY,
        pad_edge=False,
    )
    for header in ("rule", "accuracy (%)", f"steps of {STEPS}", "saved"):
        result.add_column(header, justify="left" if header == "rule" else "right")
    for t in (1, 2, 4, 6, 8, 12, STEPS):
        row(result, f"first {t} for everybody", [run.fixed[t - 1] for run in runs])
    result.add_section()
    for p in THRESHOLDS:
        row(result, f"ConfidenceExit({p})", [run.confidence[p] for run in runs])
    result.add_section()
    row(result, "calibrated, loss <= 1 point", [run.calibrated for run in runs])
    fires = sum(run.bntt_exits for run in runs)
    row(result, f"BNTTExit(0.1): exits in {fires} of {len(runs)}", [run.bntt for run in runs])
    return result


def against_fixed(run: Run, point: Point) -> float:
    """Points above stopping everybody after the same mean number of steps (between two t: linear)."""
    low = min(int(point.steps), STEPS - 1)
    share = point.steps - low
    fixed = (1 - share) * run.fixed[low - 1].accuracy + share * run.fixed[low].accuracy
    return point.accuracy - fixed


def verdict(runs: Sequence[Run], validation: int, images: int) -> list[str]:
    """Sentences made from the numbers alone."""
    low, high = min(run.gammas[0] for run in runs), max(run.gammas[1] for run in runs)
    fires = sum(run.bntt_exits for run in runs)
    said = [
        f"BNTTExit: {f'an exit in {fires} of {len(runs)} networks' if fires else 'no exit'}. The mean |gamma|"
        f" of a layer and step lies between {low:.2f} and {high:.2f}; the rule needs all layers below 0.1."
        + ("" if fires else " Gammas start at 1 and training moves them little: expect it not to fire.")
    ]
    pairs = [(run, run.calibrated) for run in runs if run.calibrated is not None]
    if pairs:
        loss = [run.fixed[-1].accuracy - point.accuracy for run, point in pairs]
        gain = [against_fixed(run, point) for run, point in pairs]
        slow, fast = (statistics.fmean(run.seconds[i] or 0 for run, _ in pairs) for i in (0, 1))
        said += [
            f"Calibrated ConfidenceExit: {spread(loss)} points lost on the test images, where"
            f" {100 * ALLOWED_LOSS:.0f} was allowed on {validation} validation images (there"
            f" {ALLOWED_LOSS * validation:.0f} images: calibrate on many), and {spread(gain)} points above"
            " stopping everybody after the same number of steps.",
            f"Steps are not seconds: {images} images took {1000 * slow:.0f} ms with all steps and"
            f" {1000 * fast:.0f} ms with the calibrated exit, on this machine. Small layers cost nearly as"
            " much for few samples as for many.",
        ]
    else:
        said.append("Calibrated ConfidenceExit: no threshold kept to the allowed loss.")
    said.append(
        f"One test image is {100 / images:.2f} points. All seeds share one split; the spread is that of the"
        " training."
    )
    return said


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy against steps: one thin pair of lines per seed."""
    with matplotlib.rc_context({"axes.spines.right": False, "axes.spines.top": False, "font.size": 10}):
        figure = Figure(figsize=(8, 5), layout="constrained", dpi=160)
        axes = figure.subplots()
        for i, run in enumerate(runs):
            curves = {"fixed": run.fixed, "confidence": tuple(run.confidence.values())}
            labels = {
                "fixed": "everybody stops after t steps",
                "confidence": f"ConfidenceExit, p = {THRESHOLDS[0]} ... {THRESHOLDS[-1]}",
            }
            for name, points in curves.items():
                axes.plot(
                    [point.steps for point in points],
                    [point.accuracy for point in points],
                    color=COLORS[name],
                    marker="o" if name == "confidence" else ".",
                    markersize=5,
                    linewidth=1.3,
                    alpha=0.75,
                    label=labels[name] if i == 0 else None,
                )
        chosen = [run.calibrated for run in runs if run.calibrated is not None]
        if chosen:
            axes.scatter(
                [point.steps for point in chosen],
                [point.accuracy for point in chosen],
                color=COLORS["calibrated"],
                marker="*",
                s=170,
                zorder=5,
                edgecolors="white",
                label="calibrated for a loss of 1 point",
            )
        fires = sum(run.bntt_exits for run in runs)
        outcome = "no exit" if not fires else f"exits in {fires} of {len(runs)} networks"
        axes.scatter(
            [run.bntt.steps for run in runs],
            [run.bntt.accuracy for run in runs],
            facecolors="none",
            edgecolors="black",
            marker="s",
            s=60,
            zorder=4,
            label=f"BNTTExit(0.1): {outcome}",
        )
        lowest = min(point.accuracy for run in runs for point in run.fixed[1:])
        axes.set_ylim(max(5 * math.floor((lowest - 2) / 5), 0), 100.5)
        axes.set_xlim(0.5, STEPS + 0.7)
        axes.set_xlabel(f"time steps used per image (mean), of {STEPS}")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title(f"Early exit on digits, {len(runs)} trained networks", loc="left", weight="bold")
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", frameon=False)
        figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, choices=range(1, 100), metavar="N", help="networks (default 3)")
    parser.add_argument("--epochs", type=int, choices=range(1, 1000), metavar="N", help="(default 10)")
    parser.add_argument("--out", type=Path, default=Path("runs/early_exit"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="one network, few images: seconds, no result")
    args = parser.parse_args(argv)
    seeds, epochs = args.seeds or (1 if args.quick else 3), args.epochs or (4 if args.quick else 10)
    torch.set_num_threads(1)  # layers this small gain nothing from a second
    console = Console()
    training, validation, test = data(args.quick)
    runs = []
    for seed in range(seeds):
        net = network(seed)
        if seed == 0:
            print(snn_ext.report(net), end="\n\n")
        train(net, training, epochs, seed)
        runs.append(measure(net, validation, test, seed))
    console.print()
    console.print(table(runs))
    for sentence in verdict(runs, len(validation.labels), len(test.labels)):
        console.print(f"• {sentence}", highlight=False)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(runs, args.out / "accuracy.png")
    numbers = {
        "settings": {
            "command": shlex.join(["python", "examples/early_exit.py", *sys.argv[1:]]),
            "seeds": list(range(seeds)),
            "images": [len(part.labels) for part in (training, validation, test)],
        },
        "origin": digits_results.origin(),
        "steps": STEPS,
        "epochs": epochs,
        "runs": [asdict(run) for run in runs],
    }
    (args.out / "results.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    console.print(f"\nwritten: {args.out / 'accuracy.png'}, {args.out / 'results.json'}", highlight=False)


if __name__ == "__main__":
    main()
