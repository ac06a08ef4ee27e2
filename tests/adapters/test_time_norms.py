"""BNTT and TEBN in both frameworks: neutral, the right slot at every step, undone exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

import snn_ext
from snn_ext import BNTT, TEBN, OptionError, TimestepError

STEPS = 4


class Loop(nn.Module):
    """snnTorch: a class net with its own loop, started in three ways."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start
        self.conv, self.bn, self.lif1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), snn.Leaky(beta=0.75)
        self.fc, self.lif2 = nn.Linear(4 * 36, 5), snn.Leaky(beta=0.75)

    def forward(self, x: Tensor, steps: int = STEPS) -> Tensor:
        mem1, mem2, out = None, None, []
        if self.start == "init_leaky":
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        elif self.start == "zeros":
            mem1, mem2 = torch.zeros(len(x), 4, 6, 6), torch.zeros(len(x), 5)
        elif self.start == "reset_mem":
            self.lif1.reset_mem()
            self.lif2.reset_mem()
        for _ in range(steps):
            spikes, mem1 = self.lif1(self.bn(self.conv(x)), mem1)
            _, mem2 = self.lif2(self.fc(spikes.flatten(1)), mem2)
            out.append(mem2)
            if self.start == "reset_mem":
                mem1 = mem2 = None
        return torch.stack(out)


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        snn.Leaky(beta=0.75, init_hidden=True),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        snn.Leaky(beta=0.75, init_hidden=True, output=True),
    )


def run_sequential(net: nn.Module, x: Tensor, steps: int = STEPS) -> Tensor:
    utils.reset(net)
    return torch.stack([net(x)[1] for _ in range(steps)])


def spikingjelly(mode: str, contained: bool = False) -> nn.Sequential:
    conv, bn = layer.Conv2d(1, 4, 3), layer.BatchNorm2d(4)
    net = nn.Sequential(conv, bn, neuron.LIFNode(), layer.Flatten(), layer.Linear(4 * 36, 5))
    functional.set_step_mode(net, mode)
    if contained:
        block = layer.SeqToANNContainer(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        net = nn.Sequential(block, *list(net)[2:])
    return net


def run_m(net: nn.Module, x: Tensor, steps: int = STEPS) -> Tensor:
    functional.reset_net(net)
    return net(torch.stack([x] * steps))  # type: ignore[no-any-return]


def run_s(net: nn.Module, x: Tensor, steps: int = STEPS) -> Tensor:
    functional.reset_net(net)
    return torch.stack([net(x) for _ in range(steps)])


def run_loop(net: nn.Module, x: Tensor, steps: int = STEPS) -> Tensor:
    return net(x, steps)  # type: ignore[no-any-return]


Run = Callable[..., Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], Run, bool]] = {
    "spikingjelly m": (lambda: spikingjelly("m"), run_m, True),
    "spikingjelly container": (lambda: spikingjelly("m", contained=True), run_m, True),
    "spikingjelly s": (lambda: spikingjelly("s"), run_s, False),
    "snntorch init_leaky": (lambda: Loop("init_leaky"), run_loop, False),
    "snntorch zeros": (lambda: Loop("zeros"), run_loop, False),
    "snntorch reset_mem": (lambda: Loop("reset_mem"), run_loop, False),
    "snntorch sequential": (sequential, run_sequential, False),
}


