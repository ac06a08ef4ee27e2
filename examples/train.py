"""Train the papers' experiments on data sets that you have.

python examples/train.py --list
python examples/train.py --preset cifar10-resnet-mpbn --data FOLDER --out runs/mpbn
torchrun --nproc-per-node 4 examples/train.py --preset imagenet-sew18-imp-lts --data FOLDER --out runs/sew18
python examples/train.py --preset cifar10-resnet-mpbn --data FOLDER --out runs/mpbn --resume
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from recipes.presets import PRESETS, Preset, described
from rich.console import Console
from rich.table import Table

import snn_ext


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="show all presets, and where each setting comes from")
    add("--preset", choices=PRESETS, metavar="NAME", help="what to train; see --list")
    add("--data", type=Path, metavar="FOLDER", help="where the data set is; nothing is downloaded")
    add("--out", type=Path, metavar="FOLDER", help="for checkpoint, log, TensorBoard and model")
    add("--resume", action="store_true", help="go on at the checkpoint in --out, exactly")
    add("--epochs", type=positive, metavar="N", help="instead of the preset's")
    add("--iterations", type=positive, metavar="N", help="stop after N batches since the start")
    add("--batch", type=positive, metavar="N", help="samples per process, instead of the preset's")
    add("--steps", type=positive, metavar="T", help="time steps, instead of the preset's")
    add("--seed", type=int, help="instead of the preset's")
    add("--amp", choices=("no", "bf16", "fp16"), help="precision, instead of the preset's")
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=cuda, help=f"cpu, cuda or cuda:N (default here: {cuda})")
    add("--workers", type=int, default=4, metavar="N", help="processes that read data (default 4)")
    add("--sync-batchnorm", action="store_true", help="batch statistics over all processes")
    add("--weights", type=Path, metavar="FILE", help="start from this state dict, as far as it fits")
    args = parser.parse_args(argv)
    if not args.list and not (args.preset and args.data and args.out):
        parser.error("--preset, --data and --out are needed, or --list")
    return args


def changed(preset: Preset, args: argparse.Namespace) -> Preset:
    """The preset with what the command line says instead."""
    for name in ("batch", "steps", "seed"):
        if getattr(args, name) is not None:
            preset = replace(preset, **{name: getattr(args, name)})
    if args.epochs is not None:
        preset = replace(preset, schedule=replace(preset.schedule, epochs=args.epochs))
    return preset


def show(console: Console) -> None:
    for name, preset in PRESETS.items():
        table = Table("setting", "value", "source", title=f"{name}\n{preset.paper}", title_justify="left")
        for row in described(preset):
            table.add_row(*row)
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if args.list:
        show(Console(highlight=False))
        return 0
    from recipes.loop import Options, train  # imports both frameworks: not needed for --list and --help

    names = ("data", "out", "resume", "iterations", "amp", "device", "workers", "sync_batchnorm", "weights")
    options = Options(**{name: getattr(args, name) for name in names})
    try:
        train(args.preset, changed(PRESETS[args.preset], args), options)
    except snn_ext.SnnExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
