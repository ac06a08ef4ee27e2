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
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import digits_results
import torch
from early_exit_figures import draw
from early_exit_results import ALLOWED_LOSS, STEPS, THRESHOLDS, Point, Run, table, verdict
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTTExit, ConfidenceExit
from snn_ext.analysis.early_exit import gamma_sizes


@dataclass(frozen=True)
class Part:
    """Images [N, 64] in 0..1 and labels [N]."""

    images: Tensor
    labels: Tensor

    def spikes(self, seed: int) -> Tensor:
        """[T, N, 64]: every pixel spikes at random, with its brightness as probability."""
        generator = torch.Generator().manual_seed(seed)
        return torch.bernoulli(self.images.expand(STEPS, *self.images.shape), generator=generator)


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
