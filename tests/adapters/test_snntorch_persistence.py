"""Saving, loading, copying and taking back: nothing of a patched snnTorch net gets lost or left over."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn

import snn_ext
from tests.adapters.snntorch_nets import CASES, REG1, Case, private_instances

IMP = snn_ext.IMP(init=(-0.5, 0.9))


@pytest.fixture(autouse=True)
def _own_neurons() -> Iterator[None]:
    with private_instances():
        yield


def _patched(case: Case, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    net = case.fresh()
    return snn_ext.patch(net, imp=IMP, example_input=case.example(case.batch(2)))


def _outputs(case: Case, net: nn.Module) -> list[Tensor]:
    torch.manual_seed(21)
    with torch.no_grad():
        return [t.clone() for t in case.run(net, case.batch(4))]


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["T5-zeros", "T6s", "REG1"])
def test_state_dict_round_trip_through_a_file(name: str) -> None:
    case = CASES[name]
    net, other = _patched(case, 1), _patched(case, 2)
    assert not _equal(_outputs(case, net), _outputs(case, other))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = other.load_state_dict(torch.load(file))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert _equal(_outputs(case, net), _outputs(case, other))


@pytest.mark.parametrize("name", ["T5-zeros", "T6s", "REG1"])
def test_snn_ext_save_and_load_into_a_fresh_net(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    net = _patched(case)
    snn_ext.save(net, tmp_path / "net.safetensors")
    torch.manual_seed(99)
    fresh = snn_ext.load(case.fresh(), tmp_path / "net.safetensors")
    assert _equal(_outputs(case, net), _outputs(case, fresh))
    assert set(net.state_dict()) == set(fresh.state_dict())
    assert snn_ext.report(net).to_dict() == snn_ext.report(fresh).to_dict()


def test_save_and_load_keep_tied_recurrent_weights(tmp_path: Path) -> None:
    """A one-to-one RLeaky holds one tensor under two names, V and recurrent.V."""

    def build(v: float) -> nn.Sequential:
        recurrent = snn.RLeaky(0.5, V=v, all_to_all=False, init_hidden=True, output=True)
        return nn.Sequential(nn.Linear(4, 5), recurrent)

    net = snn_ext.patch(build(0.3), imp=IMP)
    snn_ext.save(net, tmp_path / "net.safetensors")
    fresh = snn_ext.load(build(0.9), tmp_path / "net.safetensors")
    assert fresh[1].V is fresh[1].recurrent.V
    assert torch.equal(fresh[1].V, net[1].V)
    x = torch.randn(5, 2, 4) * 3
    for step in x:
        assert _equal(list(net(step)), list(fresh(step)))


@pytest.mark.parametrize("name", ["T5-zeros", "T6s", "REG1"])
def test_an_old_checkpoint_loads_strictly_with_one_warning(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(3)
    old = case.fresh().state_dict()
    net = _patched(case)
    v0 = {k: p.clone() for k, p in net.named_parameters() if k.endswith("imp")}
    with pytest.warns(UserWarning, match="from before the patch") as caught:
        net.load_state_dict(old, strict=True)
    assert len([w for w in caught if "patch" in str(w.message)]) == 1
    assert all(k in str(caught[0].message) for k in v0)
    state = net.state_dict()
    assert all(torch.equal(state[k], value) for k, value in old.items())
    assert all(torch.equal(state[k], value) for k, value in v0.items())


def test_an_old_checkpoint_goes_back_into_an_unpatched_net_without_a_warning() -> None:
    case = CASES["T6s"]
    net = _patched(case)
    old = case.fresh().state_dict()
    snn_ext.unpatch(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.load_state_dict(old, strict=True)


def test_a_torn_checkpoint_is_refused() -> None:
    net = _patched(CASES["T6s"])
    state = net.state_dict()
    before = {k: v.clone() for k, v in state.items()}
    torn = {k: v + 1 for k, v in state.items() if k != "2.imp"}
    with pytest.raises(snn_ext.CheckpointError, match="do: "):
        net.load_state_dict(torn)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_keys_of_the_net_stay_and_the_state_is_not_saved() -> None:
    for case in CASES.values():
        torch.manual_seed(1)
        before = list(case.fresh().state_dict())
        net = _patched(case)
        _outputs(case, net)
        after = list(net.state_dict())
        new = [k for k in after if k not in before]
        assert [k for k in after if k in before] == before
        assert new
        assert all(k.rpartition(".")[2] == "imp" for k in new)


# --- pickling ----------------------------------------------------------------------------------------


def module_level_surrogate(u: Tensor) -> Tensor:
    """Importable, so that the original can be pickled."""
    return (u > 0).float() + 0 * u


class OfTheUser(snn.Leaky):
    """A subclass with a signature of its own; importable."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


