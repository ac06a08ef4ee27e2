"""What importing and using the core pulls in: no framework, no cupy, no matplotlib, no CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"spikingjelly", "snntorch"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )


def test_importing_snn_ext_imports_no_framework() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import snn_ext
foreign = {name.partition(".")[0] for name in set(sys.modules) - before}
forbidden = {"spikingjelly", "snntorch", "cupy", "matplotlib", "snn_ext_spikingjelly", "snn_ext_snntorch"}
assert not foreign & forbidden, foreign & forbidden
assert not torch.cuda.is_initialized()
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_listing_adapters_imports_no_framework() -> None:
    code = """
import sys, snn_ext
names = {a.name for a in snn_ext.adapters()}
assert names >= {"spikingjelly", "snntorch"}, names
assert not {"spikingjelly", "snntorch", "matplotlib"} & set(sys.modules)
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("framework", "other", "neuron"),
    [
        ("spikingjelly", "snntorch", "from spikingjelly.activation_based.neuron import IFNode as N; n = N()"),
        ("snntorch", "spikingjelly", "import snntorch; n = snntorch.Leaky(beta=0.9)"),
    ],
)
def test_a_model_of_one_framework_never_imports_the_other(framework: str, other: str, neuron: str) -> None:
    pytest.importorskip(framework, reason=f"{framework} is not installed")
    code = f"""
import sys, torch, snn_ext
{neuron}
snn_ext.patch(torch.nn.Sequential(torch.nn.Linear(2, 2), n), imp=True)
assert {framework!r} in sys.modules and {other!r} not in sys.modules
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_the_core_works_with_neither_framework() -> None:
    """All unit, property and golden tests pass where spikingjelly and snntorch cannot be imported."""
    # the broken adapters are of the toy framework, and the longest test by far
    broken = "--ignore=tests/unit/test_broken_adapters.py"
    tests = ["tests/unit", "tests/property", "tests/golden", broken]
    few = "import os, pytest\nos.environ['SNN_EXT_EXAMPLES'] = '50'"
    code = f"{BLOCK}\n{few}\nsys.exit(pytest.main({['-q', '-x', '-p', 'no:cacheprovider', *tests]!r}))"
    result = run(code)
    assert result.returncode == 0, result.stdout[-3000:]
    assert " passed" in result.stdout
    assert " skipped" not in result.stdout


def test_the_block_works() -> None:
    """The twin: with the block, a framework really cannot be imported."""
    result = run(f"{BLOCK}\nimport snntorch")
    assert "No module named 'snntorch'" in result.stderr
