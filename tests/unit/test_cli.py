"""The command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import snn_ext
from snn_ext import cli, kernels
from snn_ext.kernels import BackendStatus
from snn_ext.patching import plugins
from tests.toy import ToyAdapter, registered

MODEL = """
import torch
from torch import nn
from tests.toy import LeadingNeuron

def make_model():
    return nn.Sequential(nn.Linear(4, 3), LeadingNeuron())

def make_input():
    return torch.rand(2, 5, 4)

number = 3

def not_a_model():
    return number
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, in the working directory."""
    (tmp_path / "mine_for_cli.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "mine_for_cli"


def test_doctor_lists_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(["doctor"])
    text = capsys.readouterr().out
    assert "toy" in text
    for backend in kernels.backends():
        assert backend.name in text
    compiled = any(s.available for s in kernels.backends() if s.name in ("host", "cupy"))
    assert status == (0 if compiled and all(a.error is None for a in plugins.adapters()) else 1)


def test_doctor_says_what_to_do_without_compiled_kernels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = [BackendStatus("host", False, "no compiler", "install g++"), BackendStatus("torch", True, "", "")]
    monkeypatch.setattr(kernels, "backends", lambda: none)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "no compiler" in text
    assert "install g++" in text


def test_doctor_reports_a_broken_adapter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = plugins.Adapter("mine", None, None, RuntimeError("[no]"))
    monkeypatch.setattr(cli, "adapters", lambda: [broken])
    assert cli.main(["doctor"]) == 1
    assert "[no]" in capsys.readouterr().out


class Refusing(ToyAdapter):
    """Its framework was released too early, or does not import."""

    name = "refusing"

    def __init__(self, error: Exception) -> None:
        self.error = error

    @snn_ext.hookimpl
    def snn_ext_check_release(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "state", "do"),
    [
        (
            snn_ext.UnsupportedReleaseError("no.", why="too old", do="pip install new"),
            "unsupported: too old",
            "new",
        ),
        (ImportError("libold.so"), "broken: ImportError: libold.so", "report this to the authors"),
    ],
)
def test_doctor_asks_whether_the_release_can_be_patched(
    error: Exception, state: str, do: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with registered(Refusing(error)):
        assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert state in text
    assert do in text


def test_inspect_prints_the_plan(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", f"{written}:make_model", "--input", f"{written}:make_input"]) == 0
    assert "LeadingNeuron" in capsys.readouterr().out
    assert cli.main(["inspect", written, "--imp"]) == 0, "the function is called make_model"


@pytest.mark.parametrize("target", ["nowhere_at_all:f", "mine_for_cli:missing", "mine_for_cli:not_a_model"])
def test_inspect_teaches(target: str, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", target]) == 1
    assert "do:" in capsys.readouterr().err


def test_wrong_usage_is_status_two() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["dance"])
    assert caught.value.code == 2
