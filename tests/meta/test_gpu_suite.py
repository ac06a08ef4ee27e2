"""The suite for CUDA machines, on a machine without."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from snn_ext.kernels import Call, Result, cupy_backend, host_backend, reference_backend
from snn_ext.kernels.candidates import BACKENDS
from tests.meta.scripts import ROOT, benchmarks

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
pytest.importorskip("snntorch", reason="snntorch is not installed")

BENCHMARKS = benchmarks()
gpu_suite = BENCHMARKS["gpu_suite"]
bench, correctness, layers, nets, streams, tables, trials = (
    BENCHMARKS[f"gpu.{name}"]
    for name in ("bench", "correctness", "layers", "nets", "streams", "tables", "trials")
)
Bench, Clock = bench.Bench, bench.Clock
PARTS = "machine compiling correctness operators streams speed memory networks launches"
ORIGIN = {"benchmark", "device", "threads", "python", "versions", "commit", "command", "allocator", "time"}


@pytest.fixture(autouse=True)
def _settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_CACHE_DIR", "")


def suite(*options: str, out: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_suite.py"), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    return done, json.loads(out.read_text()) if out.exists() else {}


def test_the_gpu_suite_runs_dry(tmp_path: Path) -> None:
    done, record = suite("--dry-run", out=tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr + done.stdout
    parts = record["parts"]
    assert " ".join(parts) == PARTS
    assert {part["status"] for part in parts.values()} == {"dry"}
    assert record.keys() == {*ORIGIN, "dry_run", "minutes", "parts"}
    assert record["dry_run"] is True
    without = [name for name, part in parts.items() if any("without CUDA" in note for note in part["notes"])]
    assert set(parts) - set(without) == {"speed"}, "all others say what was not run"
    found = {name: part["results"] for name, part in parts.items()}
    assert found["correctness"]["calls"] == found["correctness"]["of"] > 40
    assert found["correctness"]["by_dtype"].keys() == {"float32", "float16", "bfloat16", "float64"}
    assert found["operators"]["wrong"] == 0
    ways = found["speed"]["cases"]["LIF float32 T=4 N=2^6"]["ways"]
    assert ways.keys() >= {"snn-ext", "snn-ext + IMP", "SpikingJelly, fused", "copy floor"}
    assert all(row["ns"] > 0 for row in ways.values())
    memory = found["memory"]["cases"]
    assert memory["LIF float32 T=4 N=2^6"]["ways"]["snn-ext"]["saved"] == 4
    assert memory["LIF bfloat16 T=4 N=2^6"]["ways"]["snn-ext"]["saved"] == 2
    (_, sew), (_, t5) = found["networks"]["networks"].items()
    assert sew["ways"].keys() >= {"unpatched", "IMP", "IMP, framework's step"}
    losses = [row["loss"] for row in t5["ways"].values()]
    assert "whole sequences" in t5["ways"]
    assert max(losses) - min(losses) < 0.02
    for title in ("Correctness", "One layer", "Memory", "Networks", "Kernels launched"):
        assert title in done.stdout
    assert "networks" in done.stderr, "progress"


def test_the_gpu_suite_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        assert gpu_suite.main(["--out", str(tmp_path / "gpu.json")]) == 2
        assert "--dry-run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", "gpu.json", "--dry-run", "--only", "speed,nothing"])
    assert "no such parts: nothing" in capsys.readouterr().err


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A suite of three small parts; which of them ran."""
    ran: list[str] = []

    def good(bench: Any) -> dict[str, Any]:
        ran.append("good")
        return {"number": 1 / 3, "none": math.nan, "rows": list(bench.each(range(3), "rows"))}

    def bad(bench: Any) -> dict[str, Any]:
        ran.append("bad")
        raise ZeroDivisionError("oh no")

    new = {name: gpu_suite.Part(run, share) for name, run, share in [("good", good, 1), ("bad", bad, 1)]}
    monkeypatch.setattr(gpu_suite, "PARTS", new | {"after": gpu_suite.Part(good, 0)})
    return ran


