"""Imports folders of scripts, which are no packages."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def benchmarks() -> dict[str, ModuleType]:
    return scripts("benchmarks", "neurons", "norms", "networks", "gpu_suite")


@functools.cache
def scripts(folder: str, *names: str) -> dict[str, ModuleType]:
    """Modules of a folder by name, with what they import from there; other folders have modules of the same
    names, so that they are forgotten again."""
    home, before, path = ROOT / folder, set(sys.modules), list(sys.path)
    sys.path.insert(0, str(home))
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        sys.path[:] = path
    files = {
        name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in before
    }
    own = [name for name, file in files.items() if file and Path(file).is_relative_to(home)]
    return {name: sys.modules.pop(name) for name in own}
