"""Releases of SpikingJelly that cannot be patched are refused as a whole, with what to install instead."""

from __future__ import annotations

import pytest
from spikingjelly.activation_based import base, layer, neuron
from torch import nn

import snn_ext
from snn_ext import UnsupportedReleaseError, cli
from snn_ext.testing import cases_of


@pytest.fixture
def old_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older release lacks: the hook, and names that the adapter imports."""
    monkeypatch.delattr(base.MemoryModule, "materialize_states")


def net() -> nn.Sequential:
    return nn.Sequential(layer.Linear(3, 4), layer.BatchNorm1d(4), neuron.LIFNode())


@pytest.mark.usefixtures("old_release")
def test_a_model_of_an_old_release_is_refused_and_untouched() -> None:
    model = net()
    before = [(name, type(module)) for name, module in model.named_modules()], [*model.state_dict()]
    for patched in (
        lambda: snn_ext.patch(model, imp=True),
        lambda: snn_ext.patch(model, tebn=True, timesteps=2),
    ):
        with pytest.raises(UnsupportedReleaseError, match=r"do: pip install 'spikingjelly>=2\.0\.0'$"):
            patched()
    assert before == (
        [(name, type(module)) for name, module in model.named_modules()],
        [*model.state_dict()],
    )


@pytest.mark.usefixtures("old_release")
def test_the_compliance_suite_says_so_too() -> None:
    with pytest.raises(UnsupportedReleaseError):
        cases_of("spikingjelly")


@pytest.mark.usefixtures("old_release")
def test_the_doctor_shows_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "unsupported:" in text
    assert "pip install 'spikingjelly>=2.0.0'" in text


def test_the_installed_release_is_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert snn_ext.patch(net(), imp=snn_ext.IMP(shape="layer")) is not None
    assert cases_of("spikingjelly")
    cli.main(["doctor"])
    assert "unsupported" not in capsys.readouterr().out
