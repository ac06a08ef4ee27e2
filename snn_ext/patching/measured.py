"""What folding a model was seen to change."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FoldResult"]


@dataclass(frozen=True)
class FoldResult:
    """What `snn_ext.fold` measured on its example input; ``snn_ext.report(model).fold`` keeps it.

    Attributes:
        sites: number of folded sites.
        output_difference: largest absolute difference of the model's output.
        spike_mismatch: share of the neurons' outputs that differ.
    """

    sites: int
    output_difference: float
    spike_mismatch: float

    def __str__(self) -> str:
        return (
            f"folded {self.sites} sites: largest output difference {self.output_difference:.3g},"
            f" spike mismatch {self.spike_mismatch:.3g}"
        )
