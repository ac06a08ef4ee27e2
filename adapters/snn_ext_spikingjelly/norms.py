"""What batch norms become inside a SpikingJelly network: one norm per step, or one with a scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from snn_ext import NormSpec, Time, TimestepError
from snn_ext.methods.paths import located
from snn_ext.norms import TimedNorm
from snn_ext_spikingjelly.describe import calls_steps, merges_time

__all__ = ["norm_class", "watch_containers"]


class Norm(TimedNorm):
    """A norm that sees whole sequences in step mode 'm' and single steps otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "step_mode", "s") == "m":
            return self.sequence(x)
        return self.step(self.now(x), x)


class ContainedNorm(TimedNorm):
    """A norm inside a container of the framework that hides the time axis from it; the container tells."""

    _ext_length: int | None = None
    _ext_t = 0

    def begin(self, steps: int | None) -> None:
        """Called when the container is entered, with its T, and when it is left, with None."""
        self._ext_length, self._ext_t = steps, 0

    def length(self) -> int:
        """T of the sequence that is running through the container."""
        if self._ext_length is None:
            raise TimestepError(
                "the time steps in this container cannot be told.",
                where=located(self),
                why="the container around it was not called as a module",
                do="call the network itself, not a functional form of it",
            )
        return self._ext_length


class MergedNorm(ContainedNorm):
    """In a container that folds time into the batch: [T*B, C, *]."""

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(x.unflatten(0, (self.length(), -1))).flatten(0, 1)  # type: ignore[no-untyped-call]


class CountingNorm(ContainedNorm):
    """In a container that calls it once per step: [B, C, *]."""

    def forward(self, x: Tensor) -> Tensor:
        self.length()
        self._ext_t += 1
        return self.step(self._ext_t - 1, x)


def norm_class(spec: NormSpec) -> type[TimedNorm]:
    """What a batch norm that is described like this becomes."""
    if spec.time is Time.MERGED:
        return MergedNorm
    return CountingNorm if spec.counts else Norm


def watch_containers(root: nn.Module) -> None:
    """Let the containers tell their norms the time: hooks, only where there are such norms."""
    for container in root.modules():
        if merges_time(container) or calls_steps(container):
            wanted = any(isinstance(m, ContainedNorm) for m in container.modules())
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
        if isinstance(module, ContainedNorm):
            module.begin(steps)
