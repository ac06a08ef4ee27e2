"""Shared by all tests: one thread, a fixed seed, and helpers to compare models."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

# Compiled kernels are shared by all test processes and kept for the next run.
os.environ.setdefault("SNN_EXT_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "kernels"))


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