PICKLABLE: dict[str, Callable[[], Any]] = {
    "surrogate_disable": lambda: snn.Leaky(0.5, surrogate_disable=True, init_hidden=True, output=True),
    "module level": lambda: snn.Leaky(0.5, spike_grad=module_level_surrogate, init_hidden=True, output=True),
    "subclass": lambda: OfTheUser(0.5, surrogate_disable=True, init_hidden=True, output=True),
    "Synaptic": lambda: snn.Synaptic(0.5, 0.5, surrogate_disable=True, init_hidden=True, output=True),
    "Lapicque": lambda: snn.Lapicque(beta=0.5, surrogate_disable=True, init_hidden=True, output=True),
    "RLeaky": lambda: snn.RLeaky(
        0.5, linear_features=5, surrogate_disable=True, init_hidden=True, output=True, reset_delay=False
    ),
    "RSynaptic": lambda: snn.RSynaptic(
        0.5, 0.5, all_to_all=False, surrogate_disable=True, init_hidden=True, output=True
    ),
}


def _step(net: nn.Module) -> list[Tensor]:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(5)) * 3
    with torch.no_grad():
        snn_ext.reset(net)
        return [t.clone() for _ in range(3) for t in net(x)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PICKLABLE)
def test_pickles_wherever_the_original_does(name: str, protocol: int) -> None:
    net = nn.Sequential(nn.Linear(4, 5), PICKLABLE[name]())
    pickle.loads(pickle.dumps(net, protocol))  # the original can
    snn_ext.patch(net, imp=IMP)
    twin = pickle.loads(pickle.dumps(net, protocol))
    assert type(twin[1]) is type(net[1])
    assert _equal(_step(net), _step(twin))
    # The copy is a patched model in every respect.
    assert snn_ext.report(twin).to_dict() == snn_ext.report(net).to_dict()
    assert twin[1].state_function.__self__ is twin[1]
    snn_ext.unpatch(twin)
    assert type(twin[1]) is type(PICKLABLE[name]())


def test_a_pickle_opens_in_a_process_that_never_patched_anything(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 5), PICKLABLE["surrogate_disable"]())
    snn_ext.patch(net, imp=IMP)
    x = torch.randn(2, 4) * 3
    with torch.no_grad():
        expected = net(x)[1]
        snn_ext.reset(net)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps((net, x, expected)))
    code = (
        "import pickle, sys, torch\n"
        "net, x, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(type(net[1]).__name__, torch.equal(net(x)[1], expected))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.pkl")], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [type(net[1]).__name__, "True"], done.stderr


def test_torch_save_of_the_whole_module() -> None:
    net = nn.Sequential(nn.Linear(4, 5), PICKLABLE["surrogate_disable"]())
    snn_ext.patch(net, imp=IMP)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert _equal(_step(net), _step(torch.load(file, weights_only=False)))


def test_a_pickled_copy_with_a_closure_surrogate_fails_as_the_original_does() -> None:
    net = nn.Sequential(nn.Linear(4, 5), snn.Leaky(0.5))
    for _ in range(2):
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"local object|atan"):
            pickle.dumps(net)
        snn_ext.patch(net, imp=IMP)


@pytest.mark.parametrize("name", CASES)
def test_deepcopy_has_its_own_v0_and_equal_outputs(name: str) -> None:
    case = CASES[name]
    net = _patched(case)
    twin = copy.deepcopy(net)
    ours = dict(net.named_parameters())
    for key, parameter in twin.named_parameters():
        assert parameter is not ours[key]
    assert _equal(_outputs(case, net), _outputs(case, twin))


# --- taking back -------------------------------------------------------------------------------------


