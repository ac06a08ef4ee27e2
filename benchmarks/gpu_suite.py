"""Everything there is to know about the kernels on a CUDA machine, in one command and one JSON file.

    python benchmarks/gpu_suite.py --out gpu.json

Needs torch, cupy, triton and rich, and runs from a plain checkout; comparisons with SpikingJelly and
snnTorch are left out where they are not installed. Every part is on its own: an error is written down and
the next part begins. ``--dry-run`` runs all of it that needs no CUDA device, with tiny sizes, on the CPU.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "adapters")]
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler is talkative

import torch  # noqa: E402
from gpu import (  # noqa: E402
    compiling,
    correctness,
    launched,
    machine,
    nets,
    operators,
    speed,
    streams,
    tables,
)
from gpu.bench import Bench, Clock, attempt  # noqa: E402
from harness import origin  # noqa: E402
from rich.console import Console  # noqa: E402

import snn_ext  # noqa: E402

__all__ = ["main"]


class Part(NamedTuple):
    """A part, and the share of all the time that it may take; the next begins early when it is faster."""

    run: Callable[[Bench], dict[str, Any]]
    share: float


PARTS = {
    "machine": Part(machine.run, 0.05),
    "compiling": Part(compiling.run, 0.10),
    "correctness": Part(correctness.run, 0.40),
    "operators": Part(operators.run, 0.10),
    "streams": Part(streams.run, 0.08),
    "speed": Part(speed.run, 0.35),
    "memory": Part(speed.memory, 0.05),
    "networks": Part(nets.run, 0.40),
    "launches": Part(launched.run, 0.10),
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; written after every part")
    parser.add_argument("--minutes", type=float, default=7.5, help="later parts are left out after that long")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, what needs no CUDA device")
    parser.add_argument("--only", help=f"some parts, with commas between: {','.join(PARTS)}")
    parser.add_argument("--resume", action="store_true", help="leave out the parts that --out has already")
    parser.add_argument("--commit", help="of the source, where this copy is without its history")
    args = parser.parse_args(argv)
    args.parts = args.only.split(",") if args.only else list(PARTS)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the parts; 1 where one of them failed or found something wrong."""
    args = arguments(argv)
    console = Console(stderr=True, width=max(110, Console(stderr=True).width))
    clock = Clock(60 * args.minutes)
    if not args.dry_run and not torch.cuda.is_available():
        console.print("torch finds no CUDA device; --dry-run does what can be done without one")
        return 2
    prepare(args.dry_run)
    record = begin(args)
    for name in args.parts:
        if name in record["parts"]:
            continue
        console.print(f"{clock.left:4.0f} s left: {name}", highlight=False)
        record["parts"][name] = run(name, args, clock, console)
        write(args.out, record)
        if not args.dry_run and not usable():
            console.print("the device is in no state to go on; beginning anew behind this part")
            again(args, clock)
    show = Console(width=max(110, Console().width))
    tables.show(record, show)
    show.print(f"written: {args.out}", highlight=False)
    return int(any(tables.wrong(part) for part in record["parts"].values()))


def prepare(dry: bool) -> None:
    """One thread on a CPU; nothing compiled yet; the adapters known without an installation."""
    if dry:
        torch.set_num_threads(1)
    os.environ["CUPY_CACHE_DIR"] = folder = tempfile.mkdtemp(prefix="cupy-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    known = {adapter.name for adapter in snn_ext.adapters()}
    for name in {"spikingjelly", "snntorch"} - known:
        snn_ext.register(__import__(f"snn_ext_{name}.plugin", fromlist=["plugin"]))


def begin(args: argparse.Namespace) -> dict[str, Any]:
    if args.resume and args.out.exists():
        found: dict[str, Any] = json.loads(args.out.read_text())
        return found
    where = origin("cpu" if args.dry_run else "cuda", sys.argv)
    if args.commit:
        where["commit"] = args.commit
    return {"benchmark": "gpu_suite", "dry_run": args.dry_run, "minutes": args.minutes, **where, "parts": {}}


def run(name: str, args: argparse.Namespace, clock: Clock, console: Console) -> dict[str, Any]:
    """One part: its results, or its error."""
    part, started = PARTS[name], time.monotonic()
    if clock.left < 3:
        return {"status": "skipped", "seconds": 0.0, "notes": ["time was up"]}
    share = Clock(min(clock.left, part.share * 60 * args.minutes))
    bench = Bench(args.dry_run, share, lambda message: console.print(f"       {message}", highlight=False))
    found = attempt(lambda: part.run(bench))
    seconds = time.monotonic() - started
    if set(found) == {"error"}:
        console.print(found["error"], style="red", markup=False)
        return {"status": "failed", "seconds": seconds, "notes": bench.notes, **found}
    status = "dry" if args.dry_run else "done"
    return {"status": status, "seconds": seconds, "notes": bench.notes, "results": found}


def usable() -> bool:
    """Whether the device still answers: after an illegal access nothing does in this process."""
    try:
        return torch.ones(2, device="cuda").sum().item() == 2
    except RuntimeError:
        return False


def again(args: argparse.Namespace, clock: Clock) -> None:
    """Go on in a new process, which knows from the file what is done."""
    command = [sys.executable, __file__, "--out", str(args.out), "--resume"]
    command += ["--only", ",".join(args.parts), "--minutes", str(clock.left / 60)]
    sys.stderr.flush()
    os.execv(sys.executable, command)


def write(path: Path, record: dict[str, Any]) -> None:
    """All or nothing: the run may be stopped at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(rounded(record), indent=1) + "\n")
    temporary.replace(path)


def rounded(value: Any) -> Any:
    """Numbers with six digits, so that the file can be read; what is not a number as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else str(value)
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return value


if __name__ == "__main__":
    sys.exit(main())
