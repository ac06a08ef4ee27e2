"""``snn-ext figures --out DIR``: Figures 1, 3 and 6 of the IMP paper, as pictures and as numbers."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from snn_ext.errors import OptionError
from snn_ext.figures.cost import Overhead, overhead
from snn_ext.figures.firing import firing_patterns
from snn_ext.figures.patterns import pattern_mapping
from snn_ext.figures.plots import new_figure, plot_firing_patterns, plot_overhead, plot_pattern_mapping
from snn_ext.figures.stopwatch import processor

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and numbers")
    parser.add_argument("--quick", action="store_true", help="time Figure 6 on small sizes, to see it run")


def run(given: argparse.Namespace, console: Console) -> int:
    """Write the files and print what they show.

    Raises:
        MissingDependencyError: matplotlib is not installed; nothing is written.
        OptionError: the folder cannot be written to.
    """
    out: Path = given.out
    new_figure(1, 1)  # before anything is computed
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in (("1", _figure_1), ("3", _figure_3)):
            _say(console, f"Figure {name}: {figure(out)}")
        _say(console, f"Figure 6: {_figure_6(out, quick=given.quick)}")
    except OSError as error:
        raise OptionError(
            f"--out {out} cannot be written to.", why=str(error), do="name a folder that can be"
        ) from error
    _say(console, f"written to {out}")
    return 0


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


_PANELS: dict[Literal["imp", "intensity"], str] = {
    "imp": "(a) initial potential V0 = k/12",
    "intensity": "(b) intensity, V0 = 0",
}


def _figure_1(out: Path) -> str:
    arrays: dict[str, Any] = {}
    for mode in _PANELS:
        for dtype in ("float32", "float64"):
            membrane, spikes = firing_patterns(mode, dtype)
            arrays |= {f"{mode}_{dtype}_membrane": membrane, f"{mode}_{dtype}_spikes": spikes}
    figure = new_figure(8, 5)
    for (mode, title), ax in zip(_PANELS.items(), figure.subplots(2), strict=True):
        membrane = arrays[f"{mode}_float32_membrane"]
        plot_firing_patterns(membrane, arrays[f"{mode}_float32_spikes"], ax, title=f"{title}, float32")
    figure.savefig(out / "figure1.png", dpi=120)
    np.savez_compressed(out / "figure1.npz", **arrays)
    times = {
        f"{mode} {dtype}": [(np.flatnonzero(row) + 1).tolist() for row in arrays[f"{mode}_{dtype}_spikes"]]
        for mode in _PANELS
        for dtype in ("float32", "float64")
    }
    _write(out / "figure1.json", {"spike times, 1-based, neurons 0 to 6": times})
    return f"{_agree(times, 'imp')}; {_agree(times, 'intensity')}"


def _agree(times: Mapping[str, Any], mode: str) -> str:
    same = times[f"{mode} float32"] == times[f"{mode} float64"]
    return f"{mode}: float32 and float64 spike {'at the same times' if same else 'at different times'}"


_MAPPINGS: dict[str, tuple[str, Callable[[], Any]]] = {
    "fixed_0": ("V0 = 0", lambda: pattern_mapping(0.0)),
    "fixed_0.25": ("V0 = 0.25", lambda: pattern_mapping(0.25)),
    "learnable": ("V0 learnable", lambda: pattern_mapping("learnable")),
}


def _figure_3(out: Path) -> str:
    figure = new_figure(13, 5)
    cells = {name: make() for name, (_, make) in _MAPPINGS.items()}
    for (name, found), ax in zip(cells.items(), figure.subplots(1, len(cells)), strict=True):
        plot_pattern_mapping(found, ax, title=_MAPPINGS[name][0])
    figure.savefig(out / "figure3.png", dpi=120)
    np.savez_compressed(out / "figure3.npz", **cells)
    counts = {name: int(found.sum()) for name, found in cells.items()}
    sweeps = {
        "fixed": "17 weights in [0, 1]",
        "learnable": "9 weights in [0, 1] x 9 V0 in [-1, 1]",
        "neuron": "IF, threshold 1, soft reset, fires at >=, 4 steps, float32",
    }
    _write(out / "figure3.json", {"counts": counts, "sweeps": sweeps})
    return ", ".join(f"{_MAPPINGS[name][0]}: {n} mappings" for name, n in counts.items())


def _figure_6(out: Path, *, quick: bool) -> str:
    found = overhead((2**8,), (2, 4), rounds=3, progress=True) if quick else overhead(progress=True)
    figure = new_figure(7, 4.5)
    plot_overhead(found, figure.subplots())
    figure.savefig(out / "figure6.png", dpi=120)
    _write(out / "figure6.json", _plain(found))
    low, middle, high = found.ratio.min(), np.median(found.ratio), found.ratio.max()
    return f"time with V0 / without: {middle:.2f} in the middle, {low:.2f} to {high:.2f}"


def _plain(found: Overhead) -> dict[str, Any]:
    values = dict(vars(found))
    return {k: v.round(9).tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    origin = {
        "command": "snn-ext figures",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("snn-ext", "torch", "numpy", "matplotlib")},
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": torch.get_num_threads(),
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"),
    }
    path.write_text(json.dumps({**values, "origin": origin}, indent=1) + "\n")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
