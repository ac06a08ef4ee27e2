"""V0 at the neuron's own reset value leaves whole networks bit-identical: outputs, gradients, statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import (
    TIMESTEPS,
    StepLoop,
    conv_net,
    firing_rates,
    functional,
    gradients,
    layer,
    neuron,
    neurons_of,
    parametric_lif_net,
    sew_resnet,
    spikformer,
    spiking_resnet,
    spiking_vgg,
)


def _sew_resnet() -> nn.Module:
    return sew_resnet.sew_resnet18(num_classes=5, cnf="ADD", spiking_neuron=neuron.IFNode, detach_reset=True)


def _spiking_resnet() -> nn.Module:
    return spiking_resnet.spiking_resnet18(num_classes=5, spiking_neuron=neuron.LIFNode, v_reset=None)


def _spiking_vgg() -> nn.Module:
    """The zoo's VGG11 behind a classifier of 0.4 instead of 120 million parameters."""
    with torch.device("meta"):
        net = spiking_vgg.spiking_vgg11_bn(
            num_classes=5, init_weights=False, spiking_neuron=neuron.LIFNode, v_reset=0.2, decay_input=False
        )
    net.avgpool = layer.AdaptiveAvgPool2d((1, 1))
    net.classifier[0] = layer.Linear(512, 512)
    net.classifier[3] = layer.Linear(512, 256)
    net.classifier[6] = layer.Linear(256, 5)
    net.to_empty(device="cpu")
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    net._initialize_weights()
    return net


def _mnist_net() -> nn.Module:
    return parametric_lif_net.MNISTNet(channels=4, spiking_neuron=neuron.ParametricLIFNode, init_tau=3.0)


def _spikformer() -> nn.Module:
    return spikformer.Spikformer(
        T=TIMESTEPS,
        img_size_h=16,
        img_size_w=16,
        patch_size=4,
        num_classes=5,
        embed_dims=32,
        num_heads=4,
        depths=1,
    )


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    scale: float = 4.0


ZOO = {
    "sew_resnet18": Case(_sew_resnet, (3, 16, 16)),
    "spiking_resnet18": Case(_spiking_resnet, (3, 16, 16)),
    "spiking_vgg11_bn": Case(_spiking_vgg, (3, 32, 32)),
    "MNISTNet": Case(_mnist_net, (1, 28, 28)),
    "spikformer": Case(_spikformer, (3, 16, 16)),
}


