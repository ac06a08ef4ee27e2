"""Early exit: use only as many time steps as a rule asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from snn_ext.analysis.exit_calibration import ExitCalibration, calibrate_exit
from snn_ext.analysis.exit_rules import BNTTExit, ConfidenceExit, gamma_sizes
from snn_ext.analysis.exit_runs import Runner, running_means, sequence_of
from snn_ext.errors import OptionError
from snn_ext.patching.hookspecs import Want

__all__ = [
    "BNTTExit",
    "ConfidenceExit",
    "EarlyExit",
    "ExitCalibration",
    "calibrate_exit",
    "early_exit",
    "gamma_sizes",
]

Executed = Literal["step by step", "cut sequence", "whole sequence"]


@dataclass(frozen=True, eq=False)
class EarlyExit:
    """What `early_exit` returns.

    Attributes:
        scores: [B, C], mean of the scores over the steps used.
        steps: [B] (int64), steps used per sample.
        fired: [B] (bool), whether the rule fired for a sample; False: the sequence ended first.
        timesteps: T, steps of the whole sequence.
        executed: ``"step by step"``: the steps not used were not computed. ``"cut sequence"``: the model
            was called once, on the first steps only. ``"whole sequence"``: all T steps were computed;
            `steps` and `saved` say what would have sufficed.
        rule: the rule.
    """

    scores: Tensor
    steps: Tensor
    fired: Tensor
    timesteps: int
    executed: Executed
    rule: BNTTExit | ConfidenceExit

    @property
    def saved(self) -> float:
        """Share of the B * T steps that were not used, from 0 to (T - 1) / T."""
        return 1.0 - float(self.steps.double().mean()) / self.timesteps if len(self.steps) else 0.0

    def __str__(self) -> str:
        if not bool(self.fired.any()):
            return f"{self.rule}: no exit, all {self.timesteps} steps are used"
        mean = float(self.steps.double().mean())
        late = int((~self.fired).sum())
        text = f"{self.rule}: {mean:.2f} of {self.timesteps} steps on average, {self.saved:.1%} saved"
        if late:
            text += f"; no exit for {late} of {len(self.fired)} samples"
        if self.executed == "whole sequence":
            text += f"; computed were all {self.timesteps}, in one call"
        return text


def early_exit(
    model: nn.Module,
    x: Tensor,
    rule: BNTTExit | ConfidenceExit,
    *,
    timesteps: int | None = None,
    on: Want = "membrane",
    per_step: bool | None = None,
) -> EarlyExit:
    """Classify one batch with as few time steps as `rule` allows; states are reset before and after.

    Where the model is called one step at a time, steps are saved: under `ConfidenceExit` finished
    samples leave the batch and the others go on with their states. Where it computes whole sequences in
    one call, `BNTTExit` shortens the sequence if time is the first dimension of x; everything else is
    judged afterwards (see `EarlyExit.executed`).

    States kept by code of your own are taken along if modules hold them as tensors (in lists, tuples and
    dicts too); starting them anew is up to that code, as in every other loop.

    Args:
        model: in eval mode, patched or not; its output is read by the mean over time (SDT, TET).
        x: a sequence [T, B, ...], or whatever a model takes that loops over time itself.
        rule: `BNTTExit` or `ConfidenceExit`.
        timesteps: T; x is static then, [B, ...], and shown T times.
        on: "membrane" or "spikes", where the model returns both.
        per_step: whether one call of the model is one step. None finds out by a trial call.

    Raises:
        OptionError: training mode; a wrong rule; no BNTT for `BNTTExit`; samples that cannot be told
            apart (a batch norm without running statistics, states not [B, ...]).
        ReadoutError: an output without time or classes.

    Source: `BNTTExit` says where its rule is from; leaving by confidence is common practice.
    """
    if not isinstance(rule, BNTTExit | ConfidenceExit):
        raise OptionError(
            f"rule={rule!r} is not a rule of early exit.",
            do="pass snn_ext.BNTTExit(0.1), snn_ext.ConfidenceExit(0.9), or what calibrate_exit found",
        )
    runner = Runner(model, on=on, per_step=per_step)
    sequence = sequence_of(x, timesteps)
    if isinstance(rule, BNTTExit):
        return _static(runner, sequence, rule)
    if runner.takes_steps(sequence):
        return _leaving(runner, sequence, rule)
    return _judged(runner.whole(sequence), rule)


def _static(runner: Runner, sequence: Tensor, rule: BNTTExit) -> EarlyExit:
    exit_step = rule.exit_step(runner.model)
    executed: Executed = "whole sequence"
    if runner.takes_steps(sequence):
        total, executed = len(sequence), "step by step"
        used = min(exit_step or total, total)
        scores = runner.recording(sequence[:used])
    else:
        cut = _cut(runner, sequence, exit_step)
        scores = runner.whole(sequence) if cut is None else cut
        total, executed = (len(scores), executed) if cut is None else (len(sequence), "cut sequence")
        used = min(exit_step or total, total)
    batch = scores.shape[1]
    fired = exit_step is not None and exit_step <= total
    return EarlyExit(
        scores=scores[:used].mean(0),
        steps=torch.full((batch,), used, device=scores.device),
        fired=torch.full((batch,), fired, device=scores.device),
        timesteps=total,
        executed=executed,
        rule=rule,
    )


def _cut(runner: Runner, sequence: Tensor, exit_step: int | None) -> Tensor | None:
    """Scores of the first steps alone; None if x is not cut that way.

    Whether time is the first dimension of x shows in the scores: a model that shows a static x [B, ...]
    itself makes another number of steps of it.
    """
    if exit_step is None or exit_step >= len(sequence):
        return None
    scores = runner.whole(sequence[:exit_step])
    return scores if scores.shape[:2] == sequence[:exit_step].shape[:2] else None


def _leaving(runner: Runner, sequence: Tensor, rule: ConfidenceExit) -> EarlyExit:
    """Step by step; finished samples leave the batch."""
    _check_independent(runner.model)
    total, batch = sequence.shape[:2]
    left = torch.arange(batch, device=sequence.device)
    parts: list[tuple[Tensor, Tensor, Tensor, int]] = []
    with runner.fresh():
        states, sums = runner.states(), None
        for t in range(1, total + 1):
            x = sequence[t - 1]
            scores = runner.step(x if len(left) == batch else x[left])
            sums = scores if sums is None else sums + scores
            met = rule.met(sums / t).to(left.device)
            leaving = torch.ones_like(met) if t == total else met
            if not bool(leaving.any()):
                continue
            parts.append((left[leaving], (sums / t)[leaving.to(sums.device)], met[leaving], t))
            stays = (~leaving).nonzero().flatten()
            if not len(stays):
                break
            states.keep(stays, len(left))
            left, sums = left[stays], sums[stays.to(sums.device)]
    order = torch.cat([samples for samples, *_ in parts]).argsort()
    steps = torch.cat([torch.full_like(samples, t) for samples, _, _, t in parts])
    return EarlyExit(
        scores=torch.cat([mean for _, mean, _, _ in parts])[order.to(parts[0][1].device)],
        steps=steps[order],
        fired=torch.cat([met for _, _, met, _ in parts])[order],
        timesteps=total,
        executed="step by step",
        rule=rule,
    )


def _check_independent(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise OptionError(
                "samples cannot leave a batch whose statistics are used.",
                where=f"{path or '(root)'} ({type(module).__name__})",
                why="without running statistics a batch norm mixes the samples of a batch in eval mode too",
                do="train with track_running_stats=True",
            )


def _judged(scores: Tensor, rule: ConfidenceExit) -> EarlyExit:
    """From the scores [T, B, C] of whole sequences: what would have sufficed."""
    total, batch = scores.shape[:2]
    steps = torch.full((batch,), total, device=scores.device)
    fired = torch.zeros(batch, dtype=torch.bool, device=scores.device)
    chosen = torch.zeros_like(scores[0])
    for t, mean in enumerate(running_means(scores), start=1):
        met = rule.met(mean) & ~fired
        steps[met] = t
        chosen = torch.where((met | (~fired & (t == total)))[:, None], mean, chosen)
        fired |= met
    return EarlyExit(chosen, steps, fired, total, "whole sequence", rule)
