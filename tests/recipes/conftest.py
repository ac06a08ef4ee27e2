"""The recipes are a package beside the examples; their tests write their own small data sets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))  # behind: benchmarks have modules of the same names as examples


@pytest.fixture(autouse=True)
def _small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows the hashes of the real files, which generated ones cannot have."""
    from tests.recipes import disk

    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", disk.is_there)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every data set, written once, by name."""
    from tests.recipes import disk

    return disk.write_all(tmp_path_factory.mktemp("data"))
