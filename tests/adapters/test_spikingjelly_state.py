"""When a sequence begins, and with it V0: resets, carried states, states that the user set."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import (
    TIMESTEPS,
    Equations,
    base,
    conv_net,
    functional,
    layer,
    neuron,
    neurons_of,
    patched_neuron,
    steps,
)

FEATURES = (3, 4)
EQUATIONS = Equations(kind="LIF", reset=None)
MODES = pytest.mark.parametrize("mode", ["s", "m"])


def _v0() -> Tensor:
    return torch.rand(FEATURES) * 2 - 1


def _node(mode: str, v0: Tensor, *, store_v_seq: bool = False) -> nn.Module:
    return patched_neuron(EQUATIONS.node(mode, store_v_seq=store_v_seq), v0, FEATURES)


def _x(timesteps: int = TIMESTEPS, batch: int = 2) -> Tensor:
    return torch.rand(timesteps, batch, *FEATURES) * 2


def _membranes(x: Tensor, v0: Tensor | float) -> Tensor:
    return EQUATIONS.run(x, torch.as_tensor(v0))[2]


@MODES
@pytest.mark.parametrize("reset", [functional.reset_net, snn_ext.reset, lambda node: node.reset()])
def test_a_reset_starts_from_v0_again(reset: Callable[[nn.Module], None], mode: str) -> None:
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    first = steps(node, x, mode)
    continued = steps(node, x, mode)
    reset(node)
    assert torch.equal(steps(node, x, mode), first)
    assert torch.equal(node.v, _membranes(x, v0)[-1])
    assert not torch.equal(first, continued)  # without the reset there is a state to continue from


@MODES
def test_without_a_reset_the_state_is_carried(mode: str) -> None:
    x, v0 = _x(6), _v0()
    node = _node(mode, v0)
    parts = [steps(node, x[:2], mode), steps(node, x[2:], mode)]
    assert torch.equal(torch.cat(parts), EQUATIONS.run(x, v0)[1])
    assert torch.equal(node.v, _membranes(x, v0)[-1])


@MODES
def test_detached_states_go_on_without_v0(mode: str) -> None:
    """Truncated backpropagation: the second part neither starts from V0 nor sends it a gradient."""
    x, v0 = _x(6), _v0()
    node = _node(mode, v0)
    steps(node, x[:2], mode).sum().backward()
    gradient = node.imp.grad.clone()
    functional.detach_net(node)
    assert not node.v.requires_grad
    second = steps(node, x[2:].requires_grad_(), mode)
    assert torch.equal(second, EQUATIONS.run(x, v0)[1][2:])
    second.sum().backward()
    assert gradient.any()
    assert torch.equal(node.imp.grad, gradient)


@MODES
@pytest.mark.parametrize("batch", [1, 5])
def test_another_batch_size_starts_from_v0(batch: int, mode: str) -> None:
    """The smaller last batch of an epoch, without a reset; SpikingJelly itself restarts from v_reset."""
    v0 = _v0()
    node = _node(mode, v0)
    steps(node, _x(), mode)
    x = _x(batch=batch)
    spikes = steps(node, x, mode)
    assert torch.equal(spikes, EQUATIONS.run(x, v0)[1])
    spikes.sum().backward()
    assert node.imp.grad.any()


@MODES
def test_another_batch_size_restarts_the_other_states_too(mode: str) -> None:
    option = snn_ext.IMP(init=(-0.5, 0.5))
    node = neuron.IzhikevichNode(a=0.3, b=0.2, step_mode=mode)
    snn_ext.patch(node, imp=option, example_input=_x() if mode == "m" else _x()[0])
    fresh = copy.deepcopy(node)
    steps(node, _x(), mode)
    assert node.w.any()
    x = _x(batch=3)
    assert torch.equal(steps(node, x, mode), steps(fresh, x, mode))
    assert torch.equal(node.w, fresh.w)


@MODES
def test_another_resolution_restarts_where_v0_is_per_channel(mode: str) -> None:
    node = neuron.IFNode(step_mode=mode)
    x = torch.rand(TIMESTEPS, 2, 3, 4, 4)
    example = x if mode == "m" else x[0]
    snn_ext.patch(node, imp=snn_ext.IMP(init=0.7, shape="channel"), example_input=example)
    steps(node, x, mode)
    larger = torch.rand(1, 2, 3, 8, 8) * 0.2
    steps(node, larger, mode)
    assert torch.equal(node.v, Equations(kind="IF").run(larger, torch.tensor(0.7))[2][-1])


@MODES
def test_another_resolution_is_an_error_where_v0_is_per_neuron(mode: str) -> None:
    node = _node(mode, _v0())
    x = torch.rand(TIMESTEPS, 2, 3, 8)
    with pytest.raises(snn_ext.ShapeMismatchError, match=r"\[3, 4\].*\[3, 8\]") as caught:
        steps(node, x, mode)
    assert str(caught.value).splitlines()[-1].strip().startswith("do: ")


@MODES
@pytest.mark.parametrize("value", [0.5, -0.25])
def test_a_number_set_by_the_user_is_honoured_for_one_sequence(value: float, mode: str) -> None:
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    node.v = value
    assert torch.equal(steps(node, x, mode), EQUATIONS.run(x, torch.tensor(value))[1])
    assert torch.equal(node.v, _membranes(x, value)[-1])
    node.reset()
    steps(node, x, mode)
    assert torch.equal(node.v, _membranes(x, v0)[-1])


@MODES
def test_the_reset_value_set_by_the_user_means_v0(mode: str) -> None:
    """It cannot be told from the framework's own sign of a fresh neuron."""
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    steps(node, x, mode)
    node.v = 0.0
    steps(node, x, mode)
    assert torch.equal(node.v, _membranes(x, v0)[-1])


