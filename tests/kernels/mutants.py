"""Wrong twins: one token of a function's source is changed, and the checks must notice."""

from __future__ import annotations

import functools
import inspect
import textwrap
from types import ModuleType
from typing import Any

import pytest


def mutate(monkeypatch: pytest.MonkeyPatch, module: ModuleType, path: str, old: str, new: str) -> None:
    """Replace `old`, which must occur once, in the source of ``module.path`` (a function or a method)."""
    owner: Any = functools.reduce(getattr, path.split(".")[:-1], module)
    found = inspect.getattr_static(owner, path.split(".")[-1])
    function = getattr(found, "fget", None) or getattr(found, "__func__", found)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {path}"
    namespace: dict[str, Any] = {}
    flags = annotations.compiler_flag  # the sources have the same first import
    exec(compile(source.replace(old, new), f"<{path}>", "exec", flags), vars(module), namespace)
    changed = namespace[function.__name__]
    changed = getattr(changed, "fget", None) or getattr(changed, "__func__", changed)
    # the code, not the function: other modules have imported it by name
    monkeypatch.setattr(function, "__code__", changed.__code__)
