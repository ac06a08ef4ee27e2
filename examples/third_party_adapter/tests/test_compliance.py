"""The compliance suite, as any adapter's own tests run it."""

import pytest

pytest.importorskip("norse", reason="norse is not installed")
pytest.importorskip("snn_ext_norse", reason="pip install -e . first")

from snn_ext_norse.cases import CASES

from snn_ext.testing import parametrize_with_checks


@parametrize_with_checks(CASES)
def test_compliance(case, check):
    check(case)
