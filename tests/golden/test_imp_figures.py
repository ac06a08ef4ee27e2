"""Published pictures of the IMP paper as exact numbers (conventions: docs/imp.md).

Figure 3 counts which 4-step input pattern can become which output pattern; Figure 1 shows spike times.
"""

from __future__ import annotations

import itertools

import torch

from snn_ext import Dynamics
from snn_ext.functional import multistep

IF_SOFT = Dynamics(reset="soft")


def mapping(v0s: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[16, 16] bool: some (V0, weight) maps input pattern (column) to output pattern (row)."""
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))  # first step most significant
    cells = torch.zeros(16, 16, dtype=torch.bool)
    x = torch.einsum("it,w->tiw", bits, weights)
    for v0 in v0s:
        spikes = multistep(x, v0, IF_SOFT).spikes
        out = torch.einsum("tiw,t->iw", spikes, torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
        for i in range(16):
            cells[out[i], i] = True
    return cells


def test_figure_3_without_imp_has_54_mappings() -> None:
    cells = mapping(torch.zeros(1), torch.linspace(0, 1, 17))
    assert int(cells.sum()) == 54
    learnable = mapping(torch.linspace(-1, 1, 9), torch.linspace(0, 1, 9))
    assert int(learnable.sum()) > 54, "a learnable V0 reaches more patterns"


def test_figure_3_is_the_identity_for_unit_weight() -> None:
    assert torch.equal(mapping(torch.zeros(1), torch.ones(1)), torch.eye(16, dtype=torch.bool))


def test_figure_1_intensity_changes_the_period() -> None:
    for dtype in (torch.float32, torch.float64):
        x = (1 / (12 - torch.arange(7, dtype=dtype)) - 1e-7).expand(32, 1, 7)
        spikes = multistep(x, 0.0, IF_SOFT).spikes[:, 0]
        times = [(spikes[:, n].nonzero().flatten() + 1).tolist() for n in range(7)]
        assert times[0] == [13, 25]
        assert times[6] == [7, 13, 19, 25, 31]
