"""How many neurons a thread takes: one read is of 1, 2 or 4 of them, never 3, which no alignment allows."""

from __future__ import annotations

import pytest

from snn_ext.kernels import cupy_backend
from snn_ext.kernels.abi import Arguments
from snn_ext.kernels.spec import Spec

CASES = [("float", 0, 2), ("float", 1, 2), ("float", 8, 2), ("float", 9, 1), ("float", 16, 1)]
CASES += [("snn::Half", 1, 4), ("snn::Half", 4, 4), ("snn::Half", 5, 2), ("snn::BFloat", 9, 1)]


@pytest.mark.parametrize(("io", "steps", "lanes"), CASES)
def test_lanes_by_steps_in_registers(io: str, steps: int, lanes: int) -> None:
    aligned = Arguments(max(steps, 1), 36, 1, 0)  # no pointers: aligned to anything, also to 3 neurons
    assert cupy_backend.lanes_for(Spec(unrolled=steps, io=io), aligned) == lanes
    assert cupy_backend.lanes_for(Spec(unrolled=steps, affine=True, io=io), aligned) == 1
