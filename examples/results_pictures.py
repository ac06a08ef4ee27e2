"""The pictures of docs/results.md, drawn from the numbers in docs/results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import convergence_figures
import convergence_results
import digits
import digits_figures
import digits_results
import early_exit_figures
import early_exit_results
import norms
import norms_figures
import norms_results


def draw(documents: Mapping[str, Mapping[str, Any]], out: Path) -> list[Path]:
    """Every picture into a folder, which must exist; the documents are by name, as in docs/results."""
    written = convergence_figures.draw(
        [convergence_results.from_json(record) for record in documents["convergence"]["runs"]], out
    )
    runs = [digits_results.Run(**record) for record in documents["digits"]["runs"]]
    for framework, title in digits.TITLES.items():
        written.append(out / f"digits-{framework.lower()}.png")
        digits_figures.draw(runs, framework, title, written[-1])
    normed = [norms_results.Run(**record) for record in documents["norms"]["runs"]]
    for framework, title in norms.TITLES.items():
        written.append(out / f"norms-{framework.lower()}.png")
        norms_figures.learning([run for run in normed if run.framework == framework], title, written[-1])
    written.append(out / "early-exit.png")
    exits = [early_exit_results.from_json(record) for record in documents["early_exit"]["runs"]]
    early_exit_figures.draw(exits, written[-1])
    return written
