"""The demo of early exit: what it prints, writes and draws, and that its verdict follows the numbers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.colors import to_rgb
from torch import Tensor

import snn_ext
from snn_ext import ConfidenceExit
from tests.adapters.test_example_digits import Demo, imported, play

STEPS = 16


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return play("early_exit.py", tmp_path_factory.mktemp("demo") / "made" / "by the script")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names = ("early_exit", "early_exit_figures", "early_exit_results", "digits_results")
    for modules in imported(monkeypatch, *names):
        yield modules.early_exit


# ---------------------------------------------------------------- what it prints and writes


def test_it_says_what_it_did_without_noise(demo: Demo) -> None:
    for line in (
        "2 of 4 sites, 3,840 new parameters",
        "seed 0, test images: BNTTExit(threshold=0.1, mode='sustained', statistic='mean'): no exit",
        "BNTTExit(0.1): exits in 0 of 1",
        "expect it not to fire",
        "Steps are not seconds",
    ):
        assert line in " ".join(demo.stdout.split())
    assert "warning" not in (demo.stdout + demo.stderr).lower()


def test_the_table_shows_the_recorded_numbers(demo: Demo) -> None:
    rows = [" ".join(line.split()) for line in demo.stdout.splitlines()]
    (run,) = demo.results["runs"]
    expected = {f"first {t} for everybody": run["fixed"][t - 1] for t in (1, 2, 4, 6, 8, 12, STEPS)}
    expected |= {f"ConfidenceExit({p})": point for p, point in run["confidence"].items()}
    for name, point in expected.items():
        saved = 100 * (1 - point["steps"] / STEPS)
        assert f"{name} {point['accuracy']:.1f} {point['steps']:.1f} {saved:.0f} %" in rows


def test_the_numbers_fit_together(demo: Demo) -> None:
    (run,) = demo.results["runs"]
    assert [point["steps"] for point in run["fixed"]] == list(range(1, STEPS + 1))
    assert run["bntt"] == run["fixed"][-1]  # no exit: all steps
    steps = [point["steps"] for point in run["confidence"].values()]
    assert steps == sorted(steps)  # stricter, later
    assert 0.5 < run["gammas"][0] <= run["gammas"][1] < 2
    assert run["fixed"][-1]["accuracy"] > 50  # it learned something


def test_the_picture_is_not_empty(demo: Demo) -> None:
    pixels = image.imread(demo.out / "accuracy.png")
    assert pixels.shape[0] > 700
    assert pixels.shape[1] > 1200
    assert 0.5 < (pixels[..., :3] == 1).all(2).mean() < 0.99


# ---------------------------------------------------------------- how it measures


def test_parts_are_disjoint_and_spikes_are_as_frequent_as_pixels_are_bright(example: Any) -> None:
    parts = example.data(quick=False)
    images = torch.cat([part.images for part in parts])
    assert [len(part.labels) for part in parts] == [957, 300, 540]
    assert len(images.unique(dim=0)) == len(images)
    test: Any = parts[2]
    spikes: Tensor = test.spikes(5)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(spikes, test.spikes(5))
    assert not torch.equal(spikes, test.spikes(6))
    # 16 draws of 34,560 pixels: a standard error of at most 0.0007
    assert abs(float(spikes.mean() - test.images.mean())) < 0.004
    assert torch.equal(spikes.amax(0) * (test.images == 0), torch.zeros_like(test.images))


@pytest.fixture
def trained(example: Any) -> tuple[Any, Any, Any]:
    training, validation, test = example.data(quick=True)
    net = example.network(0)
    example.train(net, training, 2, 0)
    return net, validation, test


def test_every_number_is_that_of_the_network(example: Any, trained: tuple[Any, Any, Any]) -> None:
    net, validation, test = trained
    run = example.measure(net, validation, test, seed=0)
    spikes = test.spikes(99)
    with torch.no_grad():
        snn_ext.reset(net)
        scores = torch.stack([net(x) for x in spikes])
        snn_ext.reset(net)
    for t, point in enumerate(run.fixed, start=1):
        right = (scores[:t].sum(0).argmax(1) == test.labels).float().mean()
        assert point.accuracy == pytest.approx(100 * float(right))
    for p, point in run.confidence.items():
        result = snn_ext.early_exit(net, spikes, ConfidenceExit(p))
        assert point.steps == pytest.approx(float(result.steps.float().mean()))
    if run.threshold is not None:
        result = snn_ext.early_exit(net, spikes, ConfidenceExit(run.threshold))
        assert run.calibrated.steps == pytest.approx(float(result.steps.float().mean()))


def test_a_seed_fixes_a_network(example: Any) -> None:
    training, *_ = example.data(quick=True)

    def weights(seed: int) -> Tensor:
        net = example.network(seed)
        example.train(net, training, 1, seed)
        return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


# ---------------------------------------------------------------- the verdict follows the numbers


def a_run(example: Any, *, accuracy: float = 95.0, steps: float = 4.5, exits: bool = False) -> Any:
    """Stopping after t steps gives 80 + t percent; all steps 96."""
    fixed = tuple(example.Point(80.0 + t, t) for t in range(1, STEPS + 1))
    return example.Run(
        seed=0,
        fixed=fixed,
        confidence={p: example.Point(90.0, 5.0) for p in example.THRESHOLDS},
        calibrated=example.Point(accuracy, steps),
        threshold=0.9,
        bntt=example.Point(84.0, 4.0) if exits else fixed[-1],
        bntt_exits=exits,
        gammas=(0.05, 1.0) if exits else (0.9, 1.1),
        seconds=(0.2, 0.1),
    )


@pytest.mark.parametrize(
    ("accuracy", "steps", "lost", "gain"),
    [
        (95.0, 4.5, "1.0", "10.5"),
        (84.0, 4.0, "12.0", "0.0"),
        (96.5, 16.0, "-0.5", "0.5"),
        (80.0, 1.0, "16.0", "-1.0"),
    ],
)
def test_confidence_is_compared_with_stopping_everybody(
    accuracy: float, steps: float, lost: str, gain: str, example: Any
) -> None:
    text = " ".join(example.verdict([a_run(example, accuracy=accuracy, steps=steps)], 300, 540))
    assert f"{lost} points lost on the test images, where 1 was allowed on 300 validation images" in text
    assert f"(there 3 images: calibrate on many), and {gain} points above stopping everybody" in text
    assert "540 images took 200 ms with all steps and 100 ms with the calibrated exit" in text


def test_an_exit_of_bntt_is_not_denied(example: Any) -> None:
    fires, does_not = a_run(example, exits=True), a_run(example)
    text = " ".join(example.verdict([fires, does_not], 300, 540))
    assert "BNTTExit: an exit in 1 of 2 networks" in text
    assert "between 0.05 and 1.10" in text
    assert "expect it not to fire" not in text
    assert "BNTTExit: no exit." in " ".join(example.verdict([does_not], 300, 540))


def test_no_threshold_is_a_result_too(example: Any) -> None:
    none = replace(a_run(example), calibrated=None, threshold=None, seconds=(0.2, None))
    assert "no threshold kept to the allowed loss" in " ".join(example.verdict([none], 300, 540))
    columns = {column.header: list(column.cells) for column in example.table([none]).columns}
    row = columns["rule"].index("calibrated, loss <= 1 point")
    assert columns["accuracy (%)"][row] == "no threshold fits"
    both = example.table([none, a_run(example)])
    assert "calibrated, loss <= 1 point (1 of 2 seeds)" in list(both.columns[0].cells)


def shown(example: Any, run: Any, path: Path) -> dict[str, int]:
    """Pixels of every colour in the picture of one run; lines let a quarter of the white through."""
    example.draw([run], path)
    pixels = image.imread(path)[..., :3]
    solid = {"fixed": 0.75, "confidence": 0.75, "calibrated": 1.0}
    colours = {
        name: alpha * np.array(to_rgb(importlib.import_module("early_exit_figures").COLORS[name])) + 1 - alpha
        for name, alpha in solid.items()
    }
    return {name: int((abs(pixels - c) < 0.02).all(axis=2).sum()) for name, c in colours.items()}


def test_the_picture_shows_what_there_is(example: Any, tmp_path: Path) -> None:
    points = {p: example.Point(85.0 + 2 * i, 2.0 + 2 * i) for i, p in enumerate(example.THRESHOLDS)}
    run = replace(a_run(example), confidence=points)
    everything = shown(example, run, tmp_path / "all.png")
    assert min(everything.values()) > 100, everything
    without = shown(example, replace(run, calibrated=None), tmp_path / "without.png")
    assert without["calibrated"] == 0
    assert without["confidence"] > 200
