"""BNTT and TEBN fold at neurons whatever stands before them; and what a fold changed stays on record."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import snn_ext
from snn_ext import FoldResult
from snn_ext.norms import FoldedTime, NormalisedInput
from tests.adapters.edge_nets import IDIOMS, images, make, run, train_step
from tests.adapters.snntorch_nets import private_instances

AT_NEURONS = ("bntt at neurons", "tebn at neurons")
NOTE = "folded, cannot be unpatched"

everywhere = pytest.mark.parametrize("idiom", IDIOMS)


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def trained(idiom: str, method: str) -> nn.Module:
    """In eval mode; gammas, betas and scales of both signs."""
    net = make(idiom, method)
    for _ in range(3):
        train_step(idiom, net.train(), images())
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if set(name.split(".")) & {"bntt", "tebn"}:
                parameter.uniform_(-0.5, 1.5)
    return net.eval()


@everywhere
@pytest.mark.parametrize("method", AT_NEURONS)
def test_every_norm_at_a_neuron_folds(idiom: str, method: str) -> None:
    """The first follows a batch norm, the second a linear layer. With these values no membrane is within
    rounding of its threshold."""
    net, x = trained(idiom, method), images()
    before = run(idiom, net, x)
    unfolded = [m for m in net.modules() if isinstance(m, NormalisedInput)]
    assert len(unfolded) == 2
    assert snn_ext.fold(net) is net
    assert all(isinstance(neuron.input_norm, FoldedTime) for neuron in unfolded)
    assert [row["note"] for row in snn_ext.report(net).to_dict()["sites"]] == [NOTE] * 2
    torch.testing.assert_close(run(idiom, net, x), before, rtol=0, atol=1e-5)
    torch.testing.assert_close(run(idiom, net, x[:2]), before[:2], rtol=0, atol=1e-5)
    assert before.std() > 0.1, "an equality of silent networks proves nothing"
    for neuron in unfolded:
        neuron.input_norm.scale.mul_(-1)  # type: ignore[union-attr,operator]
    assert not torch.allclose(run(idiom, net, x), before), "the twin: a wrong affine is seen"


@pytest.mark.parametrize("idiom", ["spikingjelly m", "spikingjelly s", "snntorch sequential"])
def test_the_report_keeps_what_a_fold_changed(
    idiom: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = trained(idiom, AT_NEURONS[0])
    x = images() if IDIOMS[idiom].whole else images()[0]
    assert snn_ext.report(net).fold is None
    snn_ext.fold(net, example_input=x)
    report = snn_ext.report(net)
    assert isinstance(report.fold, FoldResult)
    assert report.fold.sites == 2
    printed = capsys.readouterr().out.strip()
    assert str(report).splitlines()[-1] == str(report.fold) == printed
    assert report.to_dict()["fold"]["output_difference"] == report.fold.output_difference
    snn_ext.save(net, tmp_path / "net")
    for other in (copy.deepcopy(net), snn_ext.load(make(idiom, None), tmp_path / "net")):
        assert snn_ext.report(other).fold == report.fold
        assert str(snn_ext.report(other)).splitlines()[-1] == printed


def test_the_last_fold_counts(tmp_path: Path) -> None:
    """Also where it was not measured; a checkpoint brings the result of its own fold."""
    idiom, x = "spikingjelly m", images()
    measured, silent = (trained(idiom, AT_NEURONS[1]) for _ in range(2))
    snn_ext.save(snn_ext.fold(silent), tmp_path / "silent")
    assert snn_ext.report(silent).fold is None
    assert "folded 2 sites" not in str(snn_ext.report(silent))
    snn_ext.fold(measured, example_input=x)
    assert snn_ext.report(measured).fold is not None
    snn_ext.save(measured, tmp_path / "measured")
    snn_ext.load(measured, tmp_path / "silent")
    assert snn_ext.report(measured).fold is None
    snn_ext.load(silent, tmp_path / "measured")
    assert snn_ext.report(silent).fold is not None
    net = make(idiom, None)
    snn_ext.patch(net, mpbn={"2": True}, example_input=x).eval()
    snn_ext.fold(net, example_input=x)
    assert snn_ext.report(net).fold is not None
    snn_ext.patch(net, mpbn={"5": True}, example_input=x).eval()
    snn_ext.fold(net)
    assert snn_ext.report(net).fold is None, "the numbers were those of another network"
