"""How many neurons a thread takes: one read is of 1, 2 or 4 of them, never 3, which no alignment allows."""

from __future__ import annotations

import pytest

from snn_ext.kernels import cupy_backend
from snn_ext.kernels.abi import Arguments
from snn_ext.kernels.spec import Spec


@pytest.mark.parametrize(("steps", "lanes"), [(0, 4), (1, 4), (4, 4), (5, 2), (8, 2), (9, 1), (16, 1)])
def test_lanes_by_steps_in_registers(steps: int, lanes: int) -> None:
    aligned = Arguments(max(steps, 1), 36, 1, 0)  # no pointers: aligned to anything, also to 3 neurons
    assert cupy_backend.lanes_for(Spec(unrolled=steps), aligned) == lanes
    assert cupy_backend.lanes_for(Spec(unrolled=steps, affine=True), aligned) == 1
