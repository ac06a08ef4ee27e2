"""The demo of norms: what it trains, prints, folds and draws, and that its verdict follows the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import image
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from snn_ext.norms import FoldedMembraneNorm, MembraneBatchNorm
from tests.adapters.test_example_digits import (
    FRAMEWORKS,
    MODULES,
    Demo,
    count,
    imported,
    mean_and_deviation,
    play,
)

# norm -> trainable parameters beyond those of the network without one
ADDED = {
    "SpikingJelly": {"none": 0, "BN": 48, "TEBN": 56, "BNTT": 96, "MPBN": 48, "BN + MPBN": 96},
    "snnTorch": {
        "none": 0,
        "BN": 384,
        "TEBN (step)": 392,
        "BNTT": 768,
        "BNTT (input)": 768,
        "MPBN": 384,
        "BN + MPBN": 768,
    },
}
CONFIGURATIONS = [(framework, norm) for framework, norms in ADDED.items() for norm in norms]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return play("norms.py", tmp_path_factory.mktemp("demo") / "made" / "by the script")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    yield from imported(monkeypatch, *MODULES, "norms", "norms_figures", "norms_results")


@pytest.fixture
def norms(modules: SimpleNamespace) -> Any:
    return modules.norms


@pytest.fixture
def results(modules: SimpleNamespace) -> Any:
    return modules.norms_results


@pytest.fixture
def data(modules: SimpleNamespace) -> Any:
    return modules.digits_networks.digits(200, 100)


EXAMPLE = torch.zeros(2, 1, 8, 8)


# ---------------------------------------------------------------- what it prints and writes


def test_reports_progress_tables_and_folds_are_printed_without_noise(demo: Demo) -> None:
    for line in ("report for SpikingJellyNet", "report for SnnTorchNet", "52/52 epochs"):
        assert line in demo.stdout
    for framework in FRAMEWORKS:
        assert f"{framework}: test accuracy in %, mean ± standard deviation of 2 seeds" in demo.stdout
    assert "MPBN folded into the thresholds" in demo.stdout
    assert "Where a method helps, and where it does not" in demo.stdout
    assert "warning" not in (demo.stdout + demo.stderr).lower()


def test_every_norm_ran_with_every_seed(demo: Demo) -> None:
    ran = [(run["framework"], run["norm"], run["seed"]) for run in demo.results["runs"]]
    assert sorted(ran) == sorted((f, norm, seed) for f, norm in CONFIGURATIONS for seed in (0, 1))


@pytest.mark.parametrize(("framework", "norm"), CONFIGURATIONS)
def test_table_shows_the_recorded_runs(framework: str, norm: str, demo: Demo) -> None:
    table = demo.stdout.split(f"{framework}: test accuracy")[1].split("difference in points")[0]
    runs = [r for r in demo.results["runs"] if (r["framework"], r["norm"]) == (framework, norm)]
    cells = [
        mean_and_deviation([run[key][end] for run in runs])
        for end in (0, -1)
        for key in ("accuracy", "own_statistics")
    ]
    rows = [" ".join(line.split()) for line in table.splitlines()]
    assert " ".join([norm, str(ADDED[framework][norm]), *cells]) in rows


def test_numbers_carry_their_origin(demo: Demo) -> None:
    settings = demo.results["settings"]
    assert settings["command"].startswith("python examples/norms.py --quick")
    assert {f: list(v) for f, v in settings["variants"].items()} == {f: list(n) for f, n in ADDED.items()}
    assert "stats='step'" in settings["variants"]["snnTorch"]["TEBN (step)"]
    assert {"commit", "device", "versions"} <= set(demo.results["origin"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_pictures_show_every_norm_and_every_step(
    framework: str,
    demo: Demo,
    modules: SimpleNamespace,
) -> None:
    figures = modules.norms_figures
    learning = image.imread(demo.out / f"{framework.lower()}.png")[..., :3]
    first_and_last = learning[:, int(0.45 * learning.shape[1]) :]
    for panel in np.array_split(first_and_last, 2, axis=1):
        for norm in ADDED[framework]:
            assert count(panel, figures.COLORS[norm]) > 50, norm
    membranes = image.imread(demo.out / f"{framework.lower()}_membranes.png")[..., :3]
    top, bottom = (int(share * len(membranes)) for share in (0.12, 0.92))
    for row in np.array_split(membranes[top:bottom], 2):
        for panel in np.array_split(row, 4, axis=1):
            assert min(count(panel, figures.BEFORE), count(panel, figures.AFTER)) > 50


# ---------------------------------------------------------------- the comparison is fair


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_all_norms_start_from_the_same_weights(framework: str, norms: Any) -> None:
    plain, other = (norms.build(framework, "none", seed, EXAMPLE).state_dict() for seed in (3, 4))
    for norm in ADDED[framework]:
        state = norms.build(framework, norm, 3, EXAMPLE).state_dict()
        assert all(torch.equal(state[name], value) for name, value in plain.items()), norm
    weights = [name for name in plain if name.endswith(".weight")]
    assert len(weights) == 3
    assert not any(torch.equal(plain[name], other[name]) for name in weights)


KEYS = {  # what makes the norm what its name says: keys of its state beyond those of plain batch norms
    "none": set(),
    "BN": set(),
    "TEBN": {"bn1.tebn.scale", "bn2.tebn.scale"},
    "BNTT": {f"bn{i}.bntt.{t}.weight" for i in (1, 2) for t in range(3)},
    "BNTT (input)": {f"lif{i}.bntt.slots.{t}.weight" for i in (1, 2) for t in range(4)},
    "MPBN": {f"{{}}{i}.mpbn.bn.{name}" for i in (1, 2) for name in ("weight", "bias")},
}
KEYS |= {"TEBN (step)": KEYS["TEBN"], "BN + MPBN": KEYS["MPBN"]}


@pytest.mark.parametrize(("framework", "norm"), CONFIGURATIONS)
def test_the_norm_is_where_it_should_be_and_is_trained(
    framework: str, norm: str, norms: Any, data: Any
) -> None:
    """Not in the last neuron of snnTorch's network, whose membrane is the score."""
    fresh = norms.build(framework, norm, 0, EXAMPLE)
    run, trained = norms.train(framework, norm, 0, data, 1, lambda: None)
    neuron = "sn" if framework == "SpikingJelly" else "lif"
    keys = {key.format(neuron) for key in KEYS[norm]}
    plain = norms.build(framework, "BN" if norm == "BN + MPBN" else "none", 0, EXAMPLE)
    own = {name for name, p in fresh.named_parameters() if p.requires_grad} - set(
        dict(plain.named_parameters())
    )
    batch_norms = {f"bn{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
    assert own - batch_norms == keys
    assert run.parameters == ADDED[framework][norm]
    unmoved = [name for name in own if torch.equal(*(m.get_parameter(name) for m in (fresh, trained)))]
    assert unmoved == []


def test_tebn_has_joint_statistics_only_where_they_exist(norms: Any) -> None:
    assert norms.build("SpikingJelly", "TEBN", 0, EXAMPLE).bn1.tebn.stats == "joint"
    assert norms.build("snnTorch", "TEBN (step)", 0, EXAMPLE).bn1.tebn.stats == "step"


@pytest.mark.parametrize(("framework", "norm"), CONFIGURATIONS)
def test_a_seed_fixes_a_run(framework: str, norm: str, norms: Any, data: Any) -> None:
    small = replace(data, train_images=data.train_images[:64], train_labels=data.train_labels[:64])
    states = [norms.train(framework, norm, s, small, 1, lambda: None)[1].state_dict() for s in (0, 0, 1)]
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# ---------------------------------------------------------------- trained networks


@pytest.mark.parametrize(("framework", "norm"), CONFIGURATIONS)
def test_own_statistics_are_those_of_training_and_leave_the_model_alone(
    framework: str, norm: str, norms: Any, data: Any
) -> None:
    model = norms.build(framework, norm, 0, EXAMPLE).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own, running = norms.with_own_statistics(model, data.test_images), norms.scores(model, data.test_images)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # neither network has dropout: training mode differs in the norms alone
    assert torch.equal(own, norms.scores(model.train(), data.test_images))
    assert torch.equal(own, running) == (norm == "none")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_membranes_are_what_the_norm_got_and_gave(framework: str, norms: Any, data: Any) -> None:
    _, model = norms.train(framework, "BN + MPBN", 0, data, 1, lambda: None)
    seen = norms.membranes(model, data.test_images)
    of_model = [module for module in model.modules() if isinstance(module, MembraneBatchNorm)]
    assert list(seen) == ["layer 1", "layer 2"]
    assert not any(norm._forward_hooks for norm in of_model)
    for norm, pairs in zip(of_model, seen.values(), strict=True):
        assert len(pairs) == 4
        bn = norm.bn
        for before, after in pairs:
            assert len(before) == len(data.test_images)
            expected = F.batch_norm(before, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
            assert torch.equal(after, expected)
        assert not torch.equal(pairs[0][0], pairs[1][0])


def test_every_trained_network_with_mpbn_folds_without_a_change(demo: Demo) -> None:
    folded = [(f["framework"], f["norm"], f["seed"]) for f in demo.results["folds"]]
    assert folded == [c for s in (0, 1) for c in _folded_with(s)]
    assert {f["changed"] for f in demo.results["folds"]} == {0}
    assert all(f["said"].startswith("folded 2 sites: largest output") for f in demo.results["folds"])
    assert " ".join(demo.stdout.split()).count("all 100 predictions identical") >= 4


def _folded_with(seed: int) -> list[tuple[str, str, int]]:
    return [(f, norm, seed) for f in ADDED for norm in ("MPBN", "BN + MPBN")]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_wrong_fold_would_be_reported(
    framework: str, norms: Any, results: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = snn_ext.fold

    def wrong(model: nn.Module, example_input: Tensor) -> None:
        right(model, example_input=example_input)
        for module in model.modules():
            if isinstance(module, FoldedMembraneNorm):
                module.sign.neg_()

    run, model = norms.train(framework, "MPBN", 0, data, 2, lambda: None)
    monkeypatch.setattr(snn_ext, "fold", wrong)
    folded = norms.fold(run, model, data.test_images)
    assert folded.changed > 0
    [sentence] = results.about_folds([folded], 100)
    assert sentence.endswith(f"; {folded.changed} of 100 predictions differ")


def test_folds_that_differ_are_told_apart(results: Any) -> None:
    same = [results.Folded("snnTorch", "MPBN", seed, "folded", 0) for seed in (0, 1)]
    sentences = results.about_folds([*same, replace(same[0], seed=2, changed=3)], 540)
    assert sentences == [
        "snnTorch MPBN, 2 of the trained networks: folded; all 540 predictions identical",
        "snnTorch MPBN, 1 of the trained networks: folded; 3 of 540 predictions differ",
    ]


# ---------------------------------------------------------------- the verdict follows the numbers


def _runs(results: Any, accuracies: dict[str, float], seeds: int = 3, epochs: int = 2) -> list[Any]:
    """One framework; a spread of 1 over the seeds, the same at every measure."""
    return [
        results.Run("snnTorch", norm, seed, (mean + seed - 1,) * epochs, (mean + seed - 1,) * 2, 10, 1.0)
        for norm, mean in accuracies.items()
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(
    ("tebn", "mpbn", "against_none", "against_bn"),
    [
        (91.5, 91.5, "all help", "all tie"),
        (89.0, 91.5, "BN, MPBN help, TEBN ties", "MPBN ties, TEBN hurts"),
        (95.0, 80.0, "BN, TEBN help, MPBN hurts", "TEBN helps, MPBN hurts"),
    ],
)
def test_verdict_is_computed(
    tebn: float, mpbn: float, against_none: str, against_bn: str, results: Any
) -> None:
    runs = _runs(results, {"none": 88.5, "BN": 91.5, "TEBN": tebn, "MPBN": mpbn})
    sentences = results.verdict(results.compare(runs))
    measures = ("epoch 1", "epoch 1*", "epoch 2", "epoch 2*")
    assert sentences == [
        f"{measure}, vs. {reference}: in snnTorch {outcome}."
        for reference, outcome in (("none", against_none), ("BN", against_bn))
        for measure in measures
    ]


def test_the_end_and_its_own_statistics_are_told_apart(results: Any) -> None:
    late = [
        replace(run, accuracy=(50.0 + run.seed, 90.0 + run.seed), own_statistics=(60.0 + run.seed, 70.0))
        for run in _runs(results, {"MPBN": 0.0})
    ]
    runs = [*_runs(results, {"none": 65.0, "BN": 65.0}), *late]
    outcome = {
        c.measure: c.outcome for c in results.compare(runs) if (c.method, c.against) == ("MPBN", "vs. BN")
    }
    assert outcome == {"epoch 1": "hurts", "epoch 1*": "hurts", "epoch 2": "helps", "epoch 2*": "helps"}
    differences = [c.difference for c in results.compare(runs) if (c.method, c.against) == ("MPBN", "vs. BN")]
    assert differences == [-14.0, -4.0, 26.0, 5.0]


def test_a_single_epoch_is_first_and_last(results: Any) -> None:
    [run] = _runs(results, {"BN": 90.0}, seeds=1, epochs=1)
    assert run.measures() == {"epoch 1": 89.0, "epoch 1*": 89.0}


def test_one_seed_gives_no_verdict(results: Any) -> None:
    comparisons = results.compare(_runs(results, {"none": 10.0, "BN": 90.0}, seeds=1))
    assert [c.outcome for c in comparisons] == ["unknown"] * 4
    assert results.verdict(comparisons)[0] == "epoch 1, vs. none: in snnTorch all cannot be judged."


def test_pictures_can_be_drawn_of_one_seed(
    results: Any,
    tmp_path: Path,
    modules: SimpleNamespace,
) -> None:
    runs = _runs(results, {"none": 60.0, "BN": 90.0}, seeds=1)
    modules.norms_figures.learning(runs, "title", tmp_path / "learning.png")
    pixels = image.imread(tmp_path / "learning.png")[..., :3]
    assert min(count(pixels, modules.norms_figures.COLORS[norm]) for norm in ("none", "BN")) > 50
