"""Drawing: what is drawn, on which axes; and the command that writes the pictures."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import MissingDependencyError, OptionError, cli, figures
from snn_ext.neurons import SpikingNeuron
from tests.toy import leading_net

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes


@pytest.fixture
def ax() -> Any:
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


@pytest.fixture
def site() -> figures.SiteRecord:
    net, x = leading_net(), torch.rand(5, 3, 4) * 2
    return figures.record(net, x)["1"]


def image(axes: Axes) -> Any:
    return np.asarray(axes.images[0].get_array())


def test_pattern_mapping(ax: Axes) -> None:
    cells = figures.pattern_mapping()
    assert figures.plot_pattern_mapping(cells, ax, title="V0 = 0") is ax
    assert np.array_equal(image(ax), cells)
    assert ax.images[0].origin == "lower"
    assert ax.get_title() == "V0 = 0: 54 mappings"
    assert ax.get_xlabel().startswith("input")
    assert [t.get_text() for t in ax.get_yticklabels()][:3] == ["0000", "0001", "0010"]


def test_firing_patterns(ax: Axes) -> None:
    membrane, spikes = figures.firing_patterns("intensity")
    assert figures.plot_firing_patterns(membrane, spikes, ax) is ax
    assert np.array_equal(image(ax), membrane)
    assert ax.images[0].origin == "lower", "neuron 0 is at the bottom"
    points = {tuple(p) for p in ax.collections[0].get_offsets().tolist()}
    assert points == {(t + 1.0, float(n)) for n, t in np.argwhere(spikes)}
    assert (13.0, 0.0) in points


def test_overhead(ax: Axes) -> None:
    result = figures.overhead((8, 16), (1, 2), rounds=2, device="cpu")
    assert figures.plot_overhead(result, ax) is ax
    lines = [c.lines[0] for c in ax.containers]
    assert [line.get_ydata().tolist() for line in lines] == result.ratio.T.tolist()
    assert lines[0].get_xdata().tolist() == [1, 2]


def test_rasters_and_membranes(site: figures.SiteRecord, ax: Axes) -> None:
    assert figures.plot_raster(site, 2, ax) is ax
    points = {tuple(p) for p in ax.collections[0].get_offsets().tolist()}
    assert points == {(t + 1.0, float(n)) for t, n in site.spikes[:, 2].nonzero().tolist()}
    assert points
    for which, values in (("v", site.v), ("h", site.h)):
        axes = figures.plot_membrane(site, 1, which=which)  # type: ignore[arg-type]
        assert isinstance(axes, Axes)
        assert np.array_equal(image(axes), values[:, 1].double().numpy().T)
        assert "1 (LeadingNeuron)" in axes.get_title()
        pyplot.close(axes.figure)


def test_rasters_refuse(site: figures.SiteRecord) -> None:
    with pytest.raises(OptionError, match="sample"):
        figures.plot_raster(site, 3)
    with pytest.raises(OptionError, match="which"):
        figures.plot_membrane(site, which="u")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="needs MPBN"):
        figures.plot_membrane(site, which="normalised")
    pyplot.close("all")


def test_images_are_flattened(ax: Axes) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), SpikingNeuron())

    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net[1](torch.stack([self.net[0](x_t) for x_t in x]))  # type: ignore[no-any-return]

    site = figures.record(Over(), torch.rand(4, 2, 1, 5, 5))["net.1"]
    figures.plot_membrane(site, 0, ax)
    assert image(ax).shape == (2 * 3 * 3, 4)


def test_distributions(ax: Axes) -> None:
    layer = figures.membrane_distribution(leading_net(), torch.rand(5, 3, 4), bins=8)["1"]
    assert figures.plot_distribution(layer.before, ax, threshold=layer.threshold, title="before") is ax
    drawn = ax.collections[0].get_array().reshape(8, 5)
    assert np.allclose(drawn.sum(0), 1), "shares of every step"
    assert np.allclose(drawn.T, layer.before.counts / 18)
    assert ax.lines[0].get_ydata().tolist() == layer.before.mean.tolist()


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.mark.usefixtures("without_matplotlib")
def test_without_matplotlib_only_drawing_fails(
    tmp_path: Path, site: figures.SiteRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingDependencyError, match=re.escape("pip install 'snn-ext[plot]'")):
        figures.plot_pattern_mapping(figures.pattern_mapping())
    with pytest.raises(ImportError):
        figures.plot_raster(site)
    assert cli.main(["figures", "--out", str(tmp_path / "new")]) == 1
    assert "pip install 'snn-ext[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists(), "nothing is begun"


def test_the_command_writes_pictures_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "some" / "where"
    assert cli.main(["figures", "--quick", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "V0 = 0: 54 mappings" in printed.out
    assert "V0 = 0.25: 71" in printed.out
    for name in ("figure1", "figure3", "figure6"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        numbers = json.loads((out / f"{name}.json").read_text())
        assert numbers["origin"]["torch"] == torch.__version__.partition("+")[0]
        assert numbers["origin"]["command"].startswith("snn-ext figures")
    counts = json.loads((out / "figure3.json").read_text())["counts"]
    with np.load(out / "figure3.npz") as cells:
        assert counts == {name: int(cells[name].sum()) for name in cells}
        assert np.array_equal(cells["learnable"], figures.pattern_mapping("learnable"))
    with np.load(out / "figure1.npz") as arrays:
        assert np.array_equal(arrays["imp_float32_membrane"], figures.firing_patterns("imp")[0])
        assert arrays["imp_float64_membrane"].dtype == np.float64
    assert len(json.loads((out / "figure6.json").read_text())["ratio"]) == 2


def test_the_command_says_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["figures", "--quick", "--out", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_committed_numbers_are_those_of_the_command() -> None:
    """The pictures in docs/figures come with their numbers; these are exact, so that they can be checked."""
    folder = Path(__file__).parents[2] / "docs" / "figures"
    with np.load(folder / "figure3.npz") as cells:
        assert np.array_equal(cells["fixed_0"], figures.pattern_mapping())
        assert np.array_equal(cells["fixed_0.25"], figures.pattern_mapping(0.25))
        assert np.array_equal(cells["learnable"], figures.pattern_mapping("learnable"))
    with np.load(folder / "figure1.npz") as arrays:
        for mode in ("imp", "intensity"):
            for dtype in ("float32", "float64"):
                membrane, spikes = figures.firing_patterns(mode, dtype)  # type: ignore[arg-type]
                assert np.array_equal(arrays[f"{mode}_{dtype}_membrane"], membrane)
                assert np.array_equal(arrays[f"{mode}_{dtype}_spikes"], spikes)
    for name in ("figure1", "figure3", "figure6"):
        assert (folder / f"{name}.png").exists()


def test_figures_are_reachable_from_the_root() -> None:
    assert snn_ext.figures is figures
