"""Statistics over processes, with a second process that has the same batch: every sum is doubled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import snn_ext
from snn_ext.methods import sync
from snn_ext.methods.batch_norms import BatchNorm, SynchronisedNorm
from snn_ext.methods.sync import SYNC, is_synchronised
from snn_ext.testing.toy import Neuron, Norm, ToyAdapter, registered

C = 3


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(sync.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(sync.distributed, "all_reduce", lambda tensor: tensor.mul_(2))


def norm(**options: object) -> BatchNorm:
    made = BatchNorm(C, 1e-3, 0.3, **options)  # type: ignore[arg-type]
    if made.affine:
        nn.init.uniform_(made.weight, 0.5, 2)
        nn.init.uniform_(made.bias)
    made.__dict__[SYNC] = True
    return made


@pytest.mark.parametrize("shape", [(5, C), (4, C, 2), (2, C, 3, 2)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_it_is_torchs_batch_norm_over_both_batches(
    shape: tuple[int, ...], options: dict[str, bool], two_processes: None
) -> None:
    ours = norm(**options)
    theirs = norm(**options)
    theirs.load_state_dict(ours.state_dict())
    del theirs.__dict__[SYNC]
    x = torch.randn(shape) * 2 + 3
    weights = torch.rand(shape)

    def gradients(layer: nn.Module, copies: int) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        y = layer(torch.cat([leaf] * copies))
        # every process has its own loss; the gradient of one reaches into the other's statistics
        (y * torch.cat([weights] * copies)).sum().backward()
        return [y[: len(x)].detach(), leaf.grad]  # type: ignore[list-item]

    (y, grad), (wanted, wanted_grad) = gradients(ours, 1), gradients(theirs, 2)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(2 * grad, wanted_grad)
    if ours.running_mean is not None:
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        assert int(ours.num_batches_tracked) == 1


def test_half_inputs_are_summed_in_single_precision(two_processes: None) -> None:
    ours, x = norm(affine=False), torch.randn(300, C).mul(3).add(40).half()
    wanted = torch.nn.functional.batch_norm(x.double(), None, None, training=True, eps=1e-3)
    y = ours(x)
    assert y.dtype is torch.float16
    torch.testing.assert_close(y.double(), wanted, rtol=0, atol=2e-3)


def test_alone_or_in_eval_mode_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(sync.distributed, "get_world_size", lambda: 1)
    ours, x = norm(), torch.randn(4, C)
    assert not is_synchronised(ours)
    torch.testing.assert_close(
        ours(x), nn.functional.batch_norm(x, None, None, ours.weight, ours.bias, True, 0, 1e-3)
    )
    monkeypatch.setattr(sync.distributed, "get_world_size", lambda: 2)
    assert is_synchronised(ours)
    assert not is_synchronised(BatchNorm(C)), "nobody asked for it"
    monkeypatch.setattr(sync.distributed, "is_initialized", lambda: False)
    assert not is_synchronised(ours)


@pytest.fixture
def toy_framework() -> Iterator[None]:
    with registered(ToyAdapter()):
        yield


def test_conversion_keeps_the_time_dimension(toy_framework: None, two_processes: None) -> None:
    net = nn.Sequential(nn.Linear(C, C), Norm(C), Neuron())
    snn_ext.patch(net, mpbn=True, example_input=torch.rand(4, 2, C))
    net.append(nn.BatchNorm1d(C))
    plain = torch.nn.functional.batch_norm
    x = torch.randn(4, 5, C)
    keys = list(net.state_dict())
    assert snn_ext.convert_sync_batchnorm(net) is net
    assert list(net.state_dict()) == keys
    assert isinstance(net[1], SynchronisedNorm)
    assert net[1]._ext_leading
    assert not net[3]._ext_leading
    assert not isinstance(net[2].mpbn.bn, SynchronisedNorm), "it is one of ours already"
    assert all(is_synchronised(m) for m in (net[1], net[2].mpbn.bn, net[3]))
    both = plain(torch.cat([x, x], dim=1).flatten(0, 1), None, None, training=True).view(4, 10, C)
    torch.testing.assert_close(net[1](x), both[:, :5])
    torch.testing.assert_close(net[3](x[0]), plain(torch.cat([x[0]] * 2), None, None, training=True)[:5])
    again = type(net[1])
    snn_ext.convert_sync_batchnorm(net)
    assert type(net[1]) is again
    net.eval()
    torch.testing.assert_close(net[3](x[0]), plain(x[0], net[3].running_mean, net[3].running_var))
