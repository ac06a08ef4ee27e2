"""Two norms that should be one: trained side by side on equal data, every tensor of both noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Side", "compare", "data", "differences", "history", "randomise", "share"]

ITERATIONS = 3


@dataclass(frozen=True)
class Side:
    """A module, how it is run on [T, B, C, *], and what each of its tensors is called on the other side
    ("" for one that has no part in anything)."""

    module: nn.Module
    run: Callable[[Tensor], Tensor]
    rename: Callable[[str], str] = str

    def tensors(self) -> dict[str, Tensor]:
        named = {self.rename(key): t for key, t in self.module.state_dict(keep_vars=True).items()}
        return {name: tensor for name, tensor in named.items() if name}


def data(shape: tuple[int, ...], scale: float = 1 / 16) -> list[Tensor]:
    """Every step on a level and a scale of its own, so that statistics of other steps are seen; small, so
    that eps is seen."""
    level = torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1))
    return [(torch.randn(shape) * level + level + i) * scale for i in range(ITERATIONS + 1)]


def randomise(module: nn.Module) -> None:
    """Affines and scales of both signs, different in every channel and step."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))


def share(source: Side, target: Side) -> None:
    """Give `target` the values of `source`, all of them."""
    values, own = source.tensors(), target.tensors()
    assert values.keys() == own.keys()
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])


def history(side: Side, batches: list[Tensor]) -> dict[str, Tensor]:
    """Three steps of gradient descent, then inference: outputs, gradients, statistics."""
    learnt = {name: t for name, t in side.tensors().items() if t.requires_grad}
    noted: dict[str, Tensor] = {}
    side.module.train()
    for i, batch in enumerate(batches[:-1]):
        x = batch.clone().requires_grad_()
        y = side.run(x)
        weights = torch.linspace(-1, 1, y.numel()).view_as(y)
        ((y * weights).sum() + (y * y * y).mean()).backward()
        noted.update({f"output {i}": y.detach(), f"input gradient {i}": x.grad})  # type: ignore[dict-item]
        for name, p in learnt.items():
            assert p.grad is not None, f"{name} has no gradient"
            noted[f"gradient {i} of {name}"] = p.grad
            with torch.no_grad():
                p -= 0.01 * p.grad
            p.grad = None
        noted.update({f"{name} after {i}": t.detach().clone() for name, t in side.tensors().items()})
    with torch.no_grad():
        side.module.eval()
        noted["inference"] = side.run(batches[-1])
    runs = [noted["inference"], *(noted[f"output {i}"] for i in range(ITERATIONS))]
    assert all(y.std() > 0.05 for y in runs), "an equality of silent networks proves nothing"
    return noted


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """Names of what is not equal to the last bit."""
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def compare(
    ours: Side, theirs: Side, batches: list[Tensor], change: Callable[[Any], object] | None = None
) -> list[str]:
    """`differences` of two sides with equal values over one history; `change` spoils ours before it."""
    share(theirs, ours)
    if change is not None:
        change(ours.module)
    return differences(history(ours, batches), history(theirs, batches))
