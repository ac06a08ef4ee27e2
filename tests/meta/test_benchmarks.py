"""The benchmarks: their arithmetic, what they write, and that all ways of a case do the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snn_ext.figures import stopwatch
from tests.meta.scripts import benchmarks

pytest.importorskip("spikingjelly", reason="spikingjelly is not installed")
pytest.importorskip("snntorch", reason="snntorch is not installed")

BENCHMARKS = benchmarks()
harness, memory = BENCHMARKS["harness"], BENCHMARKS["memory"]
neurons, norms, networks = (BENCHMARKS[name] for name in ("neurons", "norms", "networks"))
Case = harness.Case
FIELDS = {"case", "way", "baseline", "ns", "speedup", "low", "high", "kept", "goal", "verdict"}
ORIGIN = {"benchmark", "device", "threads", "python", "versions", "commit", "command", "allocator", "time"}


def ticking(seconds: Mapping[str, float], clock: list[float]) -> dict[str, Any]:
    """Ways that take exactly so long, by a clock of their own."""

    def way(name: str) -> Any:
        def run() -> None:
            clock[0] += seconds[name]

        return run

    return {name: way(name) for name in seconds}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(harness.time, "process_time", lambda: now[0])
    return now


def test_ratios_are_taken_within_rounds() -> None:
    """The machine is half as fast in the second half of the run; the ratios do not notice."""
    base, own = [4.0, 4.0, 8.0, 8.0], [2.0, 2.0, 4.0, 4.0]
    assert harness.ratio(base, own) == (2.0, 2.0, 2.0)
    assert harness.ratio([1.0, 2.0, 3.0, 4.0], [1.0] * 4) == (2.5, 1.25, 3.75)
    assert harness.ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="shorter"):
        harness.ratio([1.0, 2.0], [1.0])


def test_measuring(clock: list[float]) -> None:
    seconds = {"theirs": 0.06, "ours": 0.02, "slow": 0.12}
    case = Case("case", lambda: ticking(seconds, clock), "theirs", 1000, {"ours": 2.5, "slow": 1.0}, 4)
    theirs, ours, slow = harness.measure(case)
    assert [r.way for r in (theirs, ours, slow)] == list(seconds)
    assert ours.speedup == pytest.approx(3)
    assert ours.ns == pytest.approx(0.02e9 / 1000)
    assert (theirs.verdict, ours.verdict, slow.verdict) == ("", "met", "MISSED")
    assert {r.baseline for r in (theirs, ours, slow)} == {"theirs"}
    assert ours.kept is None


def test_every_way_begins_a_round(clock: list[float]) -> None:
    order: list[str] = []
    ways = {name: (lambda n=name: (order.append(n), clock.__setitem__(0, clock[0] + 0.1))) for name in "abc"}
    times = harness.interleaved(ways, rounds=3)
    assert [len(t) for t in times.values()] == [3, 3, 3]
    assert "".join(order[-9:]) == "abcbcacab"
    assert order[:4] == ["a"] * 4, "warmed up"


def test_short_calls_are_repeated(clock: list[float]) -> None:
    ways = ticking({"short": 1e-4, "long": 0.5, "instant": 0.0}, clock)
    loops = {name: stopwatch.warm(way, "cpu") for name, way in ways.items()}
    assert loops["long"] == 1
    assert loops["short"] == pytest.approx(100, abs=1)
    assert loops["instant"] == 200


def test_kept_counts_memory_once_and_no_parameters() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(16, 8, requires_grad=True)

    def way() -> None:
        y = layer(x)  # keeps x and (a view of) the weight
        (y.sigmoid() + x.view(8, 16).square().sum()).sum().backward()  # keeps the sigmoid, and x again

    assert memory.kept(way) == 2 * x.nbytes
    assert memory.kept(lambda: layer(x).detach()) == 0
    assert memory.kept(lambda: None) == 0


def test_kept_leaves_out_graphs_that_are_gone() -> None:
    x = torch.randn(16, requires_grad=True)

    def way() -> None:
        for _ in range(5):
            x.exp().detach()  # keeps its result, for nobody
        x.exp().sum().backward()

    assert memory.kept(way) == x.nbytes


@pytest.mark.parametrize(
    ("ns", "said"), [(0.5, "0.5 ns"), (999.0, "999 ns"), (1234.0, "1.23 µs"), (5e6, "5 ms"), (2.5e9, "2.5 s")]
)
def test_durations(ns: float, said: str) -> None:
    assert harness.duration(ns) == said


def tiny(quick: bool) -> list[Any]:
    x = torch.randn(64, requires_grad=True)
    ways = {"torch": lambda: x.square().sum().backward(), "other": lambda: x.exp().sum().backward()}
    return [
        Case(f"squares {n}", lambda: ways, "torch", 64, {"other": goal}, 2 if quick else 9)
        for n, goal in (("easy", 1e-6), ("hopeless", 1e6))
    ]


def test_the_command_writes_numbers_with_their_origin_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    out, plot = tmp_path / "new" / "tiny.json", tmp_path / "pictures" / "tiny.png"
    harness.main("tiny", tiny, ["--quick", "--out", str(out), "--plot", str(plot)])
    record = json.loads(out.read_text())
    assert record.keys() == {*ORIGIN, "results"}
    assert all(row.keys() == FIELDS for row in record["results"])
    assert [row["verdict"] for row in record["results"]] == ["", "met", "", "MISSED"]
    assert record["results"][0]["kept"] == 4.0
    assert record["versions"]["torch"]
    printed = capsys.readouterr().out
    assert "MISSED" in printed, "losers are shown"
    assert "squares hopeless" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_commit_of_a_copy_without_history_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness, "__file__", str(tmp_path / "harness.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert harness._commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert harness._commit() == "unknown"


@pytest.mark.parametrize("module", [neurons, norms, networks])
def test_every_benchmark_has_goals_that_name_its_ways(module: Any) -> None:
    quick, full = module.cases(True), module.cases(False)
    assert len(full) > len(quick) > 0
    assert len({c.name for c in full}) == len(full)
    for case in quick:
        ways = set(case.setup())
        assert {case.baseline, *case.goals} <= ways


def gradients(ways: Mapping[str, Any]) -> dict[str, Tensor]:
    """What every way leaves in x.grad."""
    found = {}
    for name, way in ways.items():
        way()
        (x,) = [c.cell_contents for c in way.__closure__ if getattr(c.cell_contents, "requires_grad", False)]
        found[name] = x.grad
    return found


MPBN = "snn-ext MPBN"  # carries another membrane than SpikingJelly's; the other two carry the same


@pytest.mark.parametrize(
    ("ways", "but"),
    [
        (lambda: neurons.setup(4, 272, "LIF"), ()),
        (lambda: neurons.setup(4, 272, "Leaky"), ()),
        (lambda: neurons.rectangle(4, 272), ()),
        (lambda: neurons.fast_sigmoid(4, 272), ()),
        (lambda: neurons.setup(4, 272, "LIF", torch.bfloat16), ("SpikingJelly",)),  # bfloat16 membranes
        (lambda: norms.mpbn_training(2, 4), (MPBN,)),
    ],
    ids=["LIF", "Leaky", "rectangle", "fast sigmoid", "bfloat16", "MPBN"],
)
def test_all_ways_do_the_same(ways: Any, but: tuple[str, ...]) -> None:
    found = {name: g for name, g in gradients(ways()).items() if name not in but}
    first, *others = found.values()
    assert len(others) >= 1
    assert first.abs().max() > 0
    near = (1e-2 if first.dtype is torch.bfloat16 else 2e-6) * float(first.abs().max())
    for g in others:
        torch.testing.assert_close(g, first, rtol=0, atol=near)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
def test_patched_networks_do_the_same(amp: bool) -> None:
    """Under autocast SpikingJelly's own membranes are bfloat16, those of patched nodes are not."""
    ways = networks.setup(lambda: networks.conv_net(2, 16), amp, tebn=True)
    losses = {name: float(way()) for name, way in ways.items()}
    plain = losses.pop("unpatched")
    assert len(set(losses.values())) == 1
    assert losses["IMP"] == pytest.approx(plain, rel=2e-2 if amp else 0)
