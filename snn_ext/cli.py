"""The command ``snn-ext``: what works here, what a patch would do to a model, and figures."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from snn_ext import kernels
from snn_ext.errors import OptionError, SnnExtError, UnsupportedReleaseError
from snn_ext.figures import command as figures
from snn_ext.methods.options import METHODS
from snn_ext.patching.apply import plan
from snn_ext.patching.plugins import Adapter, adapters, ask

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 fine, 1 something is broken, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="snn-ext", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="versions, adapters and backends, with remedies")
    inspect = commands.add_parser("inspect", help="print the plan for a model of yours; nothing is changed")
    inspect.add_argument("model", help="package.module:function that makes the model")
    inspect.add_argument("--input", help="package.module:function that makes an example input")
    inspect.add_argument("--timesteps", type=int, help="T, for bntt and tebn")
    for method in METHODS:
        inspect.add_argument(f"--{method}", action="store_true", help=f"ask for {method} (default: imp)")
    figures.add_arguments(commands.add_parser("figures", help="Figures 1, 3 and 6 of the IMP paper"))
    given = parser.parse_args(argv)
    console = Console()
    try:
        if given.command == "figures":
            return figures.run(given, console)
        return doctor(console) if given.command == "doctor" else _inspect(given, console)
    except SnnExtError as error:
        message = f"{type(error).__name__}: {error}"
        Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
        return 1


def doctor(console: Console) -> int:
    """Print what works here; 1 if an adapter cannot work with its framework, or if no compiled kernels work.

    A framework that is not installed is no fault.
    """
    console.print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    console.print(f"CUDA device: {cuda}", markup=False)
    table = _table("adapter", "framework", "state", "do")
    found_adapters = [(adapter, *_state(adapter)) for adapter in adapters()]
    for adapter, state, do in found_adapters:
        row = (adapter.name, adapter.version or "not installed", state, do)
        table.add_row(*map(escape, row))
    console.print(table)
    table = _table("backend", "available", "ready in", "why not", "do")
    found = kernels.backends()
    for status in found:
        ready = f"{status.seconds:.2f} s" if status.available else ""
        available = "yes" if status.available else "no"
        table.add_row(*map(escape, (status.name, available, ready, status.reason, status.fix)))
    console.print(table)
    console.print(f"asked for: {kernels.wanted()} (SNN_EXT_BACKEND)")
    compiled = any(s.available for s in found if s.name in ("host", "cupy"))
    broken = any(do for _, _, do in found_adapters)
    return int(broken or not compiled)


def _state(adapter: Adapter) -> tuple[str, str]:
    """The state of an adapter in this environment, and what to do about it: "" where nothing need be done."""
    if adapter.error is not None:
        return adapter.state, f"pip install -U {adapter.name}, or report it to its authors"
    try:
        if adapter.version is not None:
            ask(adapter.name, "snn_ext_check_release")
    except SnnExtError as error:  # refused by the adapter, or its framework cannot be imported
        kind = "unsupported" if isinstance(error, UnsupportedReleaseError) else "broken"
        return f"{kind}: {error.why or error.what}", error.do
    return adapter.state, ""


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _inspect(given: argparse.Namespace, console: Console) -> int:
    model = _call(given.model)
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"{given.model} returned {type(model).__name__}.", do="name a function that returns the model"
        )
    named = [method for method in METHODS if getattr(given, method)] or ["imp"]
    asked: dict[str, Any] = dict.fromkeys(named, True)
    example = _call(given.input) if given.input else None
    found = plan(model, timesteps=given.timesteps, example_input=example, **asked)
    console.print(str(found), markup=False, highlight=False)
    return 0


def _call(target: str) -> Any:
    """What ``package.module:function`` returns; modules of the working directory count."""
    name, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(name), attribute or "make_model")
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(
            f"{target!r} was not found.",
            why=f"{type(error).__name__}: {error}",
            do="name it as package.module:function, and run from the folder that holds it",
        ) from error
    return function()


if __name__ == "__main__":
    raise SystemExit(main())
