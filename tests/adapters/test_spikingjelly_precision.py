"""Half precision, autocast and float64: V0 and membrane keep float32 at least, spikes the input's type."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from tests.adapters.spikingjelly_nets import (
    TAKING,
    TIMESTEPS,
    Equations,
    StepLoop,
    base,
    conv_net,
    functional,
    gradients,
    make_neuron,
    neuron,
    neurons_of,
    patched_neuron,
    steps,
    surrogate,
)

FEATURES = (3, 4)
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
MODES = pytest.mark.parametrize("mode", ["s", "m"])


def _x(dtype: torch.dtype, timesteps: int = 6) -> Tensor:
    return (torch.rand(timesteps, 2, *FEATURES) * 2).to(dtype)


@HALVES
@MODES
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_half_inputs_run_on_a_float32_membrane(kind: str, mode: str, dtype: torch.dtype) -> None:
    """Bit by bit the float32 equations on the rounded inputs; the membrane is never rounded."""
    equations = Equations(kind=kind, tau=2.7, reset=None, surrogate="ATan")
    p = torch.rand(FEATURES)
    node = patched_neuron(equations.node(mode), p, FEATURES)
    x = _x(dtype)
    spikes = steps(node, x, mode)
    _, expected, membranes = equations.run(x.float(), p)
    assert spikes.dtype == dtype
    assert torch.equal(spikes.float(), expected)
    assert node.v.dtype == torch.float32
    assert torch.equal(node.v, membranes[-1])
    rounded = torch.stack([m.to(dtype).float() for m in membranes])
    assert not torch.equal(rounded, membranes)  # a half membrane would be another one
    spikes.float().sum().backward()
    assert node.imp.grad.dtype == torch.float32
    assert node.imp.grad.any()


@HALVES
@MODES
@pytest.mark.parametrize(
    "bump",
    [surrogate.Rect, surrogate.LeakyKReLU, surrogate.S2NN, surrogate.Sigmoid],
    ids=lambda bump: bump.__name__,
)
def test_surrogates_outside_the_fused_kernels(bump: type[nn.Module], mode: str, dtype: torch.dtype) -> None:
    node = neuron.LIFNode(surrogate_function=bump(), step_mode=mode)
    patched_neuron(node, torch.rand(FEATURES), FEATURES)
    x = _x(dtype)
    spikes = steps(node, x, mode)
    assert spikes.dtype == dtype
    assert node.v.dtype == torch.float32
    assert spikes.any()
    spikes.float().sum().backward()
    assert node.imp.grad.isfinite().all()


@HALVES
@pytest.mark.parametrize(("cls", "mode"), TAKING)
def test_every_class_that_runs_in_half_still_does(
    cls: type[nn.Module], mode: str, dtype: torch.dtype
) -> None:
    """Module and inputs in half precision, as after `model.half()`; two calls, so that states are carried."""
    plain = make_neuron(cls, mode).to(dtype)
    x = (torch.rand(TIMESTEPS, 2, 3, 4, 4) * 2).to(dtype)
    twin = copy.deepcopy(plain)
    expected = steps(twin, x, mode)
    # Where a norm inside the node was cast too, it accepts no float32 membrane.
    normed = any(True for child in plain.children() for _ in child.parameters())
    state = twin.v.dtype if normed else torch.float32
    example = x if mode == "m" else x[0]
    patched = snn_ext.patch(plain, imp=snn_ext.IMP(), example_input=example)
    assert patched.imp.dtype == torch.float32
    for _ in range(2):
        spikes = steps(patched, x, mode)
        assert spikes.dtype == expected.dtype == dtype
        assert patched.v.dtype == state
    spikes.float().sum().backward()
    snn_ext.reset(patched)
    steps(patched, x, mode).float().sum().backward()
    assert patched.imp.grad.any()
    assert patched.imp.grad.isfinite().all()


@MODES
def test_autocast_keeps_v0_and_membranes_in_float32(mode: str) -> None:
    x = torch.rand(TIMESTEPS, 4, 2, 6, 6) * 4
    net = conv_net(mode=mode)
    net = net if mode == "m" else StepLoop(net)
    snn_ext.patch(net, imp=True, example_input=x)
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    for node in neurons_of(net):
        node.register_forward_hook(lambda _, args, y: seen.append((args[0].dtype, y.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().sum().backward()
    # batch norm and linear of a CPU autocast region give bfloat16
    assert (torch.bfloat16, torch.bfloat16) in seen
    assert all(given == returned for given, returned in seen)
    assert all(node.v.dtype == torch.float32 for node in neurons_of(net))
    for name, grad in gradients(net, of_methods=True).items():
        assert net.get_parameter(name).dtype == torch.float32
        assert grad.dtype == torch.float32
        assert grad.any()


def test_tracing_under_autocast_does_not_change_the_parameters_precision() -> None:
    net = conv_net()
    with torch.autocast("cpu", torch.bfloat16):
        snn_ext.patch(net, imp=True, example_input=torch.rand(TIMESTEPS, 2, 2, 6, 6))
    assert {node.imp.dtype for node in neurons_of(net)} == {torch.float32}


@HALVES
@MODES
@pytest.mark.parametrize("cast", ["before", "after"])
def test_whole_networks_in_half(cast: str, mode: str, dtype: torch.dtype) -> None:
    x = torch.rand(TIMESTEPS, 4, 2, 6, 6) * 4
    net = conv_net(mode=mode).eval()
    net = net if mode == "m" else StepLoop(net)
    if cast == "before":
        net.to(dtype)
        snn_ext.patch(net, imp=True, example_input=x.to(dtype))
    else:
        snn_ext.patch(net, imp=True, example_input=x)
        net.to(dtype)
    y = net(x.to(dtype))
    assert y.dtype == dtype
    assert {node.v.dtype for node in neurons_of(net)} == {torch.float32}
    y.float().sum().backward()
    assert all(g is not None and g.isfinite().all() for g in gradients(net, of_methods=True).values())


@HALVES
@MODES
@pytest.mark.parametrize("bump", [surrogate.Sigmoid, surrogate.Rect])
def test_the_functional_path_returns_the_same_types(
    bump: type[nn.Module], mode: str, dtype: torch.dtype
) -> None:
    node = neuron.LIFNode(surrogate_function=bump(), step_mode=mode)
    patched_neuron(node, torch.rand(FEATURES), FEATURES)
    x = _x(dtype)
    x = x if mode == "m" else x[0]
    (spikes,), (v,) = base.to_functional_forward(node)((x,), (node.get_reset_value("v"),))
    assert spikes.dtype == dtype
    assert v.dtype == torch.float32
    assert torch.equal(spikes, node(x))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@MODES
def test_counts_of_events_are_inputs_too(mode: str, dtype: torch.dtype) -> None:
    """Integer frames give float spikes with a gradient, as in the plain neuron."""
    x = torch.randint(0, 3, (6, 2, *FEATURES)).to(dtype)
    plain = neuron.IFNode(v_threshold=2.0, step_mode=mode)
    patched = patched_neuron(copy.deepcopy(plain), 0.0, FEATURES)
    expected, spikes = steps(plain, x, mode), steps(patched, x, mode)
    assert spikes.dtype == expected.dtype == torch.float32
    assert torch.equal(spikes, expected)
    spikes.sum().backward()
    assert patched.imp.grad.any()


@MODES
def test_float64_membranes_stay_float64(mode: str) -> None:
    equations = Equations(kind="LIF", tau=2.7, reset=0.3)
    node = patched_neuron(equations.node(mode), 0.0, FEATURES).double()
    node.imp.data.uniform_()
    x = _x(torch.float64)
    spikes = steps(node, x, mode)
    _, expected, membranes = equations.run(x, node.imp.detach())
    assert torch.equal(spikes, expected)
    assert node.v.dtype == torch.float64
    assert torch.equal(node.v, membranes[-1])


@MODES
def test_a_membrane_set_by_the_user_is_not_rounded(mode: str) -> None:
    equations = Equations(kind="IF", reset=None)
    node = patched_neuron(equations.node(mode), 0.0, FEATURES)
    x = _x(torch.bfloat16)
    for chosen in (torch.rand(2, *FEATURES), 1 / 3):
        functional.reset_net(node)
        node.v = chosen
        steps(node, x, mode)
        assert torch.equal(node.v, equations.run(x.float(), torch.as_tensor(chosen))[2][-1])


def test_a_precision_chosen_by_the_user_wins() -> None:
    """`precision.prepare_model_for_precision` stores states as the user says, in 'm' mode."""
    node = patched_neuron(neuron.LIFNode(step_mode="m"), 0.25, FEATURES)
    x = _x(torch.bfloat16)
    node._neuron_precision = (torch.bfloat16, "fp32", "fp32")
    for state in (0.0, torch.rand(2, *FEATURES), 0.5):
        (v,) = node.materialize_states((x,), (state,), "m")
        assert v.dtype == torch.bfloat16
    node._neuron_precision = None
    (v,) = node.materialize_states((x,), (0.0,), "m")
    assert v.dtype == torch.float32
