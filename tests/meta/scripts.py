"""Imports the benchmarks, which are scripts and no package."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "benchmarks"


@functools.cache
def benchmarks() -> dict[str, ModuleType]:
    """All modules by name; other scripts have modules of the same names, so that they are forgotten again."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        for name in ("neurons", "norms", "networks", "gpu_suite"):
            importlib.import_module(name)
    finally:
        sys.path[:] = path
    files = {
        name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in before
    }
    own = [name for name, file in files.items() if file and Path(file).is_relative_to(FOLDER)]
    return {name: sys.modules.pop(name) for name in own}
