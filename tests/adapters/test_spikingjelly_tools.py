"""SpikingJelly's and PyTorch's own tools on patched networks: functional forward, activation
checkpointing, memory formats, hooks, monitors, operation counters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import (
    TIMESTEPS,
    base,
    conv_net,
    functional,
    gradients,
    memopt,
    monitor,
    neuron,
    neurons_of,
)

OPTION = snn_ext.IMP(init=(-0.5, 0.9))


def _x() -> Tensor:
    return torch.rand(TIMESTEPS, 3, 2, 6, 6) * 6


def _patched(net: nn.Module, x: Tensor | None = None) -> nn.Module:
    return snn_ext.patch(net, imp=OPTION, example_input=_x() if x is None else x)


def _loss(y: Tensor) -> Tensor:
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


def _assert_same_gradients(a: nn.Module, b: nn.Module) -> None:
    expected = {**gradients(a), **gradients(a, of_methods=True)}
    found = {**gradients(b), **gradients(b, of_methods=True)}
    plain = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in found.items()}
    assert set(plain) == set(expected)
    for name, grad in expected.items():
        assert grad is not None, name
        assert torch.equal(grad, plain[name]), name
    assert all(bool(g.any()) for g in gradients(a, of_methods=True).values())


# --- functional forward -----------------------------------------------------------------------------


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("built", ["before", "after"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_functional_forward_starts_from_v0(built: str, nested: bool) -> None:
    """A flat Sequential calls its children's functional forward, a nested one goes through `forward`."""
    net: nn.Module = conv_net().eval()
    net = nn.Sequential(net, nn.Identity()) if nested else net
    run = base.to_functional_forward(net) if built == "before" else None
    _patched(net)
    run = run or base.to_functional_forward(net)
    x = _x()
    fresh = tuple(base.extract_memories(net))
    (y,), states = run((x,), fresh)
    assert base.extract_memories(net) == list(fresh)  # the live states are not touched
    _loss(y).backward()
    twin = copy.deepcopy(net)
    twin.zero_grad()
    expected = twin(x)
    _loss(expected).backward()
    assert torch.equal(y, expected)
    assert all(map(torch.equal, states, base.extract_memories(twin)))
    _assert_same_gradients(twin, net)


def test_functional_forward_carries_states_without_v0() -> None:
    net = _patched(conv_net()).eval()
    run = base.to_functional_forward(net)
    x = _x()
    fresh = tuple(base.extract_memories(net))
    (first,), states = run((x[:2],), fresh)
    (second,), _ = run((x[2:],), states)
    assert torch.equal(torch.cat([first, second]), net(x))
    (again,), _ = run((x[2:],), fresh)
    assert not torch.equal(second, again)


# --- activation checkpointing ------------------------------------------------------------------------


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("order", ["patch, wrap", "wrap, patch"])
@pytest.mark.parametrize("whole", [True, False], ids=["block with buffers", "single neuron"])
def test_checkpointed_modules(order: str, whole: bool) -> None:
    x = _x()
    reference = _patched(conv_net())
    values = {name: p.detach().clone() for name, p in reference.named_parameters()}

    def wrap(net: nn.Sequential) -> nn.Module:
        if whole:
            return nn.Sequential(memopt.checkpoint_module(nn.Sequential(*net[:3])), *net[3:])
        net[2] = memopt.checkpoint_module(net[2])
        return net

    net: Any = conv_net()
    if order == "patch, wrap":
        net = wrap(_patched(net))
    else:
        net = wrap(net)
        _patched(net)
    own = dict(net.named_parameters())
    assert len(own) == len(values)
    with torch.no_grad():
        for mine, value in zip(own.values(), values.values(), strict=True):
            mine.copy_(value)
    for _ in range(2):  # the second call carries the state that the checkpoint wrote back
        y, expected = net(x), reference(x)
        assert torch.equal(y, expected)
    states = [node.v for node in neurons_of(net)]
    assert all(map(torch.equal, states, [node.v for node in neurons_of(reference)]))
    functional.reset_net(net)
    functional.reset_net(reference)
    _loss(net(x)).backward()
    _loss(reference(x)).backward()
    for mine, p in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine.grad, p.grad)
    assert all(node.imp.grad.any() for node in neurons_of(net))


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("example", [True, False], ids=["traced", "layer"])
@pytest.mark.parametrize("order", ["patch, optimise", "optimise, patch"])
def test_the_memory_optimiser(order: str, example: bool) -> None:
    """`optimize_memory` wraps every neuron on its own; the wrapper calls neither `forward` nor hooks."""
    x = _x()
    shape = "neuron" if example else "layer"
    option = snn_ext.IMP(init=0.5, shape=shape)
    plain, net = (conv_net() for _ in range(2))
    net.load_state_dict(plain.state_dict())
    snn_ext.patch(plain, imp=option, example_input=x if example else None)
    if order == "optimise, patch":
        memopt.optimize_memory(net, neuron.LIFNode, lambda model: model(x), level=1)
        snn_ext.patch(net, imp=option, example_input=x if example else None)
    else:
        snn_ext.patch(net, imp=option, example_input=x if example else None)
        memopt.optimize_memory(net, neuron.LIFNode, lambda model: model(x), level=1)
    assert any("_checkpoint_wrapped_module" in name for name, _ in net.named_modules())
    for model in (plain, net):
        _loss(model(x)).backward()
    _assert_same_gradients(plain, net)


