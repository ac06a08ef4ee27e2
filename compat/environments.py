"""Which releases are checked together with what: one virtual environment each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NAMED", "Environment", "lower_bounds", "planned"]

NAMED: dict[str, tuple[str, ...]] = {
    "spikingjelly": ("2.0.0", "0.0.0.0.14"),
    "snntorch": ("1.0.0", "0.9.4"),
    "norse": (),  # examples/third_party_adapter
}
"""Frameworks, and the releases of them that are checked besides the newest one."""

_BOUND = re.compile(r"^([A-Za-z0-9._-]+)(\[[^]]*\])?>=([\w.]+)$")


@dataclass(frozen=True)
class Environment:
    """One release of a framework with its dependencies.

    Attributes:
        framework: name of the distribution, and of the adapter.
        version: its release.
        lowest: whether the dependencies of snn-ext have the lowest versions it allows, instead of the newest.
        requirements: what to install, without snn-ext itself.
    """

    framework: str
    version: str
    lowest: bool
    requirements: tuple[str, ...]

    @property
    def name(self) -> str:
        """For folders and progress."""
        return f"{self.framework}-{self.version}" + ("-lowest" if self.lowest else "")


def lower_bounds(requirements: Iterable[str]) -> dict[str, str]:
    """Name of every requirement of the form "name>=version" -> the same pinned to that version."""
    found = (_BOUND.match(text.replace(" ", "")) for text in requirements)
    return {match[1]: f"{match[1]}{match[2] or ''}=={match[3]}" for match in found if match}


def planned(
    newest: Mapping[str, str], core: Mapping[str, Any], third_party: Mapping[str, Any]
) -> list[Environment]:
    """Newest and named releases with the newest dependencies, then the lowest releases with the lowest.

    Args:
        newest: framework -> its newest release.
        core: the table ``project`` of pyproject.toml.
        third_party: that of the third-party adapter.
    """
    extras: Mapping[str, list[str]] = core["optional-dependencies"]
    wanted = {name: extras.get(name) or third_party["dependencies"] for name in NAMED}
    environments = []
    for name, named in NAMED.items():
        for version in dict.fromkeys((newest[name], *named)):
            pinned = (f"{name}=={version}", *_others(name, wanted[name]))
            environments.append(Environment(name, version, False, pinned))
    bounds = tuple(lower_bounds(core["dependencies"]).values())
    for name in NAMED:
        lowest = lower_bounds(wanted[name])[name]
        pinned = (lowest, *_others(name, wanted[name]), *bounds)
        environments.append(Environment(name, lowest.partition("==")[2], True, pinned))
    return environments


def _others(name: str, requirements: Iterable[str]) -> tuple[str, ...]:
    """What an adapter needs besides its framework and snn-ext."""
    names = {text: re.split(r"[^A-Za-z0-9._-]", text)[0] for text in requirements}
    return tuple(text for text, other in names.items() if other not in (name, "snn-ext"))
