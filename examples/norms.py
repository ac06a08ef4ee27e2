"""Which norm helps? Two networks on real digits, without a norm and with BN, TEBN, BNTT and MPBN.

The networks of examples/digits.py learn scikit-learn's digits from the same initial weights with different
norms, over several seeds; afterwards MPBN is folded into the thresholds. Prints tables, says where a norm
made a difference larger than the spread over seeds and where it did not, and draws pictures.

    python examples/norms.py                   two to three minutes on one core
    python examples/norms.py --quick           seconds: is everything in place?
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import digits
import norms_figures
import torch
from digits_networks import STEPS, Digits, SnnTorchNet, SpikingJellyNet
from digits_results import write
from norms_results import BN, NONE, Folded, Run, compare, show
from rich.console import Console
from spikingjelly.activation_based import neuron
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import snn_ext
from snn_ext.norms import MembraneBatchNorm

# decay 0.25 and a hard reset, as in the code of the MPBN and TEBN papers
LIF = functools.partial(neuron.LIFNode, tau=4 / 3, decay_input=False)
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "SpikingJelly": functools.partial(SpikingJellyNet, 8, LIF),
    "snnTorch": SnnTorchNet,
}
TITLES = {
    "SpikingJelly": f"SpikingJelly, convolutional network, decay 0.25, hard reset, digits, T = {STEPS}",
    "snnTorch": f"snnTorch, fully connected network, decay 0.9, soft reset, digits, T = {STEPS}",
}
LEFT_OUT = {"SpikingJelly": (), "snnTorch": ("lif3",)}  # its membrane is the score: nothing to normalise


@dataclass(frozen=True)
class Variant:
    """A network with or without batch norms of its framework, and what `snn_ext.patch` does to it."""

    batch_norms: bool = False
    methods: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = {NONE: Variant(), BN: Variant(batch_norms=True)}
_BNTT = {"BNTT": Variant(batch_norms=True, methods={"bntt": True})}
_MPBN = {
    "MPBN": Variant(methods={"mpbn": True}),
    "BN + MPBN": Variant(batch_norms=True, methods={"mpbn": True}),
}
VARIANTS = {
    "SpikingJelly": {
        **_PLAIN,
        "TEBN": Variant(batch_norms=True, methods={"tebn": True}),
        **_BNTT,
        **_MPBN,
    },
    "snnTorch": {
        **_PLAIN,
        # a loop over time cannot have joint statistics: the first step would need those of the last
        "TEBN (step)": Variant(batch_norms=True, methods={"tebn": snn_ext.TEBN(stats="step")}),
        **_BNTT,
        "BNTT (input)": Variant(methods={"bntt": snn_ext.BNTT(at="neuron")}),
        **_MPBN,
    },
}


# ---------------------------------------------------------------- training


def build(framework: str, norm: str, seed: int, example: Tensor) -> nn.Module:
    """A network; the same seed gives the same weights whatever the norm."""
    variant = VARIANTS[framework][norm]
    torch.manual_seed(seed)
    model = NETWORKS[framework](batch_norms=variant.batch_norms)
    if variant.methods:
        snn_ext.patch(model, **variant.methods, exclude=LEFT_OUT[framework], example_input=example)
    return model


def train(
    framework: str, norm: str, seed: int, data: Digits, epochs: int, tell: Callable[[], None]
) -> tuple[Run, nn.Module]:
    """Train one network; `tell` is called after every epoch."""
    started = time.perf_counter()
    example = data.train_images[:2]  # two: batch statistics of a single sample do not exist
    model = build(framework, norm, seed, example)
    extra = trainable(model) - trainable(build(framework, NONE, seed, example))
    own: dict[int, float] = {}
    done = 0

    def after_epoch() -> None:
        nonlocal done
        done += 1
        if done in (1, epochs):
            own[done] = digits.percent(with_own_statistics(model, data.test_images), data.test_labels)
        tell()

    accuracy, _ = digits.fit(model, snn_ext.loss(model, "sdt"), seed, data, epochs, after_epoch)
    seconds = time.perf_counter() - started
    return Run(framework, norm, seed, accuracy, (own[1], own[epochs]), extra, seconds), model


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


Trained = list[tuple[Run, nn.Module]]


def train_all(console: Console, data: Digits, seeds: int, epochs: int) -> Trained:
    """Every seed, framework and norm under one progress bar."""
    todo = [(s, f, norm) for s in range(seeds) for f, variants in VARIANTS.items() for norm in variants]
    trained = []
    with digits.progress_bar(console) as bar:
        task = bar.add_task("", total=len(todo) * epochs)
        for seed, framework, norm in todo:
            bar.update(task, description=f"{f'{framework} {norm}':<24} seed {seed}")
            trained.append(train(framework, norm, seed, data, epochs, lambda: bar.advance(task)))
        bar.update(task, description="trained")
    return trained


# ---------------------------------------------------------------- trained networks


@torch.no_grad()
def scores(model: nn.Module, images: Tensor) -> Tensor:
    """Scores [N, 10], read by the mean over time."""
    snn_ext.reset(model)
    return snn_ext.loss(model, "sdt").predict(model(images))


def with_own_statistics(model: nn.Module, images: Tensor) -> Tensor:
    """Scores [N, 10] with every norm using the statistics of these images; the model stays as it is."""
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return scores(twin, images)


@torch.no_grad()
def membranes(model: nn.Module, images: Tensor) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Layer -> for every step the membranes before and after its MPBN."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def listen(layer: str) -> Callable[..., None]:
        return lambda norm, args, output: seen.setdefault(layer, []).append((args[0], output))

    norms = [module for module in model.modules() if isinstance(module, MembraneBatchNorm)]
    hooks = [norm.register_forward_hook(listen(f"layer {i}")) for i, norm in enumerate(norms, start=1)]
    scores(model.eval(), images)
    for hook in hooks:
        hook.remove()
    return seen


def fold(run: Run, model: nn.Module, images: Tensor) -> Folded:
    """Fold a trained network, which then is for inference only, and look for other predictions."""
    before = scores(model.eval(), images).argmax(1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        snn_ext.fold(model, example_input=images)
    changed = int((scores(model, images).argmax(1) != before).sum())
    return Folded(run.framework, run.norm, run.seed, printed.getvalue().strip(), changed)


def draw(trained: Trained, images: Tensor, out: Path) -> list[Path]:
    """Two pictures per framework: the learning, and the membranes of the first network with MPBN."""
    written = []
    for framework, title in TITLES.items():
        runs = [run for run, _ in trained if run.framework == framework]
        first = next(model for run, model in trained if (run.framework, run.norm) == (framework, "MPBN"))
        paths = [out / f"{framework.lower()}{kind}.png" for kind in ("", "_membranes")]
        norms_figures.learning(runs, title, paths[0])
        norms_figures.membranes(membranes(first, images), title, paths[1])
        written += paths
    return written


def main() -> None:
    args = digits.arguments(__doc__, Path("runs/norms"), seeds=5, epochs=8)
    torch.set_num_threads(1)  # layers this small gain little from a second, and results stay reproducible
    console = Console()
    data = digits.digits(200, 100) if args.quick else digits.digits()
    console.rule("[bold]snn-ext: norms on scikit-learn's digits")
    for framework, norm in (("SpikingJelly", "TEBN"), ("snnTorch", "BN + MPBN")):
        print(snn_ext.report(build(framework, norm, 0, data.train_images[:2])), end="\n\n")
    trained = train_all(console, data, args.seeds, args.epochs)
    runs = [run for run, _ in trained]
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = draw(trained, data.test_images, args.out)  # before folding, which takes the norms away
    folds = [fold(run, model, data.test_images) for run, model in trained if "MPBN" in run.norm]
    comparisons = compare(runs)
    numbers = args.out / "results.json"
    variants = {f: {norm: repr(v) for norm, v in of_f.items()} for f, of_f in VARIANTS.items()}
    write(numbers, runs, comparisons, digits.settings(args, data, variants=variants), folds=folds)
    show(console, runs, comparisons, folds, len(data.test_labels))
    console.print("\nwritten: " + ", ".join(map(str, [*pictures, numbers])), highlight=False)


if __name__ == "__main__":
    main()
