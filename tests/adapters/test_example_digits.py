"""The demo: what it prints and writes, that V0 is trained in it, and that its verdict follows the numbers."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.colors import to_rgb
from torch import nn

import snn_ext

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = ("digits", "digits_figures", "digits_networks", "digits_results", "digits_tables")
FRAMEWORKS = ("SpikingJelly", "snnTorch")
OBJECTIVES = ("SDT", "TET", "TET-S", "LTS")
SITES = {"SpikingJelly": {"sn1.imp", "sn2.imp"}, "snnTorch": {"lif1.imp", "lif2.imp", "lif3.imp"}}


@dataclass
class Demo:
    """What one run of the script left behind."""

    stdout: str
    stderr: str
    out: Path
    results: dict[str, Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return play("digits.py", tmp_path_factory.mktemp("demo") / "made" / "by the script")


def play(script: str, out: Path) -> Demo:
    command = [sys.executable, str(EXAMPLES / script), "--quick", "--out", str(out)]
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return Demo(done.stdout, done.stderr, out, json.loads((out / "results.json").read_text("utf-8")))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    yield from imported(monkeypatch, *MODULES)


def imported(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[SimpleNamespace]:
    """Modules of the examples, imported as the scripts import them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


# ---------------------------------------------------------------- what it prints and writes


def test_reports_progress_and_tables_are_printed_without_noise(demo: Demo) -> None:
    for line in ("report for SpikingJellyNet", "report for SnnTorchNet", "64/64 epochs"):
        assert line in demo.stdout
    for framework in FRAMEWORKS:
        assert f"{framework}: test accuracy in %, mean ± standard deviation of 2 seeds" in demo.stdout
    assert "Where a method helps, and where it does not" in demo.stdout
    assert "warning" not in (demo.stdout + demo.stderr).lower()


def test_every_configuration_ran_with_every_seed(demo: Demo) -> None:
    ran = {(r["framework"], r["objective"], r["imp"], r["seed"]) for r in demo.results["runs"]}
    wanted = {(f, o, i, s) for f in FRAMEWORKS for o in OBJECTIVES for i in (False, True) for s in (0, 1)}
    assert ran == wanted
    assert len(demo.results["runs"]) == len(wanted)


COLUMNS = (("accuracy", 0), ("accuracy", -1), ("step_accuracy", 0), ("step_accuracy", -1))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_table_shows_mean_and_deviation_of_the_recorded_runs(framework: str, demo: Demo) -> None:
    table = demo.stdout.split(f"{framework}: test accuracy")[1].split("difference in points")[0]
    rows = [" ".join(line.split()) for line in table.splitlines()]
    for objective in OBJECTIVES:
        for imp in (False, True):
            wanted = (framework, objective, imp)
            runs = [r for r in demo.results["runs"] if (r["framework"], r["objective"], r["imp"]) == wanted]
            name = f"{objective} + IMP" if imp else objective
            cells = [mean_and_deviation([run[key][index] for run in runs]) for key, index in COLUMNS]
            assert any(row.startswith(" ".join([name, *cells])) for row in rows)


