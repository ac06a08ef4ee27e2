"""What an adapter's author says about one network, so that every check can be run on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from snn_ext.patching.hookspecs import Want

__all__ = ["Case"]


def _call(module: nn.Module, x: Tensor) -> Any:
    return module(x)


def _whole(x: Tensor) -> Any:
    return x


def _output(output: Any, want: Want) -> Tensor:
    scores: Tensor = output
    return scores


@dataclass(frozen=True, kw_only=True)
class Case:
    """A small network of a framework, and how it is run; `CHECKS` are run on it.

    Small sizes, few steps, and weights that make every neuron fire now and then: an equality between
    silent networks proves nothing. Constants that binary fractions express (decay 0.5, threshold 1.0)
    let membranes meet their threshold exactly.

    Args:
        name: for test ids and reports.
        make_model: a new network; called with equal seeds it must give equal weights. Give it batch norms
            if the adapter takes BNTT or TEBN in them.
        make_input: batch size -> one input [T, B, *].
        run: one sequence [T, B, *] through the network, as a user of the framework does it; returns what
            a loss is given. It calls the network as a module (some checks wrap it), resets nothing,
            and keeps gradients. Default: ``network(x)``.
        play: one sequence [T, B, *] through *one neuron* of the network; returns spikes [T, B, *].
        play_steps: the same, step by step, where `play` runs whole sequences; None where the framework
            has one way only.
        reset: the framework's own call that makes a network forget its states; None where states are
            in the user's hands, so that every run begins by itself.
        example: an input [T, B, *] -> what ``patch(example_input=...)`` is given.
        scores: what `run` returned, and "membrane" or "spikes" -> scores [T, B, C].
        neurons: dotted paths of all neurons of the network.
        expected_failures: name of a check -> why it fails here, and is known to.
    """

    name: str
    make_model: Callable[[], nn.Module]
    make_input: Callable[[int], Tensor]
    run: Callable[[nn.Module, Tensor], Any] = _call
    play: Callable[[nn.Module, Tensor], Tensor] = _call
    play_steps: Callable[[nn.Module, Tensor], Tensor] | None = None
    reset: Callable[[nn.Module], object] | None = None
    example: Callable[[Tensor], Any] = _whole
    scores: Callable[[Any, Want], Tensor] = _output
    neurons: tuple[str, ...] = ()
    expected_failures: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name
