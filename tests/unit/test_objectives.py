"""Objectives against their definitions, their identities, and their readouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from snn_ext import LTS, SDT, TET, TETS, OptionError, ReadoutError, functional
from snn_ext.objectives import Objective, resolve_objective

STEPS, BATCH, CLASSES = 5, 4, 3
EVERY = [SDT(), SDT(0.1), TET(), TET(lam=0.05, target=0.7, smoothing=0.2), TETS(), LTS(), LTS(0.1)]


def scores() -> torch.Tensor:
    return torch.randn(STEPS, BATCH, CLASSES, dtype=torch.float64, requires_grad=True)


def soft(labels: torch.Tensor, eps: float) -> torch.Tensor:
    return (1 - eps) * F.one_hot(labels, CLASSES).double() + eps / CLASSES


def ce(o: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return -(q * o.log_softmax(-1)).sum(-1).mean()


def definition(objective: Objective, o: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    q = soft(y, objective.smoothing)
    if isinstance(objective, SDT):
        return ce(sum(o) / len(o), q)  # type: ignore[arg-type]
    if isinstance(objective, LTS):
        return ce(o[-1], q)
    per_step = sum(ce(o_t, q) for o_t in o) / len(o)
    lam = getattr(objective, "lam", 0.0)
    squares = ((o - getattr(objective, "target", 0.0)) ** 2).sum() / o.numel()
    return (1 - lam) * per_step + lam * squares  # type: ignore[return-value]


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_values_and_gradients_match_the_definition(objective: Objective) -> None:
    o, y = scores(), torch.randint(0, CLASSES, (BATCH,))
    got, expected = objective(o, y), definition(objective, o, y)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(got, o)[0], torch.autograd.grad(expected, o)[0], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_soft_labels_that_are_one_hot_change_nothing(objective: Objective) -> None:
    o, y = scores(), torch.randint(0, CLASSES, (BATCH,))
    torch.testing.assert_close(objective(o, F.one_hot(y, CLASSES)), objective(o, y))
    torch.testing.assert_close(objective(o, F.one_hot(y, CLASSES).float()), objective(o, y))
    torch.testing.assert_close(objective(o, y.int()), objective(o, y))


def test_tet_s_takes_mixed_labels() -> None:
    o, (a, b) = scores(), torch.randint(0, CLASSES, (2, BATCH))
    mixed = 0.3 * soft(a, 0) + 0.7 * soft(b, 0)
    expected = sum(ce(o_t, 0.99 * mixed + 0.01 / CLASSES) for o_t in o) / len(o)
    torch.testing.assert_close(TETS()(o, mixed), expected, rtol=1e-12, atol=1e-12)


def test_identities() -> None:
    o, y = scores(), torch.randint(0, CLASSES, (BATCH,))
    one = o[:1]
    for other in (TET(), LTS(), TETS(smoothing=0.0)):
        torch.testing.assert_close(other(one, y), SDT()(one, y))
    assert torch.equal(TETS(0.01)(o, y), TET(smoothing=0.01)(o, y))
    (grad,) = torch.autograd.grad(LTS()(o, y), o)
    assert bool((grad[:-1] == 0).all())
    assert bool((grad[-1] != 0).all())


def test_the_readout_travels_with_the_loss() -> None:
    o = scores()
    for objective in (SDT(), TET(), TETS()):
        assert torch.equal(objective.readout(o), o.mean(0))
    assert torch.equal(LTS().readout(o), o[-1])
    assert not torch.allclose(LTS().readout(o), o.mean(0)), "the twin: reading LTS by the mean"


@pytest.mark.parametrize("objective", EVERY, ids=str)
def test_scores_without_time_are_refused(objective: Objective) -> None:
    y = torch.zeros(BATCH, dtype=torch.long)
    for bad in (
        torch.zeros(BATCH, CLASSES),
        torch.zeros(2, STEPS, BATCH, CLASSES),
        torch.zeros(0, BATCH, CLASSES),
    ):
        with pytest.raises(ReadoutError, match=r"\n  do: "):
            objective(bad, y)
        with pytest.raises(ReadoutError, match=r"\n  do: "):
            objective.readout(bad)


def test_batch_first_scores_are_refused() -> None:
    with pytest.raises(ReadoutError, match=r"do: .*transpose"):
        SDT()(torch.zeros(BATCH, STEPS, CLASSES), torch.zeros(BATCH, dtype=torch.long))


def test_names_resolve_to_defaults() -> None:
    assert {n: type(resolve_objective(n)) for n in ("sdt", "tet", "tet-s", "lts")} == {
        "sdt": SDT,
        "tet": TET,
        "tet-s": TETS,
        "lts": LTS,
    }
    assert (TETS().smoothing, TET().lam, TET().target) == (0.01, 0.0, 1.0)
    own = TET(lam=1e-3)
    assert resolve_objective(own) is own


@pytest.mark.parametrize("bad", ["TET", "ce", 3, torch.nn.CrossEntropyLoss()])
def test_unknown_objectives_teach(bad: Any) -> None:
    with pytest.raises(OptionError, match=r"do: use one of 'sdt', 'tet', 'tet-s', 'lts'"):
        resolve_objective(bad)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_smoothing_must_be_a_fraction(value: float) -> None:
    with pytest.raises(OptionError, match=r"do: pass a fraction"):
        TETS(smoothing=value)
    with pytest.raises(OptionError, match=r"do: pass a fraction"):
        TET(lam=value + 0.5 if value == 1.0 else value)


def test_nothing_is_smoothed_unless_asked() -> None:
    o, y = torch.randn(4, 3, 5), torch.tensor([0, 4, 2])
    log = o.mean(0).log_softmax(-1)
    torch.testing.assert_close(functional.sdt(o, y), -log[range(3), y].mean())
    torch.testing.assert_close(functional.lts(o, y), -o[-1].log_softmax(-1)[range(3), y].mean())
    steps = o.log_softmax(-1)[:, range(3), y]
    torch.testing.assert_close(functional.tet(o, y), -steps.mean())
    wanted = 0.25 * -steps.mean() + 0.75 * ((o - 1) ** 2).mean()
    torch.testing.assert_close(functional.tet(o, y, lam=0.75), wanted)


@pytest.mark.parametrize("kind", [SDT, TET, LTS, TETS])
def test_what_cannot_be_smoothed_is_named(kind: type) -> None:
    with pytest.raises(OptionError, match="smoothing"):
        kind(smoothing=1.5)
