"""What has no membrane that V0 could start is refused with a reason, or skipped under "*"."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import nn

import snn_ext
from tests.adapters.snntorch_nets import private_instances

# Every neuron of snnTorch that cannot start from V0, and a word of the reason.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "DeltaLeaky": (lambda: snn.DeltaLeaky(beta=0.5), "pair"),
    "Alpha": (lambda: snn.Alpha(0.6, 0.5), "currents"),
    "SLSTM": (lambda: snn.SLSTM(4, 4), "LSTM"),
    "SConv2dLSTM": (lambda: snn.SConv2dLSTM(1, 1, 3), "LSTM"),
    "StateLeaky": (lambda: snn.StateLeaky(0.5, 4), "whole sequences"),
    "LinearLeaky": (lambda: snn.LinearLeaky(0.5, 4, 4), "whole sequences"),
    "LeakyParallel": (lambda: snn.LeakyParallel(4, 4), "recurrent layer"),
    "AssociativeLeaky": (lambda: snn.AssociativeLeaky(4, 2, 2, 4), "state-space"),
    "SpikingNeuron": (snn.SpikingNeuron, "does not know"),
    "LIF": (lambda: snn.LIF(0.5), "does not know"),
}
REFUSED = {name: neuron for name, neuron in REFUSED.items() if hasattr(snn, name)}  # 0.9.4 has fewer
SUPPORTED: dict[str, Callable[[], nn.Module]] = {
    "Leaky": lambda: snn.Leaky(0.5),
    "Synaptic": lambda: snn.Synaptic(0.5, 0.5),
    "Lapicque": lambda: snn.Lapicque(beta=0.5),
    "RLeaky": lambda: snn.RLeaky(0.5, all_to_all=False),
    "RSynaptic": lambda: snn.RSynaptic(0.5, 0.5, all_to_all=False),
}
# nn.Modules of snnTorch without a neuron's membrane: not sites at all.
NO_NEURON = {"GradedSpikes", "RecurrentOneToOne", "SpikeTime", "STDPLearner"}


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    # A DeltaLeaky that never ran breaks utils.reset of every net in the process.
    with private_instances():
        yield


class Net(nn.Module):
    """The neuron in question, beside an ordinary one."""

    def __init__(self, odd: nn.Module, lif: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.odd = nn.Linear(3, 4), odd
        if lif is not None:
            self.fc2, self.lif = nn.Linear(4, 4), lif


def _snapshot(net: nn.Module) -> list[Any]:
    return [(n, type(m), list(vars(m))) for n, m in net.named_modules()] + list(net.state_dict())


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    "selection",
    [{"imp": {"odd": True}}, {"imp": True, "include": "odd"}, {"imp": True, "include": ["lif", "od*"]}],
    ids=["mapping", "include", "glob"],
)
def test_named_by_a_pattern_it_is_refused(name: str, selection: dict[str, Any]) -> None:
    make, word = REFUSED[name]
    net = Net(make(), snn.Leaky(0.5))
    before = _snapshot(net)
    with pytest.raises(snn_ext.UnsupportedSiteError) as caught:
        snn_ext.patch(net, **selection)
    assert name in caught.value.what
    assert "odd" in caught.value.where
    assert word in caught.value.why
    assert str(caught.value).splitlines()[-1].startswith("  do: leave this site out")
    assert _snapshot(net) == before


@pytest.mark.parametrize("name", REFUSED)
def test_caught_by_the_star_it_is_skipped_with_the_reason(name: str) -> None:
    make, word = REFUSED[name]
    net = Net(make(), snn.Leaky(0.5))
    plan = snn_ext.plan(net, imp=True)
    rows = {row["site"]: row for row in plan.to_dict()["sites"]}
    assert rows["odd"]["methods"] == []
    assert word in rows["odd"]["note"]
    assert word in " ".join(str(plan).split())
    plan.apply()
    assert [n for n, _ in net.named_parameters() if n.endswith("imp")] == ["lif.imp"]
    assert type(net.odd) is type(make())
    assert word in " ".join(row["note"] for row in snn_ext.report(net).to_dict()["sites"])


@pytest.mark.parametrize("name", REFUSED)
def test_with_nothing_else_there_nothing_matched(name: str) -> None:
    make, word = REFUSED[name]
    with pytest.raises(snn_ext.NothingMatchedError) as caught:
        snn_ext.patch(Net(make()), imp=True)
    assert word in caught.value.seen
    assert "do: " in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_subclass_of_the_user_is_refused_too(name: str) -> None:
    odd = REFUSED[name][0]()
    odd.__class__ = type("Mine", (type(odd),), {"__module__": __name__})
    with pytest.raises(snn_ext.UnsupportedSiteError, match="Mine"):
        snn_ext.patch(Net(odd), imp={"odd": True})


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_classes_take_v0(name: str) -> None:
    net = Net(SUPPORTED[name]())
    snn_ext.patch(net, imp={"odd": True})
    assert net.odd.imp.shape == (4,)
    assert isinstance(net.odd, getattr(snn, name))


def _classes() -> dict[str, set[type[nn.Module]]]:
    """Name -> module classes defined anywhere in snnTorch, exported or not."""
    found: dict[str, set[type[nn.Module]]] = {}
    for info in pkgutil.walk_packages(snn.__path__, "snntorch."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # optional dependencies of snnTorch (nir, pandas, torchvision)
            continue
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__.startswith("snntorch"):
                found.setdefault(cls.__name__, set()).add(cls)
    return found


def test_every_neuron_that_snntorch_defines_is_decided_above() -> None:
    """A class that a new release adds shows up here."""
    classes = _classes()
    assert len(classes) > 15
    neurons = {
        name for name, group in classes.items() if any(issubclass(c, snn.SpikingNeuron) for c in group)
    }
    assert neurons == (set(REFUSED) | set(SUPPORTED)) - {"LeakyParallel"}
    # Private leftovers of the release, not exported, that fail when they are called.
    private = {"LeakyKernel"}
    assert set(classes) - neurons == NO_NEURON | private | {"LeakyParallel"}


def test_modules_that_are_no_neurons_are_no_sites() -> None:
    net = nn.Sequential(nn.Linear(3, 4), snn.GradedSpikes(4, 1.0), SUPPORTED["RLeaky"]())
    sites = [d.site.path for d in snn_ext.plan(net, imp=snn_ext.IMP(shape="layer")).decisions]
    assert sites == ["2"]  # and not the RecurrentOneToOne inside it


class _Unknown(snn.SpikingNeuron):
    """A neuron of the user, built on snnTorch's base: nobody knows its reset."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(0), persistent=False)

    def reset_mem(self) -> None:
        self.mem = torch.zeros_like(self.mem)