@pytest.mark.usefixtures("framework_step")
def test_a_compressed_checkpoint_keeps_the_gradient() -> None:
    node = neuron.LIFNode(step_mode="m")
    x = torch.rand(TIMESTEPS, 2, 5).round()
    _patched(node, x)
    compressor = memopt.BooleanSpikeCompressor()
    wrapped = memopt.checkpoint_module(copy.deepcopy(node), compressor=compressor)
    _loss(wrapped(x)).backward()
    _loss(node(x)).backward()
    assert node.imp.grad.any()
    assert torch.equal(wrapped._checkpoint_wrapped_module.imp.grad, node.imp.grad)


@pytest.mark.usefixtures("framework_step")
def test_a_sequence_checkpointed_in_chunks_starts_once() -> None:
    node = neuron.LIFNode(step_mode="m")
    x = torch.rand(TIMESTEPS, 2, 5) * 2
    _patched(node, x)
    wrapped = memopt.checkpoint_module(copy.deepcopy(node), chunks=2)
    y, expected = wrapped(x), node(x)
    assert torch.equal(y, expected)
    _loss(y).backward()
    _loss(expected).backward()
    assert torch.equal(wrapped._checkpoint_wrapped_module.imp.grad, node.imp.grad)


# --- memory format -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("shape", ["neuron", "channel", "layer"])
def test_the_first_state_has_the_layout_of_the_input(shape: str, mode: str) -> None:
    node = neuron.LIFNode(step_mode=mode)
    images = torch.rand(TIMESTEPS * 2, 3, 4, 4).to(memory_format=torch.channels_last)
    x = images.view(TIMESTEPS, 2, 3, 4, 4)
    assert x[0].is_contiguous(memory_format=torch.channels_last)
    inputs = x if mode == "m" else x[0]
    snn_ext.patch(node, imp=snn_ext.IMP(shape=shape), example_input=inputs)
    (v,) = node.materialize_states((inputs,), (0.0,), mode)
    assert v.stride() == x[0].stride()
    plain = inputs.contiguous()
    (v,) = node.materialize_states((plain,), (0.0,), mode)
    assert v.is_contiguous()


@pytest.mark.parametrize("mode", ["s", "m"])
def test_expanded_inputs_get_a_dense_state(mode: str) -> None:
    """Static images repeated over time or batch have stride 0; a state must be writable memory."""
    node = neuron.LIFNode(step_mode=mode)
    x = torch.rand(1, 1, 3, 4, 4).expand(TIMESTEPS, 5, 3, 4, 4)
    inputs = x if mode == "m" else x[0]
    snn_ext.patch(node, imp=OPTION, example_input=inputs)
    (v,) = node.materialize_states((inputs,), (0.0,), mode)
    assert 0 not in v.stride()
    functional.detach_net(node)
    node(inputs).sum().backward()
    assert node.imp.grad.any()


# --- hooks, monitors, counters -------------------------------------------------------------------------


def test_hooks_registered_before_the_patch_still_fire() -> None:
    net = conv_net()
    fired: list[str] = []
    net[2].register_forward_pre_hook(lambda *_: fired.append("pre"))
    net[2].register_forward_hook(lambda *_: fired.append("forward"))
    net[2].register_full_backward_hook(lambda *_: fired.append("backward"))
    net[2].register_state_dict_post_hook(lambda *_: fired.append("state dict"))
    _patched(net)
    fired.clear()  # the pass that finds the shapes is an ordinary forward
    _loss(net(_x())).backward()
    net.state_dict()
    assert fired == ["pre", "forward", "backward", "state dict"]
    snn_ext.unpatch(net)
    fired.clear()
    functional.reset_net(net)
    _loss(net(_x())).backward()
    assert fired == ["pre", "forward", "backward"]


@pytest.mark.parametrize("built", ["before", "after"])
def test_monitors_see_patched_neurons(built: str) -> None:
    net = conv_net(lambda: neuron.LIFNode(store_v_seq=True))
    outputs = monitor.OutputMonitor(net, neuron.LIFNode) if built == "before" else None
    voltages = monitor.AttributeMonitor("v_seq", False, net, neuron.LIFNode) if built == "before" else None
    _patched(net)
    outputs = outputs or monitor.OutputMonitor(net, neuron.LIFNode)
    voltages = voltages or monitor.AttributeMonitor("v_seq", False, net, neuron.LIFNode)
    outputs.clear_recorded_data()  # the pass that finds the shapes is an ordinary forward
    voltages.clear_recorded_data()
    y = net(_x())
    assert len(outputs.records) == 2
    assert torch.equal(outputs.records[1], y)
    assert [v.shape[0] for v in voltages.records] == [TIMESTEPS, TIMESTEPS]


def test_conv_and_norm_fuse_around_patched_neurons() -> None:
    fusion = pytest.importorskip(
        "spikingjelly.activation_based.functional.conv_bn_fusion", reason="part of SpikingJelly"
    )
    net = _patched(conv_net()).eval()
    fused = fusion.fuse_conv_bn_eval_modules(net)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    x = _x()
    expected = net(x)
    functional.reset_net(net)  # the fused network shares the neurons
    assert torch.equal(fused(x), expected)  # spikes: the last ulp of a conv does not reach them here
    assert [name for name, _ in fused.named_parameters() if name.endswith("imp")] == ["2.imp", "6.imp"]


def test_operation_counters_see_the_state() -> None:
    op_counter = pytest.importorskip(
        "spikingjelly.activation_based.op_counter", reason="part of SpikingJelly"
    )
    counts = []
    for option in (None, OPTION):
        net = conv_net()
        if option:
            _patched(net)
        counter = op_counter.NeuronStateCounter()
        with op_counter.DispatchCounterMode([counter]), torch.no_grad():
            net(_x())
        counts.append(counter.get_total())
    assert counts[0] > 0
    assert counts[1] > 0