def mean_and_deviation(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def test_each_objective_is_read_by_its_own_readout(demo: Demo) -> None:
    """LTS reads the last step, so that both numbers are one; TET reads the mean of all."""
    read_last = {
        objective: [
            r["accuracy"][-1] == r["step_accuracy"][-1]
            for r in demo.results["runs"]
            if r["objective"] == objective
        ]
        for objective in ("LTS", "TET")
    }
    assert all(read_last["LTS"])
    assert not all(read_last["TET"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_pictures_have_both_curves_in_every_panel(
    framework: str, demo: Demo, modules: SimpleNamespace
) -> None:
    pixels = image.imread(demo.out / f"{framework.lower()}.png")[..., :3]
    height, width = pixels.shape[:2]
    assert (height, width) > (800, 1600)
    for top in (0.10, 0.55):  # learning curves, single steps; the legend is below 0.88
        rows = pixels[int(top * height) : int((top + 0.33) * height)]
        for column in range(4):
            panel = rows[:, column * width // 4 : (column + 1) * width // 4]
            for color in modules.digits_figures._COLORS.values():
                assert count(panel, color) > 50, (top, column, color)


def count(pixels: np.ndarray, color: str) -> int:
    return int((np.abs(pixels - to_rgb(color)) < 1 / 255).all(axis=2).sum())


def test_numbers_carry_their_origin(demo: Demo) -> None:
    settings, origin = demo.results["settings"], demo.results["origin"]
    assert settings["command"].startswith("python examples/digits.py --quick")
    assert (settings["seeds"], settings["epochs"], settings["steps"]) == ([0, 1], 2, 4)
    assert origin["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"spikingjelly", "snntorch", "snn-ext", "scikit-learn", "python"} <= set(origin["versions"])


# ---------------------------------------------------------------- V0 is really trained


def untrained(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Sites of patched runs whose V0 is missing or has not moved."""
    found = []
    for run in runs:
        sites = SITES[run["framework"]] if run["imp"] else set()
        if set(run["v0_moved"]) != sites:
            found.append(f"{run['framework']}: {sorted(run['v0_moved'])}")
        found += [site for site, moved in run["v0_moved"].items() if not moved > 0]
    return found


def test_training_moved_every_v0(demo: Demo) -> None:
    assert untrained(demo.results["runs"]) == []


def _train(modules: SimpleNamespace, framework: str, *, imp: bool = True, seed: int = 0) -> Any:
    data = modules.digits_networks.digits(200, 100)
    return modules.digits.train(framework, "TET", imp, seed, data, 1, lambda: None)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_optimizer_without_v0_is_refused_and_would_be_seen(
    framework: str, modules: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights_only(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        kept = [p for name, p in model.named_parameters() if not name.endswith(".imp")]
        return [{"params": kept, "lr": lr, "weight_decay": weight_decay}]

    monkeypatch.setattr(snn_ext, "param_groups", weights_only)
    with pytest.raises(snn_ext.OptionError, match="do: build it after the patch"):
        _train(modules, framework)
    monkeypatch.setattr(snn_ext, "check_optimizer", lambda model, optimizer: None)
    run = _train(modules, framework)
    assert untrained([vars(run)]) == list(run.v0_moved)
    assert set(run.v0_moved) == SITES[framework]


# ---------------------------------------------------------------- the comparison is fair


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_plain_and_patched_start_from_the_same_weights(framework: str, modules: SimpleNamespace) -> None:
    example = torch.zeros(1, 1, 8, 8)
    plain, other = (modules.digits.build(framework, False, seed, example).state_dict() for seed in (3, 4))
    patched = modules.digits.build(framework, True, 3, example).state_dict()
    assert set(patched) - set(plain) == SITES[framework]
    assert all(torch.equal(patched[name], value) for name, value in plain.items())
    weights = [name for name in plain if name.endswith(".weight")]
    assert not any(torch.equal(plain[name], other[name]) for name in weights)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_seed_fixes_a_run(framework: str, modules: SimpleNamespace) -> None:
    first, again, other = (replace(_train(modules, framework, seed=s), seconds=0.0) for s in (0, 0, 1))
    assert first == again
    assert first.v0_moved != other.v0_moved


def test_split_is_fixed_stratified_and_without_overlap(modules: SimpleNamespace) -> None:
    data, again = modules.digits_networks.digits(), modules.digits_networks.digits()
    assert (len(data.train_labels), len(data.test_labels)) == (1257, 540)
    assert torch.equal(data.train_images, again.train_images)
    assert (data.train_images.min().item(), data.train_images.max().item()) == (0, 1)
    for count in torch.bincount(data.test_labels).tolist():
        assert 50 <= count <= 58
    images = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


# ---------------------------------------------------------------- the verdict follows the numbers


def _runs(results: ModuleType, gain: float, spread: float = 1.0, seeds: int = 3) -> list[Any]:
    """One framework, SDT and TET; every accuracy with IMP is `gain` above that without."""
    found = []
    for objective in ("SDT", "TET"):
        for imp in (False, True):
            for seed in range(seeds):
                value = 70 + spread * (seed - 1) + gain * imp
                moved = {"sn1.imp": 0.1} if imp else {}
                found.append(
                    results.Run("SpikingJelly", objective, imp, seed, (value,) * 2, (value,) * 4, moved, 1.0)
                )
    return found


@pytest.mark.parametrize(
    ("gain", "outcome", "words"),
    [
        (1.5, "helps", "helps in SpikingJelly"),
        (-1.5, "hurts", "hurts in SpikingJelly"),
        (0.5, "ties", "no clear difference in SpikingJelly"),
        (-0.5, "ties", "no clear difference in SpikingJelly"),
    ],
)
def test_verdict_is_computed(gain: float, outcome: str, words: str, modules: SimpleNamespace) -> None:
    comparisons = modules.digits_results.compare(_runs(modules.digits_results, gain), baseline="SDT")
    of_imp = [c for c in comparisons if c.method == "IMP"]
    assert {c.outcome for c in of_imp} == {outcome}
    assert {round(c.difference, 6) for c in of_imp} == {gain}
    assert {c.spread for c in of_imp} == {1.0}
    assert {c.outcome for c in comparisons if c.method == "TET"} == {"ties"}
    sentences = modules.digits_tables.verdict(comparisons)
    assert f"IMP, epoch 1: {words}." in sentences
    assert "TET vs. SDT, epoch 1: no clear difference in SpikingJelly." in sentences


def test_the_larger_deviation_is_the_bar(modules: SimpleNamespace) -> None:
    calm = [r for r in _runs(modules.digits_results, 5.0, spread=0.1) if not r.imp]
    wild = [r for r in _runs(modules.digits_results, 5.0, spread=9.0) if r.imp]
    comparisons = modules.digits_results.compare(calm + wild, baseline="SDT")
    assert {c.outcome for c in comparisons if c.method == "IMP"} == {"ties"}


def test_one_seed_gives_no_verdict(modules: SimpleNamespace, tmp_path: Path) -> None:
    runs = _runs(modules.digits_results, gain=20.0, seeds=1)
    comparisons = modules.digits_results.compare(runs, baseline="SDT")
    assert {c.outcome for c in comparisons} == {"unknown"}
    assert all(math.isnan(c.spread) for c in comparisons)
    assert "cannot be judged" in modules.digits_tables.verdict(comparisons)[0]
    assert "One seed has no spread" in modules.digits_tables.caution(comparisons, 1, 540)
    modules.digits_results.write(tmp_path / "results.json", runs, comparisons, {})
    written = json.loads((tmp_path / "results.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert written["comparisons"][0]["spread"] is None


def test_chance_of_a_lucky_verdict(modules: SimpleNamespace) -> None:
    """Against an independent simulation; 0.02 is six standard errors of the two together."""
    samples = np.random.default_rng(7).normal(size=(2, 20_000, 5))
    difference = np.abs(samples[0].mean(1) - samples[1].mean(1))
    expected = (difference > samples.std(axis=2, ddof=1).max(axis=0)).mean()
    assert abs(modules.digits_results.luck(5) - expected) < 0.02
    assert modules.digits_results.luck(2) > modules.digits_results.luck(5) > modules.digits_results.luck(20)
