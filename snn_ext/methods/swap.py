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

    _snn_ext_parts: tuple[tuple[type, ...], type]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # protocols 0 and 1 know no __newobj__
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        build, args, *rest = reduced
        mixins, base = self._snn_ext_parts
        if build is copyreg.__newobj__ and args[0] is type(self):  # type: ignore[attr-defined]
            args = (base, *args[1:])
        elif build is type(self):  # a __reduce__ of the user's own: return type(self), args
            build = base
        return (_rebuild, (mixins, build, args), *rest)


def _rebuild(mixins: tuple[type, ...], build: Any, args: tuple[Any, ...]) -> nn.Module:
    module: nn.Module = build(*args)
    swap_class(module, *mixins)
    return module


_generated: dict[tuple[tuple[type, ...], type], type] = {}


def _subclass(mixins: tuple[type, ...], base: type) -> type:
    if (mixins, base) not in _generated:
        name = "".join(mixin.__name__ for mixin in mixins) + base.__name__
        namespace = {
            "__module__": mixins[0].__module__,
            "__qualname__": name,
            "__doc__": f"`{base.__name__}` with what snn-ext mixed into it, made in place.",
            "_snn_ext_parts": (mixins, base),
        }
        bases = (Swapped, *mixins, base)
        _generated[mixins, base] = types.new_class(name, bases, exec_body=lambda ns: ns.update(namespace))
    return _generated[mixins, base]


def swap_class(module: nn.Module, *mixins: type) -> None:
    """Give `module` the class ``(*mixins, its own class)``, in place.

    Args:
        module: any module; the object, its attributes and its identity stay.
        mixins: importable classes whose methods go before those of the module's class, first first.
    """
    module.__class__ = _subclass(mixins, type(module))


def restore_class(module: nn.Module) -> None:
    """Undo `swap_class`, and drop what the mixins kept on the instance (class attributes of theirs that
    it shadows)."""
    base = original_class(module)
    own = {name for cls in type(module).__mro__ if cls not in base.__mro__ for name in vars(cls)}
    module.__class__ = base
    for name in own & set(module.__dict__):
        del module.__dict__[name]


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class `module` has without what snn-ext put into it."""
    cls = type(module)
    return cls._snn_ext_parts[1] if issubclass(cls, Swapped) else cls
