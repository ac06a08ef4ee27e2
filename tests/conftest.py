"""Shared by all tests: one thread, and seeds: fixed ones, and for random tests one that is printed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# Compiled kernels are shared by all test processes and kept for the next run.
os.environ.setdefault("SNN_EXT_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "kernels"))


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)


class _TorchRandom:
    """torch's generator, as hypothesis wants it: then every example starts from one state, and one that
    failed fails again alone."""

    def seed(self, value: int) -> None:
        torch.manual_seed(value)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_TORCH = _TorchRandom()  # hypothesis keeps a weak reference only
hypothesis.register_random(_TORCH)


def _how_to_repeat(config: pytest.Config) -> str:
    examples = os.environ.get("SNN_EXT_EXAMPLES")
    variable = f"SNN_EXT_EXAMPLES={examples} " if examples else ""
    return f"{variable}pytest --hypothesis-seed={config.getoption('hypothesis_seed')}"


def pytest_report_header(config: pytest.Config) -> str:
    return f"random tests: {_how_to_repeat(config)}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Says it again where a random test fails: a log may show no header."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
        report.sections.append(("to repeat", f"{_how_to_repeat(item.config)} {item.nodeid}"))
