"""Pick the threshold of a confidence exit on validation data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snn_ext.analysis.exit_rules import ConfidenceExit, confidence
from snn_ext.analysis.exit_runs import Runner, running_means, sequence_of
from snn_ext.errors import OptionError, TimestepError
from snn_ext.patching.hookspecs import Want

__all__ = ["ExitCalibration", "calibrate_exit"]

MOST_CANDIDATES = 512


@dataclass(frozen=True)
class ExitCalibration:
    """What `calibrate_exit` found, all measured on the data it was given.

    Attributes:
        rule: the rule; None where no threshold saves a step within the allowed loss.
        accuracy: share of right answers with the rule (0 to 1); without a rule, that of all steps.
        full_accuracy: with all steps.
        saved: share of steps saved, 0 without a rule.
        uncertainty: standard error of the accuracy lost, over samples: how far the loss on other samples
            of this kind may be off, the picking itself not counted.
        max_accuracy_loss: what was allowed.
        samples: number of samples.
        timesteps: T.
    """

    rule: ConfidenceExit | None
    accuracy: float
    full_accuracy: float
    saved: float
    uncertainty: float
    max_accuracy_loss: float
    samples: int
    timesteps: int

    def __str__(self) -> str:
        after_all = f"{self.full_accuracy:.2%} after all {self.timesteps}"
        if self.rule is None:
            return (
                f"no confidence saves a step within an accuracy loss of {self.max_accuracy_loss:.2%}:"
                f" accuracy {after_all} ({self.samples} samples)"
            )
        used = self.timesteps * (1 - self.saved)
        return (
            f"{self.rule}: accuracy {self.accuracy:.2%} after {used:.2f} steps on average"
            f" ({self.saved:.1%} saved), {after_all}: {100 * (self.full_accuracy - self.accuracy):.2f}"
            f" ± {100 * self.uncertainty:.2f} points lost on {self.samples} samples"
        )


def calibrate_exit(
    model: nn.Module,
    batches: Tensor | Iterable[tuple[Tensor, Tensor]],
    targets: Tensor | None = None,
    *,
    max_accuracy_loss: float = 0.01,
    timesteps: int | None = None,
    on: Want = "membrane",
    per_step: bool | None = None,
) -> ExitCalibration:
    """Find the `ConfidenceExit` that saves most while accuracy falls by at most `max_accuracy_loss`.

    All steps are run once; every threshold is then judged on the recorded scores. Taken is the lowest
    one that keeps to the loss together with all stricter ones, so that no lucky low one is picked. The
    numbers are those of the data it was picked on: measure again on other data.

    Args:
        model: in eval mode, as for `early_exit`.
        batches: pairs (x, targets), a DataLoader for example; or one x, with `targets`.
        targets: labels [B] of that x.
        max_accuracy_loss: allowed drop of the share of right answers, 0.01 = one point in a hundred.
        timesteps, on, per_step: as for `early_exit`.

    Raises:
        OptionError: no data, labels that do not fit, a loss outside [0, 1), training mode.
        TimestepError: sequences of several lengths.
        ReadoutError: an output without time or classes.
    """
    _check_loss(max_accuracy_loss)
    runner = Runner(model, on=on, per_step=per_step)
    sure: list[Tensor] = []
    right: list[Tensor] = []
    for x, labels in _pairs(batches, targets):
        scores = runner.recording(sequence_of(x, timesteps))
        _check(labels, scores, sure)
        means = torch.stack(list(running_means(scores)))
        sure.append(confidence(means).double().cpu())
        right.append((means.argmax(-1) == labels.to(means.device)).cpu())
    if not sure or not sum(part.shape[1] for part in sure):
        raise OptionError("there is no data to calibrate on.", do="pass at least one batch (x, targets)")
    return _pick(torch.cat(sure, 1), torch.cat(right, 1), max_accuracy_loss)


def _pick(sure: Tensor, right: Tensor, allowed: float) -> ExitCalibration:
    """From the largest probability and the correctness of every step and sample, [T, N] each."""
    total, samples = sure.shape
    reached = sure.cummax(0).values  # a sample stays away once it has left
    rule, answers, steps = None, right[-1], torch.full((samples,), total)
    for p in _candidates(sure):
        tried = (reached < p).sum(0).add(1).clamp(max=total)
        found = right.gather(0, tried[None] - 1)[0]
        if int(right[-1].sum()) - int(found.sum()) > allowed * samples + 1e-9:
            break
        if int(tried.sum()) < total * samples:
            rule, answers, steps = ConfidenceExit(p), found, tried
    lost = right[-1].double() - answers.double()
    return ExitCalibration(
        rule=rule,
        accuracy=float(answers.double().mean()),
        full_accuracy=float(right[-1].double().mean()),
        saved=1.0 - float(steps.double().mean()) / total,
        uncertainty=float(lost.std(correction=0)) / math.sqrt(samples),
        max_accuracy_loss=float(allowed),
        samples=samples,
        timesteps=total,
    )


def _candidates(sure: Tensor) -> Iterator[float]:
    """Thresholds from strict to lax, between the values that occur: rounding cannot reorder samples."""
    values = torch.unique(sure[sure.isfinite()])
    bounds = torch.cat([torch.zeros(1, dtype=values.dtype), values])
    spread = torch.linspace(len(values) - 1, 0, min(len(values), MOST_CANDIDATES)).round().long()
    for i in spread.tolist():
        yield _short(float(bounds[i]), float(bounds[i + 1]))


def _short(low: float, high: float) -> float:
    """The number between two others with the fewest digits."""
    middle = (low + high) / 2
    for digits in range(1, 17):
        short = round(middle, digits)
        if low < short < high:
            return short
    return high


def _pairs(
    batches: Tensor | Iterable[tuple[Tensor, Tensor]], targets: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(batches, Tensor):
        if targets is None:
            raise OptionError(
                "labels are missing.", do="pass calibrate_exit(model, x, targets), or pairs (x, targets)"
            )
        yield batches, targets
        return
    if targets is not None:
        raise OptionError("targets= belongs to a single x.", do="pass pairs (x, targets), or one tensor x")
    for pair in batches:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise OptionError(
                f"a batch is {type(pair).__name__}, not a pair (x, targets).", do="pass pairs (x, targets)"
            )
        yield pair[0], pair[1]


def _check(labels: Tensor, scores: Tensor, earlier: list[Tensor]) -> None:
    total, batch = scores.shape[:2]
    integers = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
    if not integers or labels.shape != (batch,):
        what = f"{list(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise OptionError(
            f"targets must be {batch} class indices [B], got {what}.", do="pass integer labels [B]"
        )
    if earlier and len(earlier[0]) != total:
        raise TimestepError(
            f"batches of {len(earlier[0])} and of {total} steps.",
            why="the share of steps saved refers to one number of steps",
            do="calibrate on sequences of one length",
        )


def _check_loss(loss: float) -> None:
    number = isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss)
    if not number or not 0 <= loss < 1:
        raise OptionError(
            f"max_accuracy_loss={loss!r} is not possible.", do="pass a share such as 0.01, one point in 100"
        )
