"""Adapters as plugins: found lazily, loaded each on its own, and asked one by one."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pluggy
from torch import nn

from snn_ext.errors import AdapterError, SnnExtError
from snn_ext.patching import hookspecs
from snn_ext.patching.hookspecs import PROJECT, AdapterInfo

__all__ = ["Adapter", "adapters", "answered", "ask", "comes_from", "register", "usable_adapters"]


@dataclass(frozen=True)
class Adapter:
    """One registered adapter and its state.

    Attributes:
        name: its own name, or that of its entry point if it could not be loaded.
        info: what it says about itself; None if it could not be loaded.
        version: installed version of its framework; None if that is not installed.
        error: why it could not be loaded; None if it was.
    """

    name: str
    info: AdapterInfo | None
    version: str | None
    error: Exception | None

    @property
    def state(self) -> str:
        """``"ready"``, ``"framework not installed"`` or the error, in one line."""
        if self.error is not None:
            return f"broken: {type(self.error).__name__}: {self.error}".splitlines()[0]
        return "ready" if self.version else "framework not installed"


class _Registry:
    """The plugin manager with what it found; entry points are read at first use."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.adapters: dict[str, Adapter] = {}
        for entry_point in importlib.metadata.entry_points(group=PROJECT):
            try:
                self.add(entry_point.load(), entry_point.name)
            except Exception as error:
                # One broken plugin must not stop the others; it is listed with its error, and
                # raised when a model needs it (see `need`).
                self.adapters[entry_point.name] = Adapter(entry_point.name, None, None, error)

    def add(self, plugin: object, fallback_name: str) -> None:
        name = self.manager.register(plugin)
        try:
            info = self._ask(plugin, "snn_ext_adapter")
            if len(info) != 1 or not isinstance(info[0], AdapterInfo):
                raise AdapterError(
                    f"the adapter {fallback_name!r} does not say who it is.",
                    why="its snn_ext_adapter() hook is missing or returns no AdapterInfo",
                    do="add @snn_ext.hookimpl def snn_ext_adapter(): return AdapterInfo(...)",
                )
            if info[0].name in self.adapters:
                raise AdapterError(
                    f"two adapters are called {info[0].name!r}.",
                    do="give one of them another name, or uninstall one",
                )
        except BaseException as error:
            self.manager.unregister(name=name)
            if isinstance(error, SnnExtError) or not isinstance(error, Exception):
                raise
            raise _failed(fallback_name, "snn_ext_adapter", error) from error
        version = _version(info[0])
        self.adapters[info[0].name] = Adapter(info[0].name, info[0], version, None)
        self._plugins[info[0].name] = plugin

    @functools.cached_property
    def _plugins(self) -> dict[str, object]:
        return {}

    def _ask(self, plugin: object, hook: str, **arguments: Any) -> list[Any]:
        others = [p for p in self.manager.get_plugins() if p is not plugin]
        result = self.manager.subset_hook_caller(hook, others)(**arguments)
        if isinstance(result, list):
            return result
        return [] if result is None else [result]

    def ask(self, name: str, hook: str, **arguments: Any) -> Any:
        try:
            results = self._ask(self._plugins[name], hook, **arguments)
        except SnnExtError:
            raise
        except Exception as error:
            raise _failed(name, hook, error) from error
        return results[0] if results else None

    def remove(self, name: str) -> None:
        self.manager.unregister(self._plugins.pop(name))
        del self.adapters[name]


def _failed(adapter: str, hook: str, error: Exception) -> AdapterError:
    return AdapterError(
        f"the adapter {adapter!r} failed in {hook}.",
        why=f"{type(error).__name__}: {error}",
        do=f"report this to the authors of the adapter {adapter!r}; the model is unchanged",
    )


def answered(adapter: str, hook: str, answer: object, wanted: str) -> AdapterError:
    """The error for a hook that answered something else than what was `wanted`."""
    return AdapterError(
        f"the adapter {adapter!r} answered {hook} with a {type(answer).__name__}.",
        why=f"{wanted} is wanted",
        do=f"report this to the authors of the adapter {adapter!r}; the model is unchanged",
    )


def _version(info: AdapterInfo) -> str | None:
    if importlib.util.find_spec(info.framework) is None:
        return None
    try:
        return importlib.metadata.version(info.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


_making = threading.RLock()  # an adapter may register another while it is loaded


def registry() -> _Registry:
    """The process-wide registry, made at first use: importing snn_ext loads no plugin."""
    with _making:  # two threads may come first
        return _made()


@functools.cache
def _made() -> _Registry:
    return _Registry()


def register(plugin: object) -> None:
    """Add an adapter for this process, without an entry point.

    Args:
        plugin: module or object with the hooks of `snn_ext.patching.hookspecs`.

    Raises:
        AdapterError: it does not say who it is, or its name is taken.
    """
    try:
        registry().add(plugin, getattr(plugin, "__name__", type(plugin).__name__))
    except (ValueError, pluggy.PluginValidationError) as error:
        raise AdapterError(
            "the adapter could not be registered.",
            why=str(error),
            do="check its hooks against snn_ext.patching.hookspecs, and register it once",
        ) from error


def adapters() -> list[Adapter]:
    """All adapters found, broken ones with their error; loads them if that has not happened yet."""
    return list(registry().adapters.values())


def usable_adapters() -> Iterator[str]:
    """Names of the adapters that were loaded."""
    return (a.name for a in adapters() if a.error is None)


def ask(adapter: str, hook: str, **arguments: Any) -> Any:
    """Call one hook of one adapter; None if it does not implement it.

    Raises:
        AdapterError: the hook raised something that is not an `SnnExtError`.
    """
    return registry().ask(adapter, hook, **arguments)


def comes_from(module: nn.Module, package: str) -> bool:
    """Whether the class of `module`, or one it derives from, is defined in the top-level `package`.

    Lets an adapter recognise its framework's modules without importing the framework.
    """
    return any(cls.__module__.partition(".")[0] == package for cls in type(module).__mro__)