@MODES
def test_a_tensor_set_by_the_user_is_honoured_with_its_gradient(mode: str) -> None:
    x = _x()
    node = _node(mode, _v0())
    own = torch.rand(2, *FEATURES, requires_grad=True)
    node.v = own
    spikes = steps(node, x, mode)
    assert torch.equal(spikes, EQUATIONS.run(x, own.detach())[1])
    spikes.sum().backward()
    assert own.grad.any()
    assert node.imp.grad is None


@MODES
def test_a_tensor_of_another_shape_is_replaced_by_v0(mode: str) -> None:
    """SpikingJelly replaces it by v_reset without a word."""
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    node.v = torch.full(FEATURES, 0.9)
    steps(node, x, mode)
    assert torch.equal(node.v, _membranes(x, v0)[-1])


@MODES
def test_another_reset_value_leaves_v0_in_place(mode: str) -> None:
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    node.set_reset_value("v", 0.4)
    node.reset()
    steps(node, x, mode)
    assert torch.equal(node.v, _membranes(x, v0)[-1])


def test_a_reset_list_made_before_the_patch_still_works() -> None:
    """`reset_net` keeps a list of modules per network it was called with, wrappers included."""
    net = conv_net()
    wrapper = nn.Sequential(net)
    x = torch.rand(TIMESTEPS, 2, 2, 6, 6) * 4
    for root in (net, wrapper, net[2]):
        functional.reset_net(root)
    snn_ext.patch(net, imp=True, example_input=x)
    first = net(x)
    functional.reset_net(wrapper)
    assert all(isinstance(node.v, float) for node in neurons_of(net))
    assert torch.equal(net(x), first)
    functional.reset_net(net)
    assert torch.equal(net(x), first)
    functional.reset_net(net[2])
    assert isinstance(net[2].v, float)
    snn_ext.reset(net)
    snn_ext.unpatch(net)
    net(x)
    functional.reset_net(wrapper)
    assert all(isinstance(node.v, float) for node in neurons_of(net))


def test_resets_reach_modules_added_later() -> None:
    net = nn.Sequential(neuron.IFNode(step_mode="m"))
    functional.reset_net(net)
    net.append(neuron.IFNode(step_mode="m"))
    snn_ext.patch(net, imp=True, example_input=_x())
    net(_x())
    functional.reset_net(net)
    assert isinstance(net[1].v, Tensor)  # the framework's stale list
    snn_ext.reset(net)
    assert isinstance(net[1].v, float)


