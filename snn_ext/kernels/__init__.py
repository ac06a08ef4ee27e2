"""The equations of `snn_ext.dynamics`, fast."""

from snn_ext.kernels.arguments import Call, Result
from snn_ext.kernels.eager import takes
from snn_ext.kernels.mpbn import run as run_normalised
from snn_ext.kernels.registry import (
    FRAMEWORK,
    NAMES,
    BackendStatus,
    Choice,
    backends,
    choose,
    preferred,
    run,
    use_backend,
    wanted,
)

__all__ = [
    "FRAMEWORK",
    "NAMES",
    "BackendStatus",
    "Call",
    "Choice",
    "Result",
    "backends",
    "choose",
    "preferred",
    "run",
    "run_normalised",
    "takes",
    "use_backend",
    "wanted",
]
