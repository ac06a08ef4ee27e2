"""A random test that fails says how to make it fail again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis.core
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

RANDOM = """
    import torch
    from hypothesis import Phase, given, settings, strategies as st

    @settings(database=None, max_examples=20, phases=[Phase.generate])
    @given(st.integers(0, 10 ** 6), st.random_module())
    def test_random(number, _):
        assert number < 1000, torch.rand(()).item()

    def test_other():
        assert False
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    monkeypatch.setattr(hypothesis.core, "global_force_seed", None)  # taken back behind the inner run
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(RANDOM)
    return pytester


def test_the_seed_is_in_the_header_and_in_every_failure(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNN_EXT_EXAMPLES", "12")
    text = inner.runpytest_inprocess("--hypothesis-seed=77").stdout.str()
    assert "random tests: SNN_EXT_EXAMPLES=12 pytest --hypothesis-seed=77" in text
    assert text.count("SNN_EXT_EXAMPLES=12 pytest --hypothesis-seed=77 test_the_seed_is") == 1
    assert "=77 test_the_seed_is_in_the_header_and_in_every_failure.py::test_random" in text


def test_the_same_seed_fails_the_same_way(inner: pytest.Pytester) -> None:
    def failure() -> list[str]:
        lines = inner.runpytest_inprocess("--hypothesis-seed=5", "-k", "random").stdout.str().splitlines()
        return [line for line in lines if line.startswith("E ")]

    first = failure()
    torch.rand(7)
    assert failure() == first


def test_there_is_always_a_seed(request: pytest.FixtureRequest) -> None:
    assert request.config.getoption("hypothesis_seed") is not None


def test_make_passes_its_seed_to_the_random_tests() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    for target in ("test", "fuzz"):
        recipe = text.partition(f"\n{target}: $(VENV)")[2].partition("\n\n")[0]
        assert "--hypothesis-seed=$(SEED)" in recipe


drawn: set[float] = set()


@settings(max_examples=5, database=None)
@given(st.integers())
def test_every_example_starts_from_one_state_of_torch(number: int) -> None:
    drawn.add(torch.rand(()).item())
    assert len(drawn) == 1
