"""Shared by the adapters' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from snn_ext.kernels import use_backend


@pytest.fixture
def framework_step() -> Iterator[None]:
    """Neurons take their framework's own step: for what holds to the last bit only there (gradients, whose
    sums the kernels associate otherwise; twins that break a part of that step)."""
    with use_backend("framework"):
        yield