def trained(case: str) -> tuple[nn.Module, Run, Tensor]:
    """A net whose batch norm has statistics and an affine of its own, driven hard enough to fire."""
    make, run, _ = CASES[case]
    net, x = make(), torch.rand(3, 1, 8, 8) * 6
    for _ in range(3):
        run(net, x)
    (bn,) = (m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    with torch.no_grad():
        bn.weight.uniform_(0.5, 1.5)
        bn.bias.uniform_(0.2, 1.0)
    snn_ext.reset(net)
    return net, run, x


def options(case: str) -> list[dict[str, Any]]:
    joint = CASES[case][2]
    return [{"bntt": BNTT(bias=True)}, {"tebn": True if joint else TEBN(stats="step")}]


@pytest.mark.parametrize("case", CASES)
def test_fresh_norms_change_no_bit_in_eval_mode(case: str) -> None:
    for option in options(case):
        net, run, x = trained(case)
        expected = run(net.eval(), x)
        assert expected.any()
        snn_ext.reset(net)
        snn_ext.patch(net, timesteps=STEPS, **option)
        assert torch.equal(run(net, x), expected)
        assert torch.equal(run(net, x), expected), "and again after the framework's own reset"
        snn_ext.unpatch(net)


def norm_of(net: nn.Module) -> Any:
    return next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("case", CASES)
def test_every_step_uses_its_own_slot(case: str) -> None:
    """With a scale of t + 1 at step t, the norm's output tells which slot was used."""
    net, run, x = trained(case)
    plain = copy.deepcopy(net).eval()
    seen: list[Tensor] = []
    norm_of(plain).register_forward_hook(lambda m, i, o: seen.append(o))
    run(plain, x)
    expected = torch.stack(seen) if len(seen) > 1 else seen[0].view(STEPS, -1, 4, 6, 6)
    snn_ext.patch(net, timesteps=STEPS, **options(case)[1])
    with torch.no_grad():
        norm_of(net).tebn.scale.copy_(torch.arange(1.0, STEPS + 1))
    got: list[Tensor] = []
    norm_of(net).register_forward_hook(lambda m, i, o: got.append(o))
    for _ in range(2):
        got.clear()
        run(net.eval(), x)
        outputs = torch.stack(got) if len(got) > 1 else got[0].view(STEPS, -1, 4, 6, 6)
        scale = torch.arange(1.0, STEPS + 1).view(-1, 1, 1, 1, 1)
        assert torch.equal(outputs, expected * scale)
    assert not torch.equal(outputs, expected), "the twin: one slot for all steps is another output"


@pytest.mark.parametrize("case", CASES)
def test_fewer_steps_are_fine_and_more_are_named(case: str) -> None:
    net, run, x = trained(case)
    snn_ext.patch(net, bntt=True, timesteps=STEPS).eval()
    whole = run(net, x)
    assert torch.equal(run(net, x, STEPS - 1), whole[:-1])
    with pytest.raises(TimestepError, match=r"(?s)made for 4 steps.*do: call snn_ext\.reset"):
        run(net, x, STEPS + 1)
    snn_ext.reset(net)
    assert torch.equal(run(net, x), whole), "after a reset everything works again"


@pytest.mark.parametrize("case", ["spikingjelly s", "snntorch sequential"])
def test_a_missing_reset_is_named(case: str) -> None:
    net, run, x = trained(case)
    snn_ext.patch(net, bntt=True, timesteps=STEPS).eval()
    run(net, x)
    with pytest.raises(TimestepError, match="the reset between two sequences is missing"):
        net(x)


def test_states_kept_elsewhere_by_the_user_never_use_a_wrong_slot() -> None:
    """The root is called once per step, and the states are neither arguments nor hidden."""

    class Keeper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.bn, self.lif = nn.Linear(4, 4), nn.BatchNorm1d(4), snn.Leaky(beta=0.75)
            self.kept: Any = None

        def forward(self, x: Tensor) -> Tensor:
            spikes, self.kept = self.lif(self.bn(self.fc(x)), self.kept)
            return spikes  # type: ignore[no-any-return]

    net = snn_ext.patch(Keeper(), bntt=True, timesteps=STEPS).eval()
    net(torch.rand(2, 4))
    with pytest.raises(TimestepError, match="its neuron for step 2"):
        net(torch.rand(2, 4))


def test_an_unused_neuron_cannot_keep_time() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.spare, self.lif = nn.BatchNorm1d(4), snn.Leaky(beta=0.5), snn.Leaky(beta=0.5)

        def forward(self, x: Tensor) -> Tensor:
            mem = self.lif.init_leaky()
            for _ in range(STEPS):
                spikes, mem = self.lif(self.bn(x), mem)
            return spikes  # type: ignore[no-any-return]

    x = torch.rand(2, 4)
    wrong = snn_ext.patch(Unused(), bntt=True, timesteps=STEPS).eval()
    with pytest.raises(TimestepError, match=r"do: .*pass example_input"):
        wrong(x)
    right = snn_ext.patch(Unused(), bntt=True, example_input=x).eval()
    right(x)


@pytest.mark.parametrize("case", CASES)
def test_training_saving_and_undoing(case: str, tmp_path: Path) -> None:
    for option in (*options(case), {"bntt": True, "imp": snn_ext.IMP(shape="channel"), "mpbn": True}):
        net, run, x = trained(case)
        fresh, before = copy.deepcopy(net), copy.deepcopy(net.state_dict())
        example = torch.stack([x] * STEPS) if CASES[case][2] else x
        snn_ext.patch(net, timesteps=STEPS, example_input=example, **option)
        optimizer = torch.optim.SGD(snn_ext.param_groups(net, lr=0.01))
        for _ in range(3):
            snn_ext.reset(net)
            optimizer.zero_grad()
            snn_ext.loss(net, "tet")(run(net.train(), x), torch.tensor([0, 1, 2])).backward()
            optimizer.step()
        for name, parameter in net.named_parameters():
            if "lif2.mpbn" not in name and "5.mpbn" not in name and parameter.requires_grad:
                # a norm that only decides on the output's spikes does not reach its membrane
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
        snn_ext.reset(net)
        snn_ext.save(net.eval(), tmp_path / "net")
        assert torch.equal(run(snn_ext.load(fresh, tmp_path / "net").eval(), x), run(net, x))
        snn_ext.reset(net)
        snn_ext.unpatch(net)
        assert list(net.state_dict()) == list(before)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
        assert type(norm_of(net)) in (nn.BatchNorm2d, layer.BatchNorm2d)
        assert norm_of(net).bias.requires_grad


def test_older_checkpoints_fill_every_slot() -> None:
    old, _, _ = trained("spikingjelly m")
    net = snn_ext.patch(spikingjelly("m"), bntt=BNTT(bias=True), timesteps=STEPS)
    with pytest.warns(UserWarning, match="start as copies of the batch norm's"):
        net.load_state_dict(old.state_dict(), strict=True)
    reference = norm_of(old).state_dict()
    for slot in norm_of(net).bntt:
        assert all(torch.equal(value, reference[key]) for key, value in slot.state_dict().items())


def test_the_number_of_steps_must_be_known() -> None:
    with pytest.raises(OptionError, match=r"do: pass timesteps=T"):
        snn_ext.patch(sequential(), bntt=True)
    with pytest.raises(OptionError, match=r"do: pass timesteps=T"):
        snn_ext.patch(sequential(), bntt=True, example_input=torch.rand(2, 1, 8, 8))
    seen = snn_ext.patch(Loop("init_leaky"), bntt=True, example_input=torch.rand(2, 1, 8, 8))
    assert len(seen.bn.bntt) == STEPS - 1


def test_what_makes_no_sense_is_refused() -> None:
    net = spikingjelly("m")
    with pytest.raises(OptionError, match="BNTT and TEBN cannot both"):
        snn_ext.patch(net, bntt=True, tebn=True, timesteps=STEPS)
    with pytest.raises(snn_ext.UnsupportedSiteError, match=r"TEBN\(stats='step'\)"):
        snn_ext.patch(Loop("zeros"), tebn={"bn": True}, timesteps=STEPS)
    with pytest.raises(snn_ext.NothingMatchedError, match=r"TEBN\(stats='step'\)"):
        snn_ext.patch(Loop("zeros"), tebn=True, timesteps=STEPS)
    tebn = snn_ext.patch(net, tebn=True, timesteps=STEPS)
    for steps in (1, STEPS - 1):
        with pytest.raises(TimestepError, match="is trained with"):
            run_m(tebn.train(), torch.rand(3, 1, 8, 8), steps)