def test_our_reset_equals_the_frameworks_also_on_copies() -> None:
    nets = [conv_net(lambda: neuron.LIFNode(store_v_seq=True))]
    nets[0].append(layer.Dropout(0.5, step_mode="m"))  # has a mask to forget
    x = torch.rand(TIMESTEPS, 2, 2, 6, 6) * 4
    snn_ext.patch(nets[0], imp=True, example_input=x)
    nets.append(copy.deepcopy(nets[0]))
    for net in nets:
        torch.manual_seed(1)
        net(x)
    snn_ext.reset(nets[0])
    assert all(isinstance(node.v, Tensor) for node in neurons_of(nets[1]))  # nothing outside the model
    functional.reset_net(nets[1])
    ours, theirs = (base.extract_memories(net) for net in nets)
    assert ours == theirs == [0.0, 0.0, None]
    assert all(node.v_seq is None for net in nets for node in neurons_of(net))
    copied = copy.deepcopy(nets[1])
    copied(x)
    snn_ext.reset(copied)
    assert base.extract_memories(copied) == theirs


@MODES
def test_train_and_eval_start_alike(mode: str) -> None:
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    for training in (True, False, True):
        node.train(training)
        functional.reset_net(node)
        node.zero_grad()
        spikes = steps(node, x, mode)
        assert torch.equal(spikes, EQUATIONS.run(x, v0)[1])
        spikes.sum().backward()
        assert node.imp.grad.any()


@MODES
def test_stored_membranes_start_behind_v0(mode: str) -> None:
    x, v0 = _x(6), _v0()
    node = _node(mode, v0, store_v_seq=True)
    steps(node, x[:4], mode)
    assert torch.equal(node.v_seq, _membranes(x[:4], v0))
    node.v_seq.sum().backward()
    assert node.imp.grad.any()
    snn_ext.reset(node)
    assert node.v_seq is None
    steps(node, x, mode)
    assert torch.equal(node.v_seq, _membranes(x, v0))


@MODES
def test_v0_is_read_in_forward_not_at_reset(mode: str) -> None:
    """Reset without gradients, then an optimiser step: the next forward sees the new value, and sends
    it gradients."""
    x, v0 = _x(), _v0()
    node = _node(mode, v0)
    optimizer = torch.optim.SGD([node.imp], lr=0.5)
    steps(node, x, mode).sum().backward()
    with torch.no_grad():
        functional.reset_net(node)
    assert isinstance(node.v, float)
    optimizer.step()
    optimizer.zero_grad()
    new = node.imp.detach().clone()
    assert not torch.equal(new, v0)
    spikes = steps(node, x, mode)
    assert torch.equal(spikes, EQUATIONS.run(x, new)[1])
    assert torch.equal(node.v, _membranes(x, new)[-1])
    spikes.sum().backward()
    assert node.imp.grad.any()


def test_a_forward_without_gradients_does_not_freeze_v0() -> None:
    x = _x()
    node = _node("m", _v0())
    with torch.inference_mode():
        node(x)
        functional.reset_net(node)
    with torch.no_grad():
        node(x)
    functional.reset_net(node)
    node(x).sum().backward()
    assert node.imp.grad.any()


@MODES
def test_patching_in_the_middle_of_a_sequence_does_not_end_it(mode: str) -> None:
    x = _x(6)
    node = EQUATIONS.node(mode, store_v_seq=True)
    with torch.no_grad():
        steps(node, x[:2], mode)
    state, stored = node.v, node.v_seq
    values = state.clone()
    snn_ext.patch(node, imp=snn_ext.IMP(init=0.9), example_input=_x() if mode == "m" else _x()[0])
    assert node.v is state
    assert node.v_seq is stored
    assert torch.equal(state, values)
    assert torch.equal(steps(node, x[2:], mode), EQUATIONS.run(x, torch.tensor(0.0))[1][2:])


def test_states_can_be_taken_out_and_put_back() -> None:
    x = torch.rand(6, 2, 2, 6, 6) * 4
    net = conv_net()
    snn_ext.patch(net, imp=snn_ext.IMP(init=(0.0, 0.9)), example_input=x)
    net.eval()
    whole = net(x)
    functional.reset_net(net)
    net(x[:2])
    kept = base.extract_memories(net)
    functional.reset_net(net)
    net(x[:3])
    base.load_memories(net, kept)
    assert torch.equal(net(x[2:]), whole[2:])


def test_the_reset_value_of_the_framework_is_not_touched() -> None:
    for node in (neuron.LIFNode(v_reset=0.3), neuron.HalfThresholdIFNode(), neuron.QIFNode()):
        before = node.get_reset_value("v")
        snn_ext.patch(node, imp=snn_ext.IMP(init=0.7, shape="layer"))
        assert node.get_reset_value("v") == before
        node.reset()
        assert node.v == before
