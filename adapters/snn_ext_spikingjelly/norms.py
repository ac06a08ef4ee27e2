"""What batch norms become inside a SpikingJelly network: one norm per step, or one with a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based import layer
from torch import Tensor, nn

from snn_ext import TimestepError
from snn_ext.norms import TimedNorm

__all__ = ["MergedNorm", "Norm", "watch_containers"]


class Norm(TimedNorm):
    """A norm that sees whole sequences in step mode 'm' and single steps otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "step_mode", "s") == "m":
            return self.sequence(x)
        return self.step(self.now(x), x)


class MergedNorm(TimedNorm):
    """A norm inside `SeqToANNContainer`, which folds time into the batch: the container says what T is."""

    _ext_length: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._ext_length is None:
            raise TimestepError(
                "the number of time steps in [T*B, ...] cannot be told.",
                where=type(self).__name__,
                why="the container around it was not called as a module",
                do="call the network itself, not a functional form of it",
            )
        return self.sequence(x.unflatten(0, (self._ext_length, -1))).flatten(0, 1)  # type: ignore[no-untyped-call]


def watch_containers(root: nn.Module) -> None:
    """Let the containers tell their norms T: hooks, only where there are such norms."""
    for container in root.modules():
        if isinstance(container, layer.SeqToANNContainer):
            wanted = any(isinstance(m, MergedNorm) for m in container.modules())
            _hook(container._forward_pre_hooks, container.register_forward_pre_hook, _enter, wanted)
            _hook(container._forward_hooks, container.register_forward_hook, _leave, wanted)


def _hook(hooks: dict[int, Any], register: Callable[[Any], Any], hook: Any, wanted: bool) -> None:
    present = [key for key, existing in hooks.items() if existing is hook]
    if wanted and not present:
        register(hook)
    for key in present if not wanted else ():
        del hooks[key]


def _enter(container: nn.Module, inputs: tuple[Any, ...]) -> None:
    _tell(container, len(inputs[0]))


def _leave(container: nn.Module, inputs: Any, output: Any) -> None:
    _tell(container, None)


def _tell(container: nn.Module, steps: int | None) -> None:
    for module in container.modules():
        if isinstance(module, MergedNorm):
            module._ext_length = steps
