"""Run a model for its scores: step by step, or whole sequences, whichever way it is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from snn_ext.analysis.exit_states import States
from snn_ext.dynamics.description import NeuronSpec, Time
from snn_ext.errors import OptionError, ReadoutError, ShapeUnknownError
from snn_ext.patching.hookspecs import Want
from snn_ext.patching.sequence import reset, tensors_in
from snn_ext.patching.shapes import trace
from snn_ext.patching.sites import scan
from snn_ext.patching.training import loss

__all__ = ["Runner", "running_means", "sequence_of"]


def sequence_of(x: Tensor, timesteps: int | None) -> Tensor:
    """`x` itself, or for static x [B, ...] and given `timesteps` the sequence [T, B, ...] that shows it
    T times (no copy).

    Raises:
        OptionError: x is no tensor of at least two dimensions, or empty; timesteps below 1.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.numel():
        what = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise OptionError(
            f"one batch is a tensor [T, B, ...] or [B, ...] with samples in it, not {what}.",
            do="pass one batch; static inputs [B, ...] with timesteps=T",
        )
    if timesteps is None:
        return x
    if not isinstance(timesteps, int) or isinstance(timesteps, bool) or timesteps < 1:
        raise OptionError(f"timesteps={timesteps!r} is not possible.", do="pass a positive number of steps")
    return x.expand(timesteps, *x.shape)


class Runner:
    """Runs one model in eval mode, always from fresh states.

    Args:
        model: the model.
        on: recording to use where it returns spikes and membranes.
        per_step: whether a call is one step; None: find out at the first sequence.

    Raises:
        OptionError: a part of the model is in training mode; `per_step` where neurons see sequences.
    """

    _failure: ShapeUnknownError | None = None  # why a single step could not be tried

    def __init__(self, model: nn.Module, *, on: Want, per_step: bool | None) -> None:
        training = [path for path, module in model.named_modules() if module.training]
        if training:
            raise OptionError(
                "early exit is for inference, and the model is in training mode.",
                where=", ".join(path or "(root)" for path in training[:3]),
                do="call model.eval() first",
            )
        self.model, self.per_step = model, per_step
        self.neurons = {s.paths[0]: s for s in scan(model) if isinstance(s.spec, NeuronSpec)}
        self._readout = loss(model, "sdt", on=on)
        whole = [s for s in self.neurons.values() if s.spec.time is not Time.PER_CALL]
        if whole and per_step:
            raise OptionError(
                "per_step=True, but neurons of the model see whole sequences.",
                where=str(whole[0]),
                do="leave per_step out, or switch the model to single steps",
            )
        if whole:
            self.per_step = False

    def takes_steps(self, sequence: Tensor) -> bool:
        """Whether one call of the model is one step, found out once.

        Neurons that see whole sequences tell. Where they see steps, the loop around them is the caller's
        if one call of the model, tried on one step of two samples, calls them once; if it calls them
        more often, or cannot take a single step, the loop is in the model.

        Raises:
            OptionError: it cannot be told.
        """
        if self.per_step is None:
            with self.fresh():
                self.per_step = self._calls_neurons_once(sequence)
        return self.per_step

    def _calls_neurons_once(self, sequence: Tensor) -> bool:
        first = sequence[0]
        two = first[:2] if len(first) > 1 else torch.cat([first, first])
        try:
            seen = trace(self.model, (two,), list(self.neurons.values()))
        except ShapeUnknownError as failure:
            self._failure = failure
            return False
        if not seen:
            raise OptionError(
                f"it cannot be told whether {type(self.model).__name__} takes steps or whole sequences.",
                why="no neuron of a known framework was seen at work in it",
                do="pass per_step=True if the loop over time is yours, per_step=False if it is the model's",
            )
        return min(map(len, seen.values())) == 1

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """Without gradients, from a reset and to a reset."""
        with torch.no_grad():
            reset(self.model)
            try:
                yield
            finally:
                reset(self.model)

    def recording(self, sequence: Tensor) -> Tensor:
        """Scores [T, B, C] of all steps, the model taking steps or not."""
        if not self.takes_steps(sequence):
            return self.whole(sequence)
        with self.fresh():
            return torch.stack([self.step(x) for x in sequence.unbind(0)])

    def whole(self, x: Tensor) -> Tensor:
        """Scores [T, B, C] of one call on whole sequences.

        Raises:
            ReadoutError: what the model returns has no time or no classes.
        """
        with self.fresh():
            try:
                output = self.model(x)
            except Exception as error:
                if self._failure is not None:
                    error.add_note(f"(whole sequences, since one step failed: {self._failure.why})")
                raise
            scores = self._readout.scores(output)
        if not len(scores) or not scores.shape[-1]:
            raise ReadoutError(
                f"{type(self.model).__name__} returned scores {list(scores.shape)} without a step or class.",
                do="return the scores of every step: torch.stack(steps) -> [T, B, C]",
            )
        return _wide(scores)

    def step(self, x: Tensor) -> Tensor:
        """Scores [B, C] of the next step; call it inside `fresh`.

        Raises:
            ReadoutError: what the model returns is not one score per sample and class.
        """
        output = self.model(x)
        parts = list(tensors_in(output))
        if not parts or any(part.ndim != 2 or len(part) != len(x) or not part.shape[1] for part in parts):
            shapes = ", ".join(str(list(part.shape)) for part in parts) or type(output).__name__
            raise ReadoutError(
                f"one step of {type(self.model).__name__} returned {shapes}, not scores [B, C].",
                why=f"it was called with one step {list(x.shape)} of [T, B, ...]",
                do="pass static inputs [B, ...] with timesteps=T; if the model loops over time itself,"
                " per_step=False",
            )
        return _wide(self._readout.scores(_as_recordings(output))[0])

    def states(self) -> States:
        """The states as they are at the start of a sequence, so that samples can leave it."""
        return States(self.model, {path: site.module for path, site in self.neurons.items()})


def _as_recordings(output: Any) -> Any:
    """What one step returned, as recordings of length one."""
    if isinstance(output, tuple | list):
        recordings = [_as_recordings(part) for part in output]
        return recordings[0] if len(recordings) == 1 else tuple(recordings)
    return [output]


def _wide(scores: Tensor) -> Tensor:
    """Means over time are not taken in half precision."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def running_means(scores: Tensor) -> Iterator[Tensor]:
    """Mean [B, C] over the first 1, 2, ..., T steps of [T, B, C], added up in the order of time."""
    total = torch.zeros_like(scores[0])
    for t, step in enumerate(scores.unbind(0), start=1):
        total = total + step
        yield total / t
