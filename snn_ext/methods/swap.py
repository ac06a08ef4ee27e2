"""In-place replacement: a module keeps its identity and gets a subclass of its own class.

A new object would be missed by everything that holds the old one: reset lists, captured bound
methods, instance registries, hooks, monitors, optimisers, the user's own variables.
"""

from __future__ import annotations

import copyreg
import types
from typing import Any

from torch import nn

__all__ = ["original_class", "restore_class", "swap_class"]


class Swapped:
    """Marks a generated class; makes its instances picklable in a process that never generated it."""

    _snn_ext_parts: tuple[type, type]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = super().__reduce_ex__(protocol)
        build, args, *rest = reduced
        mixin, base = self._snn_ext_parts
        if build is copyreg.__newobj__ and args[0] is type(self):  # type: ignore[attr-defined]
            args = (base, *args[1:])
        elif build is type(self):  # a __reduce__ of the user's own: return type(self), args
            build = base
        return (_rebuild, (mixin, build, args), *rest)


def _rebuild(mixin: type, build: Any, args: tuple[Any, ...]) -> nn.Module:
    module: nn.Module = build(*args)
    swap_class(module, mixin)
    return module


_generated: dict[tuple[type, type], type] = {}


def _subclass(mixin: type, base: type) -> type:
    if (mixin, base) not in _generated:
        name = f"{mixin.__name__}{base.__name__}"
        namespace = {
            "__module__": mixin.__module__,
            "__qualname__": name,
            "__doc__": f"`{base.__name__}` with `{mixin.__name__}`, made in place by snn-ext.",
            "_snn_ext_parts": (mixin, base),
        }
        bases = (Swapped, mixin, base)
        _generated[mixin, base] = types.new_class(name, bases, exec_body=lambda ns: ns.update(namespace))
    return _generated[mixin, base]


def swap_class(module: nn.Module, mixin: type) -> None:
    """Give `module` the class ``(mixin, its own class)``, in place.

    Args:
        module: any module; the object, its attributes and its identity stay.
        mixin: importable class whose methods go before those of the module's class.
    """
    module.__class__ = _subclass(mixin, type(module))


def restore_class(module: nn.Module) -> None:
    """Undo `swap_class`."""
    module.__class__ = original_class(module)


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class `module` has without what snn-ext put into it."""
    cls = type(module)
    return cls._snn_ext_parts[1] if issubclass(cls, Swapped) else cls
