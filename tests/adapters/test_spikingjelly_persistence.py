"""Copies, pickles and checkpoints of patched SpikingJelly networks."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext_spikingjelly import plugin
from tests.adapters.spikingjelly_nets import (
    TIMESTEPS,
    conv_net,
    functional,
    layer,
    memopt,
    neuron,
    neurons_of,
)

OPTION = snn_ext.IMP(init=(-0.5, 0.9))


class Custom(neuron.ParametricLIFNode):
    """A user's neuron, with a buffer, a parameter and a plain attribute."""

    def __init__(self) -> None:
        super().__init__(init_tau=3.0, v_reset=None)
        self.register_buffer("gain", torch.tensor(1.5))
        self.note = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.gain)


NETS: dict[str, Callable[[], nn.Module]] = {
    "LIF": conv_net,
    "PLIF": lambda: conv_net(neuron.ParametricLIFNode),
    "Izhikevich": lambda: conv_net(lambda: neuron.IzhikevichNode(a=0.2, store_v_seq=True)),
    "custom": lambda: conv_net(Custom),
}


def _x(batch: int = 3) -> Tensor:
    return torch.rand(TIMESTEPS, batch, 2, 6, 6) * 6


def _patched(make: Callable[[], nn.Module] = conv_net) -> nn.Module:
    return snn_ext.patch(make(), imp=OPTION, example_input=_x()).eval()


def _assert_alike(a: nn.Module, b: nn.Module) -> None:
    """Same classes, keys and values, same outputs, same gradients of V0; and V0 matters."""
    assert [type(m) for m in a.modules()] == [type(m) for m in b.modules()]
    assert list(a.state_dict()) == list(b.state_dict())
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    x = _x()
    outputs = []
    for net in (a, b):
        snn_ext.reset(net)
        net.zero_grad()
        y = net(x)
        y.sum().backward()
        outputs.append(y)
    assert torch.equal(*outputs)
    for mine, other in zip(neurons_of(a), neurons_of(b), strict=True):
        assert mine.imp is not other.imp
        assert mine.imp.grad.any()
        assert torch.equal(mine.imp.grad, other.imp.grad)
    with torch.no_grad():
        for node in neurons_of(b):
            node.imp.add_(torch.rand_like(node.imp) * 4 - 2)
    snn_ext.reset(b)
    assert not torch.equal(b(x), outputs[0])  # b has a V0 of its own, ...
    snn_ext.reset(a)
    assert torch.equal(a(x), outputs[0])  # ... which is not that of a


def _by_pickle(net: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(net))


def _by_torch(net: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, _by_pickle, _by_torch])
@pytest.mark.parametrize("name", NETS)
def test_copies(name: str, way: Callable[[nn.Module], nn.Module]) -> None:
    net = _patched(NETS[name])
    twin = way(net)
    assert str(snn_ext.report(twin)) == str(snn_ext.report(net))
    _assert_alike(net, twin)
    plain = snn_ext.unpatch(twin)
    assert [type(m) for m in plain.modules()] == [type(m) for m in NETS[name]().modules()]
    assert isinstance(
        neurons_of(net)[0], snn_ext.neurons.InitialPotential
    )  # unpatching a copy is its own affair


@pytest.mark.parametrize("way", [copy.deepcopy, _by_pickle])
def test_copies_in_the_middle_of_a_sequence(way: Callable[[nn.Module], nn.Module]) -> None:
    net = _patched(lambda: conv_net(lambda: neuron.LIFNode(store_v_seq=True)))
    with torch.no_grad():
        net(_x())
        twin = way(net)
        x = _x()
        assert torch.equal(net(x), twin(x))
    assert all(map(torch.equal, *([node.v_seq for node in neurons_of(n)] for n in (net, twin))))


def test_a_state_with_a_graph_is_copied_where_spikingjelly_can_copy_it() -> None:
    """deepcopy refuses tensors with history, pickle does not; patching changes neither."""
    for net in (conv_net(), _patched()):
        net(_x()).sum().backward()
        with pytest.raises(RuntimeError, match="created explicitly by the user"):
            copy.deepcopy(net)
        pickle.loads(pickle.dumps(net))
        functional.reset_net(net)
        copy.deepcopy(net)