def _excitable(net: nn.Module, x: Tensor) -> nn.Module:
    """Let the norms see data, and put every threshold where the upper fifth of the inputs is, so that
    deep neurons fire too, in train and in eval mode."""

    def lower(node: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        node.v_threshold = min(node.v_threshold, max(0.05, inputs[0].quantile(0.8).item()))

    handles = [node.register_forward_pre_hook(lower) for node in neurons_of(net)]
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(3):
            net.train()(x)
            functional.reset_net(net)
            net.eval()(x)
            functional.reset_net(net)
    for handle in handles:
        handle.remove()
    return net


def _train_step(net: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # dropout
    net.zero_grad(set_to_none=True)
    y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y


def _assert_equal(plain: nn.Module, patched: nn.Module) -> None:
    """Gradients, and every tensor of the state dict: weights, running statistics, batch counters."""
    expected, found = gradients(plain), gradients(patched)
    assert list(expected) == list(found)
    assert any(g is not None and bool(g.any()) for g in expected.values())
    for name, grad in expected.items():
        same = grad is found[name] if grad is None else torch.equal(grad, found[name])
        assert same, f"gradient of {name}"
    state = patched.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[name]), name


def _compare(plain: nn.Module, x: Tensor, option: snn_ext.IMP) -> nn.Module:
    patched = snn_ext.patch(copy.deepcopy(plain), imp=option, example_input=x)
    for training in (True, False):
        plain.train(training)
        patched.train(training)
        y, y2 = _train_step(plain, x), _train_step(patched, x)
        assert torch.equal(y, y2), f"outputs, train={training}"
        assert y.any()
        _assert_equal(plain, patched)
        functional.reset_net(plain)
        functional.reset_net(patched)
    return patched


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("name", ZOO)
def test_zoo_in_multi_step_mode(name: str) -> None:
    case = ZOO[name]
    x = torch.rand(TIMESTEPS, 2, *case.shape) * case.scale
    net = case.make()
    functional.set_step_mode(net, "m")
    _excitable(net, x)
    for training in (True, False):
        rates = firing_rates(net.train(training), x)
        assert all(rate > 0 for rate in rates), (training, rates)
    patched = _compare(net, x, snn_ext.IMP(init="rest"))
    # The patched network is not the plain one in disguise: V0 is connected everywhere.
    v0_grads = gradients(patched, of_methods=True)
    assert len(v0_grads) == len(rates)
    assert all(g is not None and bool(g.any()) for g in v0_grads.values())


@pytest.mark.usefixtures("framework_step")
def test_zoo_in_a_hand_written_loop() -> None:
    case = ZOO["sew_resnet18"]
    x = torch.rand(TIMESTEPS, 2, *case.shape) * case.scale
    loop = StepLoop(case.make())
    functional.set_step_mode(loop.net, "s")
    _excitable(loop, x)
    patched = _compare(loop, x, snn_ext.IMP(init="rest"))
    assert all(bool(g.any()) for g in gradients(patched, of_methods=True).values())


@pytest.mark.usefixtures("framework_step")
@pytest.mark.parametrize("shape", ["neuron", "channel", "layer", (1, 1, 1)])
@pytest.mark.parametrize("reset", [0.0, 0.3, None])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_every_shape_of_v0_is_neutral(shape: str | tuple[int, ...], reset: float | None, mode: str) -> None:
    x = torch.rand(TIMESTEPS, 3, 2, 6, 6) * 4
    net = conv_net(lambda: neuron.LIFNode(v_reset=reset), mode=mode)
    net = _excitable(net if mode == "m" else StepLoop(net), x)
    neurons = {"*6": None, "*": snn_ext.IMP(init="rest", shape=shape)} if isinstance(shape, tuple) else None
    option = neurons or snn_ext.IMP(init="rest", shape=shape)
    _compare(net, x, option)


def test_float64_networks_are_neutral_too() -> None:
    """V0 must have the precision of the network: 0.3 is not representable in float32."""
    x = torch.rand(TIMESTEPS, 3, 2, 6, 6, dtype=torch.float64) * 4
    net = _excitable(conv_net(lambda: neuron.LIFNode(v_reset=0.3)).double(), x)
    patched = _compare(net, x, snn_ext.IMP(init="rest"))
    assert patched[2].imp.dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
def test_a_start_that_is_off_by_little_is_noticed(training: bool) -> None:
    """The wrong twin of every test above: it must fail on V0 = rest + 0.001."""
    x = torch.rand(TIMESTEPS, 3, 2, 6, 6) * 4
    net = _excitable(conv_net(), x).train(training)
    patched = snn_ext.patch(copy.deepcopy(net), imp=snn_ext.IMP(init=0.001), example_input=x)
    _train_step(net, x)
    _train_step(patched, x)
    with pytest.raises(AssertionError, match="gradient of"):
        _assert_equal(net, patched)


def test_an_empty_batch_is_neutral() -> None:
    net = nn.Sequential(neuron.LIFNode(step_mode="m"))
    patched = snn_ext.patch(copy.deepcopy(net), imp=True, example_input=torch.zeros(TIMESTEPS, 1, 3))
    x = torch.zeros(TIMESTEPS, 0, 3)
    assert torch.equal(net(x), patched(x))
    patched(x).sum().backward()
    assert not patched[0].imp.grad.any()


def test_patching_with_an_example_leaves_the_running_statistics_alone() -> None:
    x = torch.rand(TIMESTEPS, 3, 2, 6, 6) * 4
    net = conv_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    generator = torch.get_rng_state()
    snn_ext.plan(net, imp=True, example_input=x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    with torch.no_grad():  # the wrong twin: an ordinary forward does change them
        net(x)
    assert not all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
