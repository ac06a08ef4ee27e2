"""Objectives on what snnTorch nets return: recordings of spikes and membranes, stacked or as lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from torch import Tensor, nn
from torch.nn import functional as F

import snn_ext
from snn_ext_snntorch import losses
from tests.adapters.snntorch_nets import CASES, private_instances

T, B, C = 4, 3, 5
OBJECTIVES: list[Any] = ["sdt", "tet", "tet-s", "lts", snn_ext.TET(lam=0.1), snn_ext.SDT(smoothing=0.1)]


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, C), snn.Leaky(0.9, init_hidden=True, output=True))


def _by_hand(objective: Any, scores: Tensor, target: Tensor) -> Tensor:
    """The loss from its definition, with torch's own cross entropy."""
    name = objective if isinstance(objective, str) else objective.name
    smoothing = {"tet-s": 0.01}.get(name, getattr(objective, "smoothing", 0.0))
    if name == "sdt":
        return F.cross_entropy(scores.mean(0), target, label_smoothing=smoothing)
    if name == "lts":
        return F.cross_entropy(scores[-1], target, label_smoothing=smoothing)
    steps = torch.stack([F.cross_entropy(s, target, label_smoothing=smoothing) for s in scores]).mean()
    lam = getattr(objective, "lam", 0.0)
    return (1 - lam) * steps + lam * (scores - 1).square().mean()


RECORDINGS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "stacked pair": lambda spk, syn, mem: (spk, mem),
    "pair of lists": lambda spk, syn, mem: (list(spk), list(mem)),
    "list of lists": lambda spk, syn, mem: [list(spk), list(mem)],
    "list of stacked": lambda spk, syn, mem: [spk, mem],
    "stacked and list": lambda spk, syn, mem: (spk, list(mem)),
    "triple": lambda spk, syn, mem: (spk, syn, mem),
    "triple of lists": lambda spk, syn, mem: (list(spk), list(syn), list(mem)),
}