def test_a_pickle_opens_in_a_process_that_never_patched(tmp_path: Path) -> None:
    net = _patched()
    x = _x()
    snn_ext.reset(net)
    expected = net(x).detach()
    snn_ext.reset(net)
    torch.save({"net": net, "x": x, "y": expected}, tmp_path / "net.pt")
    script = (
        "import sys, torch\n"
        "saved = torch.load(sys.argv[1], weights_only=False)\n"
        "assert torch.equal(saved['net'](saved['x']), saved['y'])\n"
        "import snn_ext, pickle\n"
        "pickle.dumps(saved['net'])\n"
        "assert type(snn_ext.unpatch(saved['net'])[2]).__name__ == 'LIFNode'\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "net.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- state dicts -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NETS)
def test_state_dicts_go_round(name: str) -> None:
    net, twin = _patched(NETS[name]), _patched(NETS[name])
    assert set(net.state_dict()) - set(NETS[name]().state_dict()) == {"2.imp", "6.imp"}
    assert set(NETS[name]().state_dict()) <= set(net.state_dict())
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    _assert_alike(net, twin)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NETS)
def test_our_checkpoints_patch_a_fresh_network(name: str, tmp_path: Path) -> None:
    net = _patched(NETS[name])
    snn_ext.save(net, tmp_path / "net.safetensors")
    fresh = snn_ext.load(NETS[name](), tmp_path / "net.safetensors").eval()
    _assert_alike(net, fresh)
    again = snn_ext.load(_patched(NETS[name]), tmp_path / "net.safetensors")
    assert all(map(torch.equal, again.state_dict().values(), net.state_dict().values()))


def _warnings_of(load: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("name", NETS)
def test_older_checkpoints_load_strictly_with_one_warning(name: str) -> None:
    old = NETS[name]()
    net = _patched(NETS[name])
    starts = [node.imp.detach().clone() for node in neurons_of(net)]
    messages = _warnings_of(lambda: net.load_state_dict(old.state_dict(), strict=True))
    assert len(messages) == 1
    assert "2 tensors keep their initial values" in messages[0]
    assert "2.imp" in messages[0]
    assert "6.imp" in messages[0]
    assert all(torch.equal(node.imp, v0) for node, v0 in zip(neurons_of(net), starts, strict=True))
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in old.state_dict().items())


def test_older_checkpoints_of_copies_and_of_parts() -> None:
    old = nn.Sequential(conv_net(), nn.Identity())
    net = copy.deepcopy(snn_ext.patch(copy.deepcopy(old), imp=OPTION, example_input=_x()))
    assert len(_warnings_of(lambda: net.load_state_dict(old.state_dict()))) == 1
    assert len(_warnings_of(lambda: net[0].load_state_dict(old[0].state_dict()))) == 1
    assert len(_warnings_of(lambda: net[0][2].load_state_dict(old[0][2].state_dict()))) == 1
    moved = _by_pickle(net)
    assert len(_warnings_of(lambda: moved.load_state_dict(old.state_dict()))) == 1
    snn_ext.unpatch(net)
    assert _warnings_of(lambda: net.load_state_dict(old.state_dict())) == []


def test_older_checkpoints_of_checkpointed_modules() -> None:
    """memopt's wrapper puts itself into module paths and takes itself out of keys."""
    old = conv_net(neuron.ParametricLIFNode)
    net = _patched(lambda: conv_net(neuron.ParametricLIFNode))
    net[2] = memopt.checkpoint_module(net[2])
    assert len(_warnings_of(lambda: net.load_state_dict(old.state_dict(), strict=True))) == 1
    full = _patched(lambda: conv_net(neuron.ParametricLIFNode)).state_dict()
    assert _warnings_of(lambda: net.load_state_dict(full, strict=True)) == []
    assert torch.equal(neurons_of(net)[0].imp, full["2.imp"])