class _OwnImp(snn.Leaky):
    imp = "taken"


@pytest.mark.parametrize(
    ("odd", "word"), [(_Unknown, "does not know"), (lambda: _OwnImp(0.5), "attribute 'imp'")]
)
def test_neurons_of_users_that_cannot_be_served(odd: Callable[[], nn.Module], word: str) -> None:
    with pytest.raises(snn_ext.UnsupportedSiteError, match=word):
        snn_ext.patch(Net(odd()), imp={"odd": True})
    net = Net(odd(), snn.Leaky(0.5))
    snn_ext.patch(net, imp=True)
    assert [n for n, _ in net.named_parameters() if n.endswith("imp")] == ["lif.imp"]


def test_a_membrane_that_is_not_a_tensor_is_refused() -> None:
    """Old releases of snnTorch have no membrane of their own without init_hidden; None stands for that."""
    lif = snn.Leaky(0.5)
    lif.mem = None
    with pytest.raises(snn_ext.UnsupportedSiteError, match="does not know"):
        snn_ext.patch(Net(lif), imp={"odd": True})


def test_the_refused_neuron_goes_on_working_beside_a_patched_one() -> None:
    net = Net(snn.SLSTM(4, 4, init_hidden=True), snn.Leaky(0.5, init_hidden=True))
    snn_ext.patch(net, imp=snn_ext.IMP(init=0.7))
    for _ in range(2):
        snn_ext.reset(net)
        out = net.lif(net.fc2(net.odd(net.fc(torch.randn(2, 3)))))
        out.sum().backward()
    assert net.lif.imp.grad is not None