@pytest.mark.parametrize("on", ["membrane", "spikes"])
@pytest.mark.parametrize("form", RECORDINGS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_loss_and_prediction_read_the_right_recording(objective: Any, form: str, on: str) -> None:
    spk, syn, mem = (torch.rand(T, B, C) > 0.5).float(), torch.randn(T, B, C), torch.randn(T, B, C)
    target = torch.tensor([0, 4, 2])
    crit = snn_ext.loss(_net(), objective, on=on)
    output = RECORDINGS[form](spk, syn, mem)
    scores, other = (mem, spk) if on == "membrane" else (spk, mem)
    torch.testing.assert_close(crit(output, target), _by_hand(objective, scores, target))
    assert not torch.allclose(crit(output, target), _by_hand(objective, other, target))
    expected = scores[-1] if objective == "lts" else scores.mean(0)
    assert torch.equal(crit.predict(output), expected)


@pytest.mark.parametrize("on", ["membrane", "spikes"])
@pytest.mark.parametrize("form", [lambda x: x, list], ids=["tensor", "list of steps"])
def test_a_single_recording_is_taken_as_it_is(form: Callable[[Tensor], Any], on: str) -> None:
    scores, target = torch.randn(T, B, C), torch.tensor([1, 0, 3])
    crit = snn_ext.loss(_net(), "tet", on=on)
    torch.testing.assert_close(crit(form(scores), target), _by_hand("tet", scores, target))
    assert torch.equal(crit.predict(form(scores)), scores.mean(0))


def test_recordings_of_one_step() -> None:
    scores, target = torch.randn(1, B, C), torch.tensor([1, 0, 3])
    crit = snn_ext.loss(_net(), "lts")
    for output in (scores, [scores[0]], (scores * 2, scores), ([scores[0] * 2], [scores[0]])):
        torch.testing.assert_close(crit(output, target), F.cross_entropy(scores[0], target))


def test_soft_labels() -> None:
    scores, soft = torch.randn(T, B, C), torch.rand(B, C).softmax(-1)
    expected = torch.stack([F.cross_entropy(s, soft) for s in scores]).mean()
    torch.testing.assert_close(snn_ext.loss(_net(), "tet")((scores, scores), soft), expected)


@pytest.mark.parametrize(
    "output",
    [
        torch.randn(B, C),
        (torch.randn(B, C), torch.randn(B, C)),
        (torch.randn(B, C), torch.randn(B, C), torch.randn(B, C)),
        torch.randn(C),
        torch.randn(T, B, C, 2, 2),
        [],
        (),
        None,
        {"mem": torch.randn(T, B, C)},
        [[], []],
        [torch.randn(C), torch.randn(C)],
        [(torch.randn(B, C), torch.randn(B, C))] * T,
    ],
    ids=[
        "averaged",
        "one step, pair",
        "one step, triple",
        "vector",
        "map",
        "empty list",
        "empty tuple",
        "none",
        "dict",
        "empty recordings",
        "unbatched steps",
        "list of pairs",
    ],
)
@pytest.mark.parametrize("call", ["loss", "predict"])
def test_an_output_without_time_is_refused(output: Any, call: str) -> None:
    crit = snn_ext.loss(_net(), "tet")
    with pytest.raises(snn_ext.ReadoutError) as caught:
        crit(output, torch.tensor([0, 1, 2])) if call == "loss" else crit.predict(output)
    assert "do: " in str(caught.value).splitlines()[-1]


def test_labels_that_do_not_fit_are_refused() -> None:
    crit = snn_ext.loss(_net(), "tet")
    with pytest.raises(snn_ext.ReadoutError, match="labels"):
        crit(torch.randn(T, B, C), torch.zeros(T, dtype=torch.long))


def test_a_one_step_call_of_a_real_net_is_refused() -> None:
    net = snn_ext.patch(_net(), imp=True)
    with pytest.raises(snn_ext.ReadoutError):
        snn_ext.loss(net, "sdt")(net(torch.randn(B, 2)), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("name", CASES)
def test_what_real_nets_return(name: str) -> None:
    """Every net of the suite, patched and not: the loss trains V0."""
    case = CASES[name]
    torch.manual_seed(1)
    net, batch = case.fresh(), case.batch(B)
    target = torch.zeros(B, dtype=torch.long)
    spikes, membranes = case.run(net, batch)
    value = snn_ext.loss(net, "tet")((spikes, membranes), target)
    torch.testing.assert_close(value, _by_hand("tet", membranes, target))
    snn_ext.patch(net, imp=snn_ext.IMP(init="rest"), example_input=case.example(batch))
    crit = snn_ext.loss(net, "tet")
    assert torch.equal(crit(case.run(net, batch), target), value)
    if name != "REG1":  # one class: softmax is constant
        crit(case.run(net, batch), target).backward()
        assert all(p.grad.abs().sum() > 0 for k, p in net.named_parameters() if k.endswith("imp"))


def test_tet_on_spikes_is_snntorchs_own_rate_loss() -> None:
    scores, target = (torch.rand(T, B, C) > 0.5).float(), torch.tensor([1, 0, 3])
    ours = snn_ext.loss(_net(), snn_ext.TET(), on="spikes")((scores, torch.randn(T, B, C)), target)
    torch.testing.assert_close(ours, SF.ce_rate_loss()(scores, target).squeeze())


@pytest.mark.parametrize("on", ["both", "mem", None])
def test_unknown_recordings_are_refused(on: Any) -> None:
    with pytest.raises(snn_ext.OptionError, match="do: "):
        snn_ext.loss(_net(), "tet", on=on)


def test_wrong_twin_a_readout_that_swaps_the_recordings_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = losses.readout
    swapped = {"membrane": "spikes", "spikes": "membrane"}
    monkeypatch.setattr(losses, "readout", lambda output, want: right(output, swapped[want]))
    spk, mem, target = torch.rand(T, B, C), torch.randn(T, B, C), torch.tensor([0, 4, 2])
    value = snn_ext.loss(_net(), "tet", on="membrane")((spk, mem), target)
    assert not torch.allclose(value, _by_hand("tet", mem, target))
