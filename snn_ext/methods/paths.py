"""Where a module stood in the model that was patched, for error messages."""

from __future__ import annotations

from torch import nn

from snn_ext.methods.swap import original_class

__all__ = ["forget_path", "located", "remember_path"]

_PATH = "_snn_ext_path"


def remember_path(module: nn.Module, path: str) -> None:
    """Let `located` name this dotted path ("" for the root)."""
    module.__dict__[_PATH] = path  # past a framework's own __setattr__


def forget_path(module: nn.Module) -> None:
    """Undo `remember_path`."""
    module.__dict__.pop(_PATH, None)


def located(module: nn.Module) -> str:
    """Dotted path and class of a module, the class without what was mixed in: "layer1.bn (BatchNorm2d)";
    the class alone where nothing was patched."""
    path, kind = module.__dict__.get(_PATH), original_class(module).__name__
    return kind if path is None else f"{path or '(root)'} ({kind})"
