"""Figures of the IMP paper as exact numbers, and membranes and spikes of any patched model.

Numbers come as numpy arrays (recordings as tensors); only the ``plot_...`` functions need matplotlib:
``pip install 'snn-ext[plot]'``.
"""

from snn_ext.figures.cost import Overhead, overhead
from snn_ext.figures.distribution import Histogram, MembraneDistribution, membrane_distribution
from snn_ext.figures.firing import firing_patterns
from snn_ext.figures.patterns import pattern_mapping
from snn_ext.figures.plots import (
    plot_distribution,
    plot_firing_patterns,
    plot_membrane,
    plot_overhead,
    plot_pattern_mapping,
    plot_raster,
)
from snn_ext.figures.recording import Recording, SiteRecord, record

__all__ = [
    "Histogram",
    "MembraneDistribution",
    "Overhead",
    "Recording",
    "SiteRecord",
    "firing_patterns",
    "membrane_distribution",
    "overhead",
    "pattern_mapping",
    "plot_distribution",
    "plot_firing_patterns",
    "plot_membrane",
    "plot_overhead",
    "plot_pattern_mapping",
    "plot_raster",
    "record",
]
