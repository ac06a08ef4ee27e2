"""Runs inside an environment: the compliance suite on one adapter, as JSON.

python -I inside.py spikingjelly results.json
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from snn_ext import UnsupportedReleaseError
from snn_ext.testing import check_adapter


def checked(adapter: str) -> dict[str, Any]:
    """What `compat.results.Row` wants to know about this environment."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "version": importlib.metadata.version(adapter),
        "state": "checked",
    }
    try:
        results = check_adapter(adapter, strict=False).results
    except UnsupportedReleaseError as error:
        return found | {"state": "unsupported", "reason": str(error)}
    cases: dict[str, dict[str, str]] = {}
    for result in results:
        said = f"{result.status}: {result.reason}" if result.reason else result.status
        cases.setdefault(result.case, {})[result.check] = said
    return found | {"cases": cases}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(checked(sys.argv[1])))
