"""A compliance suite for adapters: is patching still right, in this framework, in this release?

python -m pytest --pyargs snn_ext.testing         # every installed adapter that ships cases
"""

from snn_ext.testing.case import Case
from snn_ext.testing.check import Check, CheckFailure, Unsupported
from snn_ext.testing.suite import (
    CHECKS,
    CheckResult,
    Compliance,
    cases_of,
    check_adapter,
    parametrize_with_checks,
)

__all__ = [
    "CHECKS",
    "Case",
    "Check",
    "CheckFailure",
    "CheckResult",
    "Compliance",
    "Unsupported",
    "cases_of",
    "check_adapter",
    "parametrize_with_checks",
]
