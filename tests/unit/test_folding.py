"""Folding over the toy framework: MPBN, BNTT and TEBN become constants, and it is measured and kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, TEBN, FoldError, FoldResult, TimestepError
from snn_ext.methods.folding import blank_time_fold, fold_time
from snn_ext.methods.paths import located
from snn_ext.norms import FoldedTime
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered

T, C = 3, 4
X = torch.rand(T, 5, C, generator=torch.Generator().manual_seed(2)) * 3 - 0.5


@pytest.fixture(autouse=True)
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def trained(norm: bool, **options: Any) -> nn.Sequential:
    """In eval mode, with statistics, gammas, betas and scales that are not those of the start."""
    layers = [nn.Linear(C, C), *([Norm(C)] if norm else []), Neuron()]
    with torch.no_grad():
        layers[0].weight.mul_(4)
    net = nn.Sequential(*layers)
    snn_ext.patch(net, example_input=X, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if any(key in name for key in ("bntt", "tebn", "1.weight", "1.bias")) and "0." not in name[:2]:
                parameter.uniform_(0.25, 1.5)
        net(X)
        net(X * 2)
    snn_ext.reset(net)
    return net.eval()


def hand(norm: nn.BatchNorm1d, bias: Tensor | None, x: Tensor) -> Tensor:
    """One step of a batch norm in eval mode, written down again."""
    y = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    y = y if norm.weight is None else y * norm.weight
    return y if bias is None else y + bias


OPTIONS = {
    "bntt": {"bntt": BNTT()},
    "bntt with a bias": {"bntt": BNTT(bias=True)},
    "tebn": {"tebn": TEBN()},
    "tebn per step": {"tebn": TEBN(stats="step")},
}


def by_hand(site: Any, name: str, norm: bool) -> Tensor:
    """What the norm over time of a site computes for X."""
    if name.startswith("bntt"):
        biased = name != "bntt"
        slots = [site, *site.bntt] if norm else list(site.bntt.slots)
        return torch.stack([hand(s, s.bias if biased else None, x) for s, x in zip(slots, X, strict=True)])
    bn = site if norm else site.tebn.bn
    steps = [p * hand(bn, bn.bias, x) for p, x in zip(site.tebn.scale, X, strict=True)]
    return torch.stack(steps)


@pytest.mark.parametrize("norm", [True, False], ids=["at the norm", "at the neuron"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_fold_over_time_is_the_affine_of_every_step(name: str, norm: bool) -> None:
    net = trained(norm, **OPTIONS[name])
    site = net[1]
    wanted = by_hand(site, name, norm).detach()
    folded = fold_time(site).eval()
    torch.testing.assert_close(folded.sequence(X), wanted)
    for t in range(T):
        torch.testing.assert_close(folded.step(t, X[t]), wanted[t])
    assert folded.scale.shape == folded.shift.shape == (T, C)
    blank = blank_time_fold(site, T)
    assert blank.scale.shape == blank.shift.shape == (T, C)
    assert not blank.scale.any()
    assert sorted(folded.state_dict()) == ["scale", "shift"]
    spikes = net(X)
    snn_ext.reset(net)
    snn_ext.fold(net)
    assert isinstance(site._modules[name.split()[0]], FoldedTime)
    assert torch.equal(net(X), spikes)
    if norm:
        torch.testing.assert_close(site.sequence(X), wanted)
        torch.testing.assert_close(site.step(1, X[1]), wanted[1])


def test_a_folded_sequence_in_a_kernel() -> None:
    folded = FoldedTime(torch.rand(T, C), torch.rand(T, C)).eval()
    scale, shift = folded.in_kernel(X[:2]) or (None, None)
    assert scale is not None
    assert torch.equal(scale, folded.scale[:2])
    assert torch.equal(shift, folded.shift[:2])
    assert folded.in_kernel(X.half()) is None
    assert folded.in_kernel(torch.rand(T, C)) is None
    assert folded.in_kernel(torch.rand(T, 5, C + 1)) is None
    with pytest.raises(TimestepError):
        folded.in_kernel(torch.rand(T + 1, 5, C))
    with pytest.raises(TimestepError):
        folded.step(T, X[0])
    with pytest.raises(FoldError, match="cannot be trained"):
        folded.train().step(0, X[0])


def test_a_folded_map_is_scaled_per_channel() -> None:
    folded = FoldedTime(torch.rand(T, C), torch.rand(T, C)).eval()
    x = torch.rand(T, 2, C, 3, 2)
    wanted = torch.einsum("tbcij,tc->tbcij", x, folded.scale) + folded.shift[:, None, :, None, None]
    torch.testing.assert_close(folded.sequence(x), wanted)


@pytest.mark.parametrize("changed", [0.0, -0.5])
def test_what_a_fold_changes_is_measured_printed_and_kept(
    changed: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: a fold to other thresholds has other spikes, by exactly so many."""
    net = trained(False, mpbn=True)
    net.append(nn.Linear(C, 2))
    spikes = []
    probe = net[1].register_forward_hook(lambda module, args, out: spikes.append(out.clone()))
    before = net(X).detach()
    snn_ext.reset(net)
    fold = net[1].folded

    def wrong() -> Any:
        folded = fold()
        folded.threshold.add_(changed)
        return folded

    monkeypatch.setitem(net[1].__dict__, "folded", wrong)
    spikes.clear()
    snn_ext.fold(net, X)
    monkeypatch.undo()
    probe.remove()
    first, second = spikes
    result = snn_ext.report(net).fold
    assert isinstance(result, FoldResult)
    snn_ext.reset(net)
    difference = float((net(X).detach() - before).abs().max())
    assert result == FoldResult(1, difference, int((first != second).sum()) / first.numel())
    assert (difference > 0) == (changed != 0)
    assert str(result) in capsys.readouterr().out
    told = snn_ext.report(net).to_dict()
    assert told["fold"] == {
        "sites": 1,
        "output_difference": difference,
        "spike_mismatch": result.spike_mismatch,
    }
    assert told["sites"][0]["note"] == "folded, cannot be unpatched"
    with pytest.raises(FoldError, match="cannot be undone"):
        snn_ext.unpatch(net)


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        (False, {"mpbn": True}),
        (True, {"bntt": True}),
        (False, {"tebn": True}),
        (False, {"mpbn": True, "bntt": True}),
    ],
)
def test_a_folded_model_is_saved_and_loaded(norm: bool, options: dict[str, Any], tmp_path: Path) -> None:
    net = trained(norm, **options)
    fresh = nn.Sequential(*(copy.deepcopy(m) for m in snn_ext.unpatch(copy.deepcopy(net))))
    snn_ext.fold(net, X)
    wanted, result = net(X), snn_ext.report(net).fold
    snn_ext.save(net, tmp_path / "net")
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
    loaded = snn_ext.load(fresh, tmp_path / "net").eval()
    assert torch.equal(loaded(X), wanted)
    assert wanted.std() > 0.1
    assert snn_ext.report(loaded).fold == result
    assert list(loaded.state_dict()) == list(net.state_dict())


