"""What a training loop needs: parameter groups, a check of the optimiser, losses that fit the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.errors import OptionError, ReadoutError
from snn_ext.methods.objectives import Objective, recording, resolve_objective
from snn_ext.patching import plugins
from snn_ext.patching.hookspecs import Want
from snn_ext.patching.record import patched_modules

__all__ = ["Loss", "check_optimizer", "loss", "param_groups"]

_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)


def _method_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Dotted name -> parameter, for everything snn-ext added."""
    found = {}
    for path, (module, record) in patched_modules(model).items():
        for name, parameter in module.named_parameters(path):
            if name.removeprefix(f"{path}.").partition(".")[0] in record.added:
                found[name] = parameter
    return found


def param_groups(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Two optimiser groups: V0 and all norm affines without weight decay, everything else with it.

    Args:
        model: patched (or not); every parameter is in exactly one group.
        lr: learning rate of both groups: the published code trains V0 with that of the weights.
        weight_decay: of the weights.

    Returns:
        ``[{"params", "lr", "weight_decay"}, {"params", "lr", "weight_decay": 0.0}]``; a group without
        parameters is left out.
    """
    free = {id(p) for p in _method_parameters(model).values()}
    for module in model.modules():
        if isinstance(module, _NORMS):
            free.update(id(p) for p in module.parameters(recurse=False))
    decayed = [p for p in model.parameters() if id(p) not in free]
    undecayed = [p for p in model.parameters() if id(p) in free]
    groups = [
        {"params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"params": undecayed, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make sure that the optimiser knows every parameter that snn-ext added.

    Raises:
        OptionError: naming those it misses; it was probably built before `patch`.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in _method_parameters(model).items() if id(p) not in known]
    if missing:
        raise OptionError(
            f"{type(optimizer).__name__} misses {len(missing)} parameters of the patched model.",
            where=", ".join(missing[:5]) + (", ..." if missing[5:] else ""),
            why="it was built before the patch, or from other parameters, and would never train them",
            do="build it after the patch: torch.optim.SGD(snn_ext.param_groups(model, lr=0.1))",
        )


class Loss:
    """An objective that understands what one model returns; made by `loss`.

    ``crit(output, target)`` is the scalar loss, ``crit.predict(output)`` the scores [B, C] of the
    readout that belongs to it. Both raise `ReadoutError` if the output has no time dimension left.
    """

    def __init__(self, model: nn.Module, objective: Objective, on: Want) -> None:
        self.model, self.objective, self.on = model, objective, on

    def scores(self, output: Any) -> Tensor:
        """Scores [T, B, C] in what the model returned."""
        for adapter in plugins.usable_adapters():
            scores = plugins.ask(adapter, "snn_ext_readout", root=self.model, output=output, want=self.on)
            if scores is not None and not isinstance(scores, Tensor):
                raise plugins.answered(adapter, "snn_ext_readout", scores, "a tensor [T, B, C]")
            if scores is not None:
                return scores
        plain = recording(output)
        if plain is not None:
            return plain
        what = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ReadoutError(
            f"{type(self.model).__name__} returned {what}, not scores [T, B, C].",
            why="objectives and readouts look at single time steps; a model that averages over time in"
            " its forward has lost them",
            do="return the scores of every step: torch.stack(steps) -> [T, B, C]",
        )

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        value: Tensor = self.objective(self.scores(output), target)
        return value

    def predict(self, output: Any) -> Tensor:
        """Scores [B, C] to predict from."""
        return self.objective.readout(self.scores(output))

    def __repr__(self) -> str:
        return f"Loss({self.objective!r}, on={self.on!r})"


def loss(model: nn.Module, objective: str | Objective, *, on: Want = "membrane") -> Loss:
    """A loss, with its readout, for what `model` returns.

    Args:
        model: patched or not.
        objective: "sdt", "tet", "tet-s", "lts", or an objective such as ``TET(lam=1e-3)``.
        on: which recording to use where the model returns both: the output neurons' "membrane"
            (real-valued, what the objectives were made for) or their "spikes".

    Raises:
        OptionError: an unknown objective or recording.
    """
    if on not in ("membrane", "spikes"):
        raise OptionError(f"on={on!r} is not a recording.", do="pass on='membrane' or on='spikes'")
    resolved = resolve_objective(objective)
    plain = Loss(model, resolved, on)
    for adapter in plugins.usable_adapters():
        native = plugins.ask(
            adapter,
            "snn_ext_loss",
            root=model,
            objective=resolved,
            readout=plain.scores,
            want=on,
        )
        if native is not None and not callable(native):
            raise plugins.answered(adapter, "snn_ext_loss", native, "a function (output, target)")
        if native is not None:
            return _as_loss(plain, native)
    return plain


def _as_loss(plain: Loss, native: Callable[[Any, Tensor], Tensor]) -> Loss:
    """Keep what makes the framework's loss look native (its ``__name__``), and add `predict`."""
    result = _NativeLoss(plain.model, plain.objective, plain.on)
    result.native = native
    result.__name__ = getattr(native, "__name__", type(native).__name__)
    return result


class _NativeLoss(Loss):
    native: Callable[[Any, Tensor], Tensor]
    __name__: str

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        return self.native(output, target)