def test_an_error_is_written_down_and_the_next_part_begins(tmp_path: Path, parts: list[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu_suite.main(["--out", str(out), "--dry-run", "--commit", "abc"]) == 1
    record = json.loads(out.read_text())
    assert record["commit"] == "abc"
    assert parts == ["good", "bad", "good"]
    assert record["parts"]["good"]["results"] == {"number": 0.333333, "none": "nan", "rows": [0, 1, 2]}
    assert record["parts"]["bad"]["status"] == "failed"
    assert record["parts"]["bad"]["error"].startswith("ZeroDivisionError: oh no [")
    assert record["parts"]["after"]["results"]["rows"] == [], "it had no time"
    assert record["parts"]["after"]["notes"] == ["time was up: 3 of 3 rows not run"]
    assert list(tmp_path.iterdir()) == [out]


def test_later_parts_are_left_out_when_the_time_is_up(tmp_path: Path, parts: list[str]) -> None:
    out = tmp_path / "gpu.json"
    assert gpu_suite.main(["--out", str(out), "--dry-run", "--minutes", "0.01"]) == 0
    assert not parts
    assert {p["status"] for p in json.loads(out.read_text())["parts"].values()} == {"skipped"}


def test_resuming_leaves_out_what_is_there(tmp_path: Path, parts: list[str]) -> None:
    command = ["--out", str(tmp_path / "gpu.json"), "--dry-run"]
    gpu_suite.main([*command, "--only", "bad"])
    gpu_suite.main([*command, "--resume"])
    assert parts == ["bad", "good", "good"]
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == ["bad", "good", "after"]


def test_frameworks_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.importlib.util, "find_spec", lambda name: None)
    bench = Bench(True, Clock(60))
    for kind, name in (("LIF", "spikingjelly"), ("Leaky", "snntorch")):
        made = layers.layer(bench, kind, 4, 8, torch.float32)
        assert made.missing == {name: f"{name} is not installed"}
        assert list(made.steps) == ["snn-ext", "snn-ext + IMP"]
    missing = [found["missing"] for found in nets.run(bench)["networks"].values()]
    assert missing == ["spikingjelly is not installed", "snntorch is not installed"]


def test_correctness_notices_what_is_wrong() -> None:
    """A kernel that flips one spike, one that is off by a little, and one that fails."""

    from snn_ext.kernels.candidates import BACKENDS

    trial = next(t for t in trials.trials(3) if t.learns and t.call.x.dtype is torch.float32)
    reference = BACKENDS["reference"].run

    def flips(call: Call) -> Result:
        result = reference(call)
        with torch.no_grad():
            result.spikes[0].flatten()[0].mul_(-1).add_(1)
        return result

    def is_off(call: Call) -> Result:
        result = reference(call)
        scaled = result.spikes.detach() + (result.spikes - result.spikes.detach()) * 1.001
        return result._replace(spikes=scaled)

    def fails(call: Call) -> Result:
        raise MemoryError("none left")

    def verdict(run: Any) -> dict[str, Any]:
        found = {"trial": trial.name, **correctness.attempt(lambda: correctness.examine(trial, run, "cpu"))}
        return correctness.summary([found])

    assert verdict(reference_backend.run)["wrong"] == 0
    flipped = verdict(flips)
    assert flipped["wrong"] == flipped["by_dtype"]["float32"]["flips"] == 1
    assert verdict(is_off)["wrong"] == 1
    assert verdict(is_off)["by_dtype"]["float32"]["error"] > 1e-4
    assert "none left" in verdict(fails)["failures"][0]["error"]


def test_tables_show_errors() -> None:
    errors = {
        "cases": {
            "LIF": {"error": "out of memory"},
            "Leaky": {
                "floor_GBps": 1.0,
                "ways": {},
                "errors": {"snnTorch, loop": "no"},
                "missing": {"x": "y"},
            },
        }
    }
    part = {"status": "done", "seconds": 1.0, "notes": [], "results": errors}
    assert tables.wrong(part) == 2
    console = Console(record=True, width=110)
    origin = {"device": "none", "versions": {}, "commit": "0"}
    tables.show({**origin, "parts": {"speed": part}}, console)
    text = console.export_text()
    assert "out of memory" in text
    assert "snnTorch, loop" in text


class Stream:
    """A stream that runs everything at once."""

    def wait_stream(self, other: object) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device made of paper: the host's kernels on the CPU, and graphs that do nothing."""
    current = [Stream()]

    @contextlib.contextmanager
    def stream(new: Stream) -> Iterator[None]:
        current.append(new)
        yield
        current.pop()

    fakes = {
        "is_available": lambda: True,
        "get_device_name": lambda *_: "paper",
        "get_device_properties": lambda _: types.SimpleNamespace(
            name="paper", major=9, minor=0, total_memory=2**34, multi_processor_count=1
        ),
        "get_device_capability": lambda *_: (9, 0),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda: (2**40, 2**40),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda: current[-1],
        "stream": stream,
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: None),
        "graph": lambda graph: contextlib.nullcontext(),
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 2**20,
    }
    nothing = ("synchronize", "empty_cache", "reset_peak_memory_stats")
    for name, fake in (fakes | dict.fromkeys(nothing, lambda: None)).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Bench, "device", "cpu")
    monkeypatch.setattr(Bench, "pick", lambda self, full, tiny: tiny)
    monkeypatch.setattr(gpu_suite, "usable", lambda: True)
    monkeypatch.setitem(BACKENDS, "cupy", BACKENDS["host"])
    monkeypatch.setattr(cupy_backend, "Cupy", host_backend.Host)
    monkeypatch.setattr(cupy_backend, "CUPY", host_backend.HOST)


