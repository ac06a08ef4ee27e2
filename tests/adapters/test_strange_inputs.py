"""Empty and non-finite inputs: a patched network does what the framework itself does with them."""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import IMP
from snn_ext.patching.sequence import tensors_in
from snn_ext.testing import Case, cases_of
from snn_ext.testing.models import everything, inputs, patched, same_values, stock

CASES = [
    case for name in ("spikingjelly", "snntorch") if importlib.util.find_spec(name) for case in cases_of(name)
]
STRANGE: dict[str, Any] = {
    "no time": lambda x: x[:0],
    "one step": lambda x: x[:1],
    "no samples": lambda x: x[:, :0],
    "one sample": lambda x: x[:, :1],
    "no channels": lambda x: x[:, :, :0],
    "NaN": lambda x: x * torch.nan,
    "one NaN": lambda x: x.index_fill(1, torch.tensor([0]), torch.nan),
    "infinity": lambda x: torch.full_like(x, torch.inf),
    "minus infinity": lambda x: torch.full_like(x, -torch.inf),
    "huge": lambda x: x * 1e38,
    "integers": lambda x: x.long(),
}


def attempt(case: Case, model: nn.Module, x: Tensor) -> Any:
    """Output, or the kind of error."""
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = case.run(model, x)
        except Exception as error:  # noqa: BLE001
            return type(error)
    return list(tensors_in(result))


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_framework_decides(case: Case, strange: str) -> None:
    x = STRANGE[strange](inputs(case))
    for training in (False, True):
        theirs = attempt(case, stock(case).train(training), x)
        ours = attempt(case, patched(case, imp=IMP(init="rest"), training=training), x)
        if isinstance(theirs, type):
            assert isinstance(ours, type)
            assert issubclass(ours, theirs | snn_ext.SnnExtError)
        else:
            assert not isinstance(ours, type), ours
            assert all(map(same_values, theirs, ours))
            assert [t.dtype for t in theirs] == [t.dtype for t in ours]


@pytest.mark.parametrize("strange", ["no time", "no samples", "NaN", "infinity"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_with_every_method(case: Case, strange: str) -> None:
    """Where the framework runs, so does the network with all methods."""
    x = STRANGE[strange](inputs(case))
    theirs = attempt(case, stock(case), x)
    ours = attempt(case, patched(case, **everything(case)), x)
    if isinstance(theirs, type):
        assert isinstance(ours, type)
    else:
        assert not isinstance(ours, type), ours
        assert [(t.shape, t.dtype) for t in theirs] == [(t.shape, t.dtype) for t in ours]
