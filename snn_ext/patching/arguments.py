"""What the arguments of `patch` mean, and which models it takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from snn_ext.errors import NothingMatchedError, OptionError, UnsupportedSiteError
from snn_ext.methods.options import METHODS, Method

__all__ = ["parse_methods", "parse_timesteps", "refuse_wrapped"]


def parse_methods(given: Mapping[str, Any]) -> dict[str, list[tuple[Any, Method | None]]]:
    """Keyword values of `patch` -> ordered (pattern, option) rules per method.

    Raises:
        OptionError: an unknown keyword, or a value that is no option.
    """
    rules: dict[str, list[tuple[Any, Method | None]]] = {}
    for name, value in given.items():
        if name not in METHODS:
            close = difflib.get_close_matches(name, [*METHODS, *_KEYWORDS], n=1)
            raise OptionError(
                f"unknown keyword {name!r}.",
                why=f"methods: {', '.join(METHODS)}; other keywords: {', '.join(_KEYWORDS)}",
                do=f"did you mean {close[0]!r}?" if close else "drop it",
            )
        if value is None or value is False:
            continue
        pairs = value.items() if isinstance(value, Mapping) else [("*", value)]
        rules[name] = [(_pattern(name, p), _option(name, v)) for p, v in pairs]
    if not any(option for pairs in rules.values() for _, option in pairs):
        raise NothingMatchedError(
            "no method was asked for.", do=f"pass one, for example {next(iter(METHODS))}=True"
        )
    return rules


_KEYWORDS = ("timesteps", "example_input", "include", "exclude", "where", "backend")


def _pattern(name: str, pattern: object) -> object:
    if isinstance(pattern, str | re.Pattern):
        return pattern
    raise OptionError(
        f"{name}={{{pattern!r}: ...}}: the key is not a pattern.",
        do=f"use globs on dotted paths: {name}={{'layer1.*': None, '*': True}}",
    )


def _option(name: str, value: object) -> Method | None:
    if value is None or value is False:
        return None
    if value is True:
        return METHODS[name]()
    if isinstance(value, METHODS[name]):
        return value
    raise OptionError(
        f"{name}={value!r} is not an option of {name}.",
        do=f"pass {name}=True, {name}=snn_ext.{METHODS[name].__name__}(...), or a mapping of globs",
    )


def refuse_wrapped(model: object) -> None:
    """A root that is compiled, scripted or wrapped for parallel training cannot be patched.

    Raises:
        OptionError: not a module. UnsupportedSiteError: a wrapped one.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"{type(model).__name__} is not a torch.nn.Module.", do="pass the network itself")
    for path, module in model.named_modules():
        kind = _wrapper(module)
        if kind:
            raise UnsupportedSiteError(
                f"{type(model).__name__} is {kind}.",
                where=f"{path or '(root)'} ({type(module).__name__})",
                why="the wrapper holds references to the modules as they are now",
                do="use the original model (.module, ._orig_mod): patch it first, then compile or wrap",
            )


def _wrapper(module: nn.Module) -> str | None:
    names = {cls.__name__ for cls in type(module).__mro__}
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted"
    if "OptimizedModule" in names or module._compiled_call_impl is not None:
        return "compiled"
    if isinstance(module, nn.DataParallel):
        return "wrapped in DataParallel"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "wrapped in DistributedDataParallel"
    return "sharded (FSDP)" if names & {"FullyShardedDataParallel", "FSDPModule"} else None


def parse_timesteps(timesteps: object) -> int | None:
    """T as given, checked.

    Raises:
        OptionError: not a positive integer.
    """
    if timesteps is None or (
        isinstance(timesteps, int) and not isinstance(timesteps, bool) and timesteps > 0
    ):
        return timesteps
    raise OptionError(f"timesteps={timesteps!r} is not a number of time steps.", do="pass a positive int")
