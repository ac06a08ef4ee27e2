"""The message layout and the hierarchy of errors."""

from __future__ import annotations

import pickle

import pytest

from snn_ext import errors
from snn_ext.errors import OptionError, ShapeMismatchError, ShapeUnknownError, SnnExtError

ALL = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("cls", ALL)
def test_message_names_what_where_why_and_ends_with_do(cls: type[SnnExtError]) -> None:
    error = cls("it broke.", where="layer1.sn (IFNode)", why="because", seen="that", do="mend it")
    lines = str(error).splitlines()
    assert lines == [
        "it broke.",
        "  where: layer1.sn (IFNode)",
        "  why: because",
        "  seen: that",
        "  do: mend it",
    ]
    assert isinstance(error, SnnExtError)


@pytest.mark.parametrize("cls", ALL)
def test_errors_cross_process_boundaries(cls: type[SnnExtError]) -> None:
    error = cls("it broke.", where="here", do="mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.do == "mend it"


def test_do_is_mandatory() -> None:
    with pytest.raises(TypeError, match="do"):
        SnnExtError("it broke.")  # type: ignore[call-arg]


def test_a_mismatching_shape_is_caught_as_either_kind() -> None:
    assert issubclass(ShapeMismatchError, ShapeUnknownError)
    assert issubclass(ShapeMismatchError, OptionError)
