"""What torch's batch norms become inside an snnTorch network: one norm per step, or one with a scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snn_ext.norms import TimedNorm
from snn_ext.patching.sequence import is_carried, tensors_in
from snn_ext_snntorch.neurons import Timed

__all__ = ["Norm", "watch"]


class Norm(TimedNorm):
    """Called once per step; the neuron after it knows which."""

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.now(x), x)


def watch(root: nn.Module) -> None:
    """Let the root announce the start of sequences whose states are zeros made in its forward.

    A hook on the root, only while a neuron inside keeps time for a norm.
    """
    hooks = root._forward_pre_hooks
    present = [key for key, hook in hooks.items() if hook is _announce]
    wanted = any(isinstance(module, Timed) for module in root.modules())
    if wanted and not present:
        root.register_forward_pre_hook(_announce, with_kwargs=True)
    for key in present if not wanted else ():
        del hooks[key]
        root._forward_pre_hooks_with_kwargs.pop(key, None)


def _announce(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """States that come in through the arguments go on; otherwise explicit states start anew. If that
    is wrong (states kept by the user elsewhere), the neuron notices and raises."""
    if not any(is_carried(tensor) for tensor in tensors_in((args, kwargs))):
        for module in root.modules():
            if isinstance(module, Timed):
                module.begin()
