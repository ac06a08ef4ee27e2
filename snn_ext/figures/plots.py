"""Draw the figures. Every function returns the matplotlib ``Axes`` it drew on; the only file that draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from snn_ext.errors import MissingDependencyError, OptionError
from snn_ext.figures.cost import Overhead
from snn_ext.figures.distribution import Histogram
from snn_ext.figures.recording import SiteRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "new_figure",
    "plot_distribution",
    "plot_firing_patterns",
    "plot_membrane",
    "plot_overhead",
    "plot_pattern_mapping",
    "plot_raster",
]


def _needed(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        "drawing needs matplotlib, which is not installed.",
        why=str(error),
        do="pip install 'snn-ext[plot]'",
    )


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that no window system knows of.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _needed(error) from error
    return Figure(figsize=(width, height), layout="constrained")


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise _needed(error) from error
    return pyplot.subplots(layout="constrained")[1]


def plot_pattern_mapping(cells: NDArray[np.bool_], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Figure 3: dark where the input pattern (column) can become the output pattern (row).

    Args:
        cells: of `pattern_mapping`.
        ax: to draw on; None for a new figure.
        title: above; the count is added.

    Raises:
        MissingDependencyError: matplotlib is not installed (as in all of these).
    """
    axes = _axes(ax)
    count, steps = len(cells), len(cells).bit_length() - 1
    axes.imshow(cells, cmap="Blues", vmin=0, vmax=1.4, origin="lower")
    labels = [format(i, f"0{steps}b") for i in range(count)] if count <= 32 else []
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7, family="monospace")
    axes.set_yticks(range(len(labels)), labels, fontsize=7, family="monospace")
    axes.set_xlabel("input pattern, first step on the left")
    axes.set_ylabel("output pattern")
    axes.set_title(f"{title}: {int(cells.sum())} mappings".removeprefix(": "))
    return axes


def plot_firing_patterns(
    membrane: NDArray[np.floating],
    spikes: NDArray[np.bool_] | None = None,
    ax: Axes | None = None,
    *,
    title: str = "",
) -> Axes:
    """Figure 1: membrane after the reset over time, neuron 0 at the bottom; spikes, if given, as dots.

    Args:
        membrane, spikes: of `firing_patterns`, [neurons, T].
    """
    axes = _heat(_axes(ax), membrane, "membrane after reset")
    if spikes is not None:
        _dots(axes, spikes, "tab:red")
    axes.set_title(title)
    return axes


def plot_overhead(result: Overhead, ax: Axes | None = None) -> Axes:
    """Figure 6: time with V0 / time without, over T, one line per N; bars are quartiles over rounds."""
    axes = _axes(ax)
    for i, count in enumerate(result.neurons):
        middle = result.ratio[:, i]
        quartiles = np.abs(np.stack([result.low[:, i], result.high[:, i]]) - middle)
        axes.errorbar(result.timesteps, middle, quartiles, marker="o", capsize=3, label=f"{count} neurons")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(result.timesteps, [str(t) for t in result.timesteps])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time steps T")
    axes.set_ylabel("time with V0 / without")
    axes.set_title(f"forward + backward, {result.backend} on {result.device}")
    axes.legend()
    return axes


def plot_raster(site: SiteRecord, sample: int = 0, ax: Axes | None = None) -> Axes:
    """Spikes of one sample, one row per neuron (features flattened).

    Args:
        site: of `record`.
        sample: of the batch.
        ax: to draw on; None for a new figure.

    Raises:
        OptionError: no such sample.
    """
    axes = _axes(ax)
    fired = _sample(site, site.spikes, sample) != 0
    _dots(axes, fired, "black")
    axes.set_xlim(0.5, fired.shape[1] + 0.5)
    axes.set_ylim(-0.5, len(fired) - 0.5)
    return _labelled(axes, site, f"spikes of sample {sample}")


def plot_membrane(
    site: SiteRecord,
    sample: int = 0,
    ax: Axes | None = None,
    *,
    which: Literal["h", "normalised", "v"] = "v",
) -> Axes:
    """Membranes of one sample as a heat map, one row per neuron (features flattened).

    Args:
        site: of `record`.
        sample: of the batch.
        ax: to draw on; None for a new figure.
        which: ``"h"`` before firing, ``"normalised"`` after MPBN, ``"v"`` after the step; see `SiteRecord`.

    Raises:
        OptionError: no such sample; no normalised membrane.
    """
    values = getattr(site, which, None) if which in ("h", "normalised", "v") else None
    if not isinstance(values, Tensor):
        raise OptionError(
            f"{site.path} ({site.kind}) has no membrane which={which!r}.",
            do='use "h" or "v"; "normalised" needs MPBN (not folded)',
        )
    axes = _heat(_axes(ax), _sample(site, values, sample), _NAMES[which])
    return _labelled(axes, site, f"{_NAMES[which]}, sample {sample}")


_NAMES = {"h": "membrane before firing", "normalised": "normalised membrane", "v": "membrane after the step"}


def plot_distribution(
    histogram: Histogram, ax: Axes | None = None, *, threshold: float | None = None, title: str = ""
) -> Axes:
    """Share of neurons over membrane values, step by step; the line is the mean, dashed the threshold.

    Args:
        histogram: ``before`` or ``after`` of a `MembraneDistribution`.
        ax: to draw on; None for a new figure.
        threshold: theta.
        title: above.
    """
    axes = _axes(ax)
    steps = len(histogram.counts)
    share = histogram.counts / histogram.counts.sum(1, keepdims=True)
    mesh = axes.pcolormesh(np.arange(steps + 1) + 0.5, histogram.edges, share.T, cmap="Blues")
    axes.figure.colorbar(mesh, ax=axes, label="share of neurons")
    axes.plot(range(1, steps + 1), histogram.mean, color="tab:orange", label="mean")
    if threshold is not None:
        axes.axhline(threshold, color="black", linestyle="dashed", label="threshold")
    axes.set_xlabel("time step")
    axes.set_ylabel("membrane")
    axes.set_title(title)
    axes.legend()
    return axes


def _sample(site: SiteRecord, values: Tensor, sample: int) -> NDArray[Any]:
    """[neurons, T] of one sample."""
    batch = values.shape[1] if values.ndim > 1 else 0
    if not isinstance(sample, int) or not -batch <= sample < batch:
        raise OptionError(
            f"{site.path} ({site.kind}) has no sample {sample!r}.", do=f"use one of 0 to {batch - 1}"
        )
    return values[:, sample].detach().cpu().double().reshape(len(values), -1).T.numpy()


def _heat(axes: Axes, values: NDArray[Any], label: str) -> Axes:
    neurons, steps = values.shape
    image = axes.imshow(
        values,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(0.5, steps + 0.5, -0.5, neurons - 0.5),
    )
    axes.figure.colorbar(image, ax=axes, label=label)
    axes.set_xlabel("time step")
    axes.set_ylabel("neuron")
    return axes


def _dots(axes: Axes, fired: NDArray[np.bool_], colour: str) -> None:
    neuron, step = np.nonzero(fired)
    axes.scatter(step + 1, neuron, s=9, color=colour, marker="o")


def _labelled(axes: Axes, site: SiteRecord, what: str) -> Axes:
    axes.set_xlabel("time step")
    axes.set_ylabel("neuron")
    axes.set_title(f"{site.path} ({site.kind}): {what}")
    return axes
