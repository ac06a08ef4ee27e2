"""Every error snn-ext raises: one hierarchy, one message layout.

A message has four parts: *what* happened (first line), *where* (dotted path), *why*, and a last line
``do: ...`` that says what to type next.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "AlreadyPatchedError",
    "BackendUnavailableError",
    "CheckpointError",
    "FoldError",
    "MissingDependencyError",
    "NothingMatchedError",
    "OptionError",
    "ReadoutError",
    "ShapeMismatchError",
    "ShapeUnknownError",
    "SnnExtError",
    "TimestepError",
    "UnsupportedReleaseError",
    "UnsupportedSiteError",
]


class SnnExtError(Exception):
    """Base of all errors of snn-ext.

    Args:
        what: what went wrong, one sentence.
        where: dotted path and class of the module concerned.
        why: the reason; may be several lines.
        seen: what was found instead (for selections that match nothing).
        do: the remedy; always the last line of the message.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", seen: str = "", do: str) -> None:
        self.what, self.where, self.why, self.seen, self.do = what, where, why, seen, do
        details = {"where": where, "why": why, "seen": seen, "do": do}
        super().__init__("\n".join([what, *(f"  {k}: {v}" for k, v in details.items() if v)]))

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException rebuilds from positional args only; `do` is keyword-only.
        return _rebuild, (type(self), self.what, self.where, self.why, self.seen, self.do)


def _rebuild(cls: type[SnnExtError], what: str, where: str, why: str, seen: str, do: str) -> SnnExtError:
    return cls(what, where=where, why=why, seen=seen, do=do)


class OptionError(SnnExtError):
    """An option, keyword or argument that cannot be honoured."""


class NothingMatchedError(OptionError):
    """A method, pattern or glob selected no site."""


class UnsupportedSiteError(SnnExtError):
    """A module was asked for by name, and the method cannot work on it."""


class ShapeUnknownError(SnnExtError):
    """The shape of a new parameter is neither given, traced nor inferable."""


class ShapeMismatchError(ShapeUnknownError, OptionError):
    """A shape that was given, traced or inferred is not the shape of the data."""


class AlreadyPatchedError(SnnExtError):
    """A site is patched already, with other options."""


class TimestepError(SnnExtError):
    """A sequence has another number of time steps than the method was built for."""


class ReadoutError(SnnExtError):
    """The output of a model holds no scores per time step."""


class FoldError(SnnExtError):
    """A norm cannot be folded exactly."""


class CheckpointError(SnnExtError):
    """A checkpoint does not belong to this model, or is damaged."""


class MissingDependencyError(SnnExtError, ImportError):
    """A package that only this function needs is not installed."""


class AdapterError(SnnExtError):
    """An adapter plugin is broken, or two claim one module."""


class UnsupportedReleaseError(AdapterError):
    """The installed release of a framework is one that its adapter cannot patch."""


class BackendUnavailableError(SnnExtError):
    """A kernel backend was asked for by name and cannot run here."""
