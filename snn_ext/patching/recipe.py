"""The configuration in a checkpoint: how the model was patched. Written by `save`; anything may be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from snn_ext.methods.options import METHODS

__all__ = ["check_recipe"]


def check_recipe(config: object) -> None:
    """Make sure that a configuration has the form that `save` writes; what it says is not looked at.

    Raises:
        ValueError: naming the part that has another form.
    """
    recipe = _fields(
        "the configuration", config, {"format": _is_count, "sites": _is_dict, "aliases": _is_names}
    )
    for path, entry in recipe["sites"].items():
        found = _fields(f"the site {path!r}", entry, _SITE)
        for name, options in found["methods"].items():
            if name in METHODS and not isinstance(options, dict):
                raise ValueError(f"the site {path!r} has no options for {name}")
        for name in found.get("folded", ()):
            if name not in found["methods"]:
                raise ValueError(f"the site {path!r} is folded in {name}, which it does not have")


def _fields(what: str, given: object, wanted: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{what} is a {type(given).__name__}")
    for name, fits in wanted.items():
        if name not in given and name in _ALWAYS:
            raise ValueError(f"{what} has no {name!r}")
        if name in given and not fits(given[name]):
            raise ValueError(f"{what} has {name}={given[name]!r}")
    return given


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_count, value)))


def _is_methods(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_ALWAYS = {"format", "sites", "aliases", "module", "adapter", "features", "origin", "methods"}
_SITE: dict[str, Callable[[Any], bool]] = {
    "module": _is_text,
    "adapter": _is_text,
    "features": _is_shape,
    "origin": _is_text,
    "methods": _is_dict,
    "timesteps": lambda value: value is None or _is_count(value),
    "keeps_time": lambda value: isinstance(value, bool),
    "clock": lambda value: value is None or _is_text(value),
    "folded": _is_methods,
}