@pytest.mark.parametrize(
    ("name", "lost"), [("LIF", "2.imp"), ("LIF", "6.imp"), ("custom", "2.w"), ("PLIF", "2.w")]
)
def test_torn_checkpoints_are_refused(name: str, lost: str) -> None:
    net, twin = _patched(NETS[name]), _patched(NETS[name])
    state = net.state_dict()
    del state[lost]
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    with pytest.raises(snn_ext.CheckpointError, match=lost.replace(".", r"\.")) as caught:
        twin.load_state_dict(state, strict=True)
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")
    assert all(torch.equal(value, before[key]) for key, value in twin.state_dict().items())


def test_checkpoints_of_a_patched_network_do_not_slip_into_a_plain_one() -> None:
    with pytest.raises(RuntimeError, match=r"2\.imp"):
        conv_net().load_state_dict(_patched().state_dict())


@pytest.mark.filterwarnings("ignore:the checkpoint is from before the patch")
def test_truly_missing_keys_are_still_missing() -> None:
    """Being lenient about V0 must not be lenient about weights."""
    state = conv_net().state_dict()
    del state["5.weight"]
    net = _patched()
    with pytest.raises(RuntimeError, match=r"Missing key.*5\.weight"):
        net.load_state_dict(state)


# --- unpatch -----------------------------------------------------------------------------------------


def _attributes(net: nn.Module) -> list[tuple[type, list[str], dict[str, Any]]]:
    return [(type(m), list(vars(m)), dict(vars(m))) for m in net.modules()]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("ran", [False, True], ids=["at once", "after a forward"])
def test_unpatching_is_exact(name: str, ran: bool) -> None:
    net = NETS[name]().eval()
    x = _x()
    expected = net(x).detach()
    functional.reset_net(net)
    before = _attributes(net)
    keys = list(net.state_dict())
    hooks = [{k: len(v) for k, v in vars(m).items() if k.endswith("_hooks")} for m in net.modules()]
    snn_ext.patch(net, imp=OPTION, example_input=x)
    if ran:
        changed = net(x)
        assert not torch.equal(changed, expected)
        functional.reset_net(net)
    assert snn_ext.unpatch(net) is net
    after = _attributes(net)
    for (cls, names, values), (cls2, names2, values2) in zip(before, after, strict=True):
        assert cls is cls2
        assert names == names2
        for attribute in names:
            same = values[attribute] is values2[attribute] or values[attribute] == values2[attribute]
            assert same, (cls, attribute)
    assert hooks == [{k: len(v) for k, v in vars(m).items() if k.endswith("_hooks")} for m in net.modules()]
    assert list(net.state_dict()) == keys
    assert torch.equal(net(x), expected)
    assert "not patched" in str(snn_ext.report(net))


def test_unpatching_keeps_the_running_sequence() -> None:
    net = _patched()
    x = _x()
    net(x[:2])
    twin = _by_pickle(net)
    snn_ext.unpatch(net)
    assert torch.equal(net(x[2:]), twin(x[2:]))


def test_patching_again_changes_nothing_and_otherwise_is_an_error() -> None:
    net = _patched()
    parameters = [id(p) for p in net.parameters()]
    classes = [type(m) for m in net.modules()]
    assert snn_ext.patch(net, imp=OPTION, example_input=_x()) is net
    with pytest.raises(snn_ext.AlreadyPatchedError) as caught:
        snn_ext.patch(net, imp=snn_ext.IMP(init=0.0), example_input=_x())
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")
    assert [id(p) for p in net.parameters()] == parameters
    assert [type(m) for m in net.modules()] == classes


def test_a_failure_half_way_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(conv_net(), layer.Linear(5, 5, step_mode="m"))
    before = _attributes(net)
    keys = list(net.state_dict())
    calls = []

    def fail_at_the_second(module: nn.Module, *mixins: type) -> None:
        calls.append(module)
        if len(calls) == 2:
            raise KeyboardInterrupt
        snn_ext.swap_class(module, *mixins)

    monkeypatch.setattr(plugin, "swap_class", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        snn_ext.patch(net, imp=OPTION, example_input=_x())
    assert len(calls) == 2
    assert [(cls, names) for cls, names, _ in _attributes(net)] == [(cls, names) for cls, names, _ in before]
    assert list(net.state_dict()) == keys