def test_norms_that_do_not_follow_weights_stay() -> None:
    net = nn.Sequential(nn.Linear(C, C), nn.Identity(), Norm(C), Neuron())
    snn_ext.patch(net, mpbn=True, bntt=True, example_input=X)
    net.eval()
    snn_ext.fold(net)
    assert not isinstance(net[2].bntt, FoldedTime)
    notes = {row.site: row.note for row in snn_ext.report(net).rows}
    assert notes == {"2": "", "3": "folded, cannot be unpatched"}


def test_nothing_to_fold_is_said() -> None:
    net = nn.Sequential(nn.Linear(C, C), Neuron()).eval()
    with pytest.raises(FoldError, match=r"nothing to fold.\n  do: "):
        snn_ext.fold(snn_ext.patch(net, imp=True))
    with pytest.raises(FoldError, match=r"has no norm over time"):
        fold_time(net[1])
    unknown = nn.Sequential(nn.Linear(C, C), Norm(C, track_running_stats=False), Neuron())
    snn_ext.patch(unknown, bntt=True, timesteps=T)
    with pytest.raises(FoldError, match="where: 1\n"):
        snn_ext.fold(unknown.eval())


def test_what_a_fold_installs_knows_where_it_is() -> None:
    net = trained(True, mpbn=True, bntt=True)
    snn_ext.fold(net)
    assert located(net[2].mpbn) == "2.mpbn (FoldedMembraneNorm)"
    assert located(net[1].bntt) == "1.bntt (FoldedTime)"