def _fingerprint(net: nn.Module) -> dict[str, Any]:
    """Class, attribute names and containers of every module, with the identities of what they hold."""
    prints: dict[str, Any] = {}
    for name, module in net.named_modules():
        entries: dict[str, Any] = {"class": type(module), "keys": list(vars(module))}
        for key, held in vars(module).items():
            entries[key] = {k: id(v) for k, v in held.items()} if isinstance(held, dict) else id(held)
        prints[name] = entries
    return prints


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_unpatch_leaves_no_attribute_behind(name: str, traced: bool) -> None:
    case = CASES[name]
    if not traced and name in ("T6", "T6s", "STM"):
        imp: Any = snn_ext.IMP(shape="layer")
    else:
        imp = IMP
    torch.manual_seed(1)
    net = case.fresh()
    before_outputs = _outputs(case, net)
    utils.reset(net)
    before = _fingerprint(net)
    example = case.example(case.batch(2)) if traced else None
    snn_ext.patch(net, imp=imp, example_input=example)
    assert _fingerprint(net) != before
    snn_ext.unpatch(net)
    assert _fingerprint(net) == before
    assert _equal(before_outputs, _outputs(case, net))
    # The same after use.
    snn_ext.patch(net, imp=imp, example_input=example)
    case.run(net, case.batch(3))[1].sum().backward()
    snn_ext.unpatch(net)
    for name_, module in net.named_modules():
        assert list(vars(module)) == before[name_]["keys"]
        assert type(module) is before[name_]["class"]


def test_unpatch_after_training_keeps_the_trained_weights() -> None:
    case = CASES["T6s"]
    net = _patched(case)
    optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.05))
    case.run(net, case.batch(4))[1].square().mean().backward()
    optimizer.step()
    trained = {k: v.clone() for k, v in net.state_dict().items()}
    snn_ext.unpatch(net)
    assert {k for k in trained if not k.endswith("imp")} == set(net.state_dict())
    assert all(torch.equal(v, trained[k]) for k, v in net.state_dict().items())
    torch.manual_seed(1)
    twin = case.fresh()
    twin.load_state_dict(net.state_dict())
    assert _equal(_outputs(case, net), _outputs(case, twin))


def test_instances_list_hooks_and_aliases_survive() -> None:
    net = REG1(8)
    calls: list[str] = []
    net.lif1.register_forward_hook(lambda *_: calls.append("forward"))
    net.lif1.register_full_backward_hook(lambda *_: calls.append("backward"))
    alias, listed = net.lif1, list(snn.SpikingNeuron.instances)
    parameters = list(net.parameters())
    snn_ext.patch(net, imp=IMP)
    assert alias is net.lif1
    assert [id(n) for n in snn.SpikingNeuron.instances] == [id(n) for n in listed]
    assert all(any(p is q for q in net.parameters()) for p in parameters)
    net(torch.randn(2, 3, 1))[1].sum().backward()
    assert calls.count("forward") == 2
    assert calls.count("backward") == 2
    snn_ext.unpatch(net)
    assert alias is net.lif1
    assert type(alias) is snn.Leaky
    assert [id(n) for n in snn.SpikingNeuron.instances] == [id(n) for n in listed]


def test_training_changes_v0_and_check_optimizer_knows() -> None:
    for name, case in CASES.items():
        torch.manual_seed(1)
        net = case.fresh()
        early = torch.optim.Adam(net.parameters())
        snn_ext.patch(net, imp=IMP, example_input=case.example(case.batch(2)))
        with pytest.raises(snn_ext.OptionError, match="do: build it after the patch"):
            snn_ext.check_optimizer(net, early)
        optimizer = torch.optim.Adam(snn_ext.param_groups(net, lr=1e-2))
        snn_ext.check_optimizer(net, optimizer)
        v0 = {k: p.detach().clone() for k, p in net.named_parameters() if k.endswith("imp")}
        for _ in range(10):
            optimizer.zero_grad()
            spikes, membranes = case.run(net, case.batch(4))
            (membranes.square().mean() + spikes.mean()).backward()
            optimizer.step()
        for key, start in v0.items():
            assert not torch.equal(dict(net.named_parameters())[key], start), (name, key)
