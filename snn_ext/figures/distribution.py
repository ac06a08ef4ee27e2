"""How the membranes of every layer are distributed at every step, before and after MPBN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snn_ext.errors import OptionError
from snn_ext.figures.recording import Recording, SiteRecord, record
from snn_ext.patching.sites import Patterns

__all__ = ["Histogram", "MembraneDistribution", "membrane_distribution"]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Values of a layer at each of T steps.

    Attributes:
        edges: [bins + 1], the same for all steps, from the smallest value to the largest.
        counts: [T, bins].
        mean, std: [T], over samples and neurons (population standard deviation).
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MembraneDistribution:
    """One layer.

    Attributes:
        path, kind: of the neuron, see `SiteRecord`.
        before: charged membranes before the norm: H, or without MPBN what the neuron decides on.
        after: normalised membranes, which MPBN decides on; None without MPBN.
        threshold: theta where it is one number, else None.
    """

    path: str
    kind: str
    before: Histogram
    after: Histogram | None
    threshold: float | None


def membrane_distribution(
    model: nn.Module | Recording,
    x: Any = None,
    *,
    bins: int = 64,
    per_step: bool = False,
    include: Patterns = "*",
    exclude: Patterns = (),
) -> Mapping[str, MembraneDistribution]:
    """Distributions of membranes before firing, per layer and step.

    Args:
        model: what to run, or what `record` returned (x and the other arguments are not used then).
        x, per_step, include, exclude: see `record`, also for errors.
        bins: of the histograms.

    Returns:
        First path -> `MembraneDistribution`.

    Raises:
        OptionError: bins below 1, or membranes that are not finite.
    """
    if not isinstance(bins, int) or isinstance(bins, bool) or bins < 1:
        raise OptionError(f"bins={bins!r} is not possible.", do="pass a positive number")
    if not isinstance(model, Recording):
        model = record(model, x, per_step=per_step, include=include, exclude=exclude)
    return {path: _distribution(site, bins) for path, site in model.sites.items()}


def _distribution(site: SiteRecord, bins: int) -> MembraneDistribution:
    after = None if site.normalised is None else _histogram(site, site.normalised, bins)
    return MembraneDistribution(
        path=site.path,
        kind=site.kind,
        before=_histogram(site, site.h, bins),
        after=after,
        threshold=None if isinstance(site.threshold, Tensor) else site.threshold,
    )


def _histogram(site: SiteRecord, values: Tensor, bins: int) -> Histogram:
    steps = values.detach().to("cpu", torch.float64).flatten(1).numpy()
    if not steps.size or not np.isfinite(steps).all():
        raise OptionError(
            "these membranes have no distribution.",
            where=f"{site.path} ({site.kind})",
            why="some of them are not finite" if steps.size else "there are none",
            do="look at the input with torch.isfinite, or exclude this neuron",
        )
    edges = np.histogram_bin_edges(steps, bins)
    counts = np.stack([np.histogram(step, edges)[0] for step in steps])
    return Histogram(edges, counts, steps.mean(1), steps.std(1))
