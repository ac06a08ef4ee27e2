from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.toy import ToyAdapter, registered


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    """Every unit test sees the toy framework's adapter."""
    with registered(ToyAdapter()):
        yield