@pytest.mark.usefixtures("paper")
def test_what_is_done_on_a_device(tmp_path: Path) -> None:
    """Every line that a dry run leaves out, as far as paper can tell."""
    out = tmp_path / "gpu.json"
    only = "machine,compiling,streams,memory"
    assert gpu_suite.main(["--out", str(out), "--only", only, "--minutes", "5"]) == 1
    record = json.loads(out.read_text())
    assert record["device"] == "paper"
    parts = record["parts"]
    assert {part["status"] for part in parts.values()} == {"done"}, parts
    assert parts["machine"]["results"]["device"]["capability"] == "9.0"
    memory = parts["memory"]["results"]["cases"]["LIF float32 T=4 N=2^6"]["ways"]["snn-ext"]
    assert memory["peak"] == 2**20 / 256
    found = parts["streams"]["results"]
    assert found["streams"] == dict.fromkeys(
        ("equal", "stream kept inside", "stream kept", "device kept"), True
    )
    assert all(graph["equal"] is False for graph in found["graphs"].values()), "paper graphs replay nothing"
    assert found["wrong"] == len(found["graphs"]), "and that is noticed"
    assert "one device only" in parts["streams"]["notes"][0]
    assert not [name for name in only.split(",") if name != "streams" and tables.wrong(parts[name])]


@pytest.mark.usefixtures("paper")
def test_a_network_on_a_device() -> None:
    found = nets.measured(Bench(False, Clock(60)), lambda: nets.t5(2), amp=False)
    assert found["errors"] == {}
    assert all(row["peak_MiB"] == 1 for row in found["ways"].values())


@pytest.mark.usefixtures("paper")
def test_a_device_that_no_longer_answers(
    tmp_path: Path, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access nothing works in this process: a new one goes on behind the part."""
    commands: list[list[str]] = []

    class ReplacedError(Exception):
        pass

    def execv(program: str, command: list[str]) -> None:
        commands.append(command)
        raise ReplacedError

    monkeypatch.setattr(gpu_suite.os, "execv", execv)
    monkeypatch.setattr(gpu_suite, "usable", lambda: parts[-1] != "bad")
    out = tmp_path / "gpu.json"
    with pytest.raises(ReplacedError):
        gpu_suite.main(["--out", str(out)])
    assert list(json.loads(out.read_text())["parts"]) == ["good", "bad"]
    ((_, _, *again),) = commands
    monkeypatch.setattr(gpu_suite, "usable", lambda: True)
    assert gpu_suite.main(again) == 1
    assert list(json.loads(out.read_text())["parts"]) == ["good", "bad", "after"]
    assert parts == ["good", "bad", "good"]
