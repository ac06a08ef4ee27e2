"""The record as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from harness import duration
from rich.console import Console
from rich.table import Table

__all__ = ["show", "wrong"]

Parts = dict[str, Any]


def wrong(part: dict[str, Any]) -> int:
    """How much of a part failed."""
    if part["status"] == "failed":
        return 1
    results = part.get("results", {})
    return int(results.get("wrong", 0)) + len(list(_errors(results)))


def _errors(value: Any) -> Iterable[str]:
    """Texts of errors anywhere in the results, but for those counted as wrong already."""
    if isinstance(value, dict):
        for key, v in value.items():
            if key == "error" and isinstance(v, str):
                yield v
            elif key == "errors" and isinstance(v, dict):
                yield from v.values()
            elif key not in ("failures", "graphs", "streams", "devices", "large", "cupy", "nvidia-smi"):
                yield from _errors(v)


def show(record: dict[str, Any], console: Console) -> None:
    """Everything, part after part; what is missing is left out."""
    versions = " ".join(f"{k} {v}" for k, v in record["versions"].items())
    console.print(f"{record['device']}; {versions}; commit {record['commit']}", highlight=False)
    parts = record["parts"]
    _status(parts, console)
    shown: dict[str, Callable[[dict[str, Any], Console], None]] = {
        "machine": _machine,
        "compiling": _compiling,
        "correctness": _correctness,
        "operators": _failures,
        "streams": _streams,
        "speed": _speed,
        "memory": _memory,
        "networks": _networks,
        "launches": _launches,
    }
    for name, table in shown.items():
        if results := parts.get(name, {}).get("results"):
            table(results, console)


def _table(title: str, left: int, *headers: str) -> Table:
    """The first `left` columns hold text."""
    table = Table(title=title, box=None, pad_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left else "right", overflow="fold")
    return table


def _print(table: Table, console: Console) -> None:
    """With the title on a line of its own: rich breaks it to the width of the table."""
    title, table.title = str(table.title), None
    console.print(f"\n{title}", highlight=False)
    console.print(table)


def _status(parts: Parts, console: Console) -> None:
    table = _table("Parts", 2, "part", "status", "s", "wrong", "notes")
    table.columns[-1].justify = "left"
    for name, part in parts.items():
        notes = "; ".join([*part["notes"], *([part["error"]] if "error" in part else [])])
        table.add_row(name, part["status"], f"{part['seconds']:.0f}", str(wrong(part) or ""), notes)
    _print(table, console)


def _machine(results: dict[str, Any], console: Console) -> None:
    if "device" in results:
        console.print("\nDevice", results["device"], results["nvidia-smi"], highlight=False)
    table = _table("Copies, GB/s read and written", 0, *results["copy_GBps"])
    table.add_row(*(f"{v:.0f}" for v in results["copy_GBps"].values()))
    _print(table, console)


def _compiling(results: dict[str, Any], console: Console) -> None:
    table = _table("First call, ms", 1, "kernel", "compiled", "from disk", "known")
    for name, row in results["first_calls"].items():
        cells = [row["error"]] if "error" in row else [f"{v * 1e3:.1f}" for v in row.values()]
        table.add_row(name, *cells)
    _print(table, console)
    kernels = results["compiler"].get("kernels", {})
    table = _table(
        f"NVRTC, {results['compiler'].get('architecture')}", 1, "kernel", "s", "registers", "spilled B"
    )
    for name, row in kernels.items():
        both = [row[d] for d in ("forward", "backward")]
        registers = " + ".join(str(r["registers"]) for r in both)
        table.add_row(name, f"{row['seconds']:.2f}", registers, str(sum(r["spill_bytes"] for r in both)))
    if kernels:
        _print(table, console)


def _correctness(results: dict[str, Any], console: Console) -> None:
    title = f"Correctness: {results['calls']} of {results['of']} calls, {results['wrong']} wrong"
    table = _table(title, 1, "inputs", "calls", "spikes", "flips", "membranes off", "gradient off", "at most")
    for name, row in results["by_dtype"].items():
        numbers = [f"{row[k]:,}" for k in ("calls", "spikes", "flips", "membranes")]
        table.add_row(name, *numbers, f"{row['error']:.1e}", f"{row['tolerance']:.1e}")
    _print(table, console)
    for failure in results["failures"][:8]:
        console.print(f"  {failure}", highlight=False, markup=False)


def _failures(results: dict[str, Any], console: Console) -> None:
    console.print(f"\nopcheck: {results['calls']} of {results['of']} calls, {results['wrong']} wrong")
    for name, failure in list(results["failures"].items())[:8]:
        console.print(f"  {name}: {failure}", highlight=False, markup=False)


def _streams(results: dict[str, Any], console: Console) -> None:
    table = _table("Graphs, streams, devices", 2, "what", "found")
    for name, row in (
        *results["graphs"].items(),
        *((k, results[k]) for k in ("streams", "devices", "large")),
    ):
        cells = (f"{k}: {v:.1f}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items())
        table.add_row(name, ", ".join(cells) or "not run")
    _print(table, console)


def _speed(results: dict[str, Any], console: Console) -> None:
    title = "One layer, forward and backward, per neuron-step"
    table = _table(title, 2, "case", "way", "time", "x floor", "ours is faster")
    for case, found in results["cases"].items():
        if "error" in found:
            table.add_row(case, found["error"])
            continue
        for i, (way, row) in enumerate(found["ways"].items()):
            faster = row["ours_is_faster"]
            cells = [f"{row['over_floor'][0]:.2f}", f"{faster[0]:.2f}x" if faster else ""]
            if way == "copy floor":
                cells = [f"{found['floor_GBps']:.0f} GB/s", ""]
            table.add_row("" if i else case, way, duration(row["ns"]), *cells)
        for way, problem in {**found["errors"], **found["missing"]}.items():
            table.add_row("", way, problem)
    _print(table, console)


def _memory(results: dict[str, Any], console: Console) -> None:
    title = "Memory, B per neuron-step"
    table = _table(title, 2, "case", "way", "saved with input", "held after forward", "peak")
    for case, found in results["cases"].items():
        for i, (way, row) in enumerate(found["ways"].items()):
            cells = [f"{row[k]:.2f}" if k in row else "" for k in ("saved", "held", "peak")]
            table.add_row("" if i else case, way, *([row["error"]] if "error" in row else cells))
    _print(table, console)


def _networks(results: dict[str, Any], console: Console) -> None:
    title = "Networks, one training step without the optimizer"
    table = _table(title, 2, "network", "way", "ms", "speed-up", "MiB", "loss", "neurons run on")
    table.columns[-1].justify = "left"
    for name, found in results["networks"].items():
        if "ways" not in found:
            table.add_row(name, found.get("error") or found.get("missing"))
            continue
        for i, (way, row) in enumerate(found["ways"].items()):
            speedup = f"{row['speedup'][0]:.2f}x" if row["speedup"] else ""
            memory = f"{row['peak_MiB']:.0f}" if "peak_MiB" in row else ""
            loss = f"{row['loss']:.5f}" if "loss" in row else ""
            runs = ", ".join(f"{n} {step.split(' ')[0]}" for step, n in row.get("neurons", {}).items())
            table.add_row("" if i else name, way, f"{row['ms']:.2f}", speedup, memory, loss, runs)
        for way, problem in found["errors"].items():
            table.add_row("", way, problem)
    _print(table, console)


def _launches(results: dict[str, Any], console: Console) -> None:
    table = _table("Kernels launched by one call", 2, "case", "way", "kernels", "the commonest")
    table.columns[-1].justify = "left"
    for case, found in results["launches"].items():
        for i, (way, row) in enumerate(found.items()):
            if not isinstance(row, dict) or "error" in row:
                table.add_row("" if i else case, way, "", str(row))
                continue
            commonest = next(iter(row["commonest"].items()), ("", 0))
            table.add_row("" if i else case, way, str(row["count"]), f"{commonest[1]} {commonest[0][:50]}")
    _print(table, console)
