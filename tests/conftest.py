"""Shared by all tests: one thread, a fixed seed, and helpers to compare models."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)
