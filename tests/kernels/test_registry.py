"""Which backend runs what, why, and how the user says otherwise."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from snn_ext import BackendUnavailableError, Dynamics, Leak, OptionError
from snn_ext.kernels import candidates, reference_backend, registry
from snn_ext.kernels.arguments import Call
from snn_ext.kernels.registry import Choice, backends, choose, run, use_backend
from snn_ext.surrogates import ATan, Surrogate

LIF = Dynamics(leak=Leak(2.0))


@dataclass(frozen=True)
class Odd(Surrogate):
    """A user's surrogate, derived from one the kernels know."""

    alpha: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)


class OddATan(ATan):
    """Changes what a known surrogate does."""


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No wish from outside, nothing logged yet, and a record of who ran."""
    monkeypatch.delenv("SNN_EXT_BACKEND", raising=False)
    monkeypatch.setattr(registry, "_logged", set())
    ran: list[str] = []
    for name, backend in candidates.BACKENDS.items():

        def spy(call: Call, name: str = name, real: Any = backend.run) -> Any:
            ran.append(name)
            return real(call) if name in ("host", "reference") else reference_backend.run(call)

        fake = backend._replace(run=spy)
        if name == "torch":
            fake = fake._replace(unavailable=lambda: None)  # whether it is there or not
        monkeypatch.setitem(candidates.BACKENDS, name, fake)
    return ran


def call(dynamics: Dynamics = LIF, **more: Any) -> Call:
    return Call(torch.randn(3, 2, 4), dynamics, **more)


def test_auto_takes_the_fastest(ran: list[str]) -> None:
    assert choose(call()) == choose(LIF) == Choice("host", "")
    run(call())
    assert ran == ["host"]


@pytest.mark.parametrize(
    ("dynamics", "dtype", "reason"),
    [
        (Dynamics(surrogate=Odd()), torch.float32, "do not know the surrogate Odd"),
        (Dynamics(surrogate=OddATan()), torch.float32, "do not know the surrogate OddATan"),
        (Dynamics(gain=torch.ones((), requires_grad=True)), torch.float32, "no gradient for the gain"),
        (Dynamics(decay=torch.ones(4).double()), torch.float32, "a decay of torch.float64"),
        (Dynamics(threshold=torch.ones(4).double()), torch.float16, "a threshold of torch.float64"),
        (LIF, torch.int32, "do not know torch.int32"),
    ],
    ids=["surrogate", "subclass", "gain", "decay", "threshold", "integers"],
)
def test_what_no_kernel_covers_runs_in_torch(dynamics: Dynamics, dtype: torch.dtype, reason: str) -> None:
    choice = choose(dynamics, dtype=dtype)
    assert choice.name == "torch"
    assert choice.reason.startswith("host: ")
    assert reason in choice.reason
    with use_backend("host"), pytest.raises(BackendUnavailableError, match=reason):
        choose(dynamics, dtype=dtype)


def test_the_gain_of_a_leak_follows_from_it() -> None:
    assert choose(Dynamics(leak=Leak(torch.tensor(0.5, requires_grad=True), divide=False))).name == "host"


def test_double_scalars_do_not_widen_the_membrane() -> None:
    d = Dynamics(decay=torch.tensor(0.9, dtype=torch.float64), threshold=torch.tensor(1))
    assert choose(d).name == "host"
    got, expected = run(call(d, store=True)), reference_backend.run(call(d, store=True))
    assert got.membrane.dtype is expected.membrane.dtype


def test_folded_decisions_have_no_gradient(ran: list[str]) -> None:
    folded = (torch.rand(4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    run(call(folded=folded))
    x = torch.randn(3, 2, 4, requires_grad=True)
    run(Call(x, LIF, folded=folded))
    with torch.no_grad():
        run(Call(x, LIF, folded=folded))
    assert ran == ["host", "torch", "host"]


def test_undetached_decisions_on_carried_membranes_run_in_torch(ran: list[str]) -> None:
    for detach, name in ((True, "host"), (False, "torch")):
        d = Dynamics(timing="delayed", detach_reset=detach)
        x = torch.randn(3, 2, 4, requires_grad=True)
        run(Call(x, d, v=torch.rand(2, 4), resume=True))
        assert ran[-1] == name


def test_transforms_need_the_reference(ran: list[str]) -> None:
    x = torch.randn(3, 2, 4)
    torch.func.grad(lambda x: run(Call(x, LIF)).spikes.sum())(x)
    torch.func.vmap(lambda x: run(Call(x, LIF)).spikes, in_dims=1)(x.unsqueeze(2))
    with torch.device("meta"):
        run(Call(torch.randn(3, 2, 4), LIF))
    assert ran == ["reference", "reference", "torch"]


def test_subclasses_of_tensor_need_the_reference(ran: list[str]) -> None:
    class Own(Tensor):
        pass

    run(Call(torch.randn(3, 2, 4).as_subclass(Own), LIF))
    run(Call(torch.nn.Parameter(torch.randn(3, 2, 4)), LIF))
    assert ran == ["reference", "host"]


@pytest.mark.parametrize("name", ["auto", "host", "torch", "reference"])
def test_a_backend_by_name(name: str, ran: list[str]) -> None:
    with use_backend(name):
        run(call())
        choice = choose(call())
    assert ran == ["host" if name == "auto" else name]
    assert choice == (Choice("host", "") if name == "auto" else Choice(name, "asked for by name"))


def test_a_backend_by_environment(monkeypatch: pytest.MonkeyPatch, ran: list[str]) -> None:
    monkeypatch.setenv("SNN_EXT_BACKEND", "reference")
    run(call())
    with use_backend("host"):  # the code has the last word
        run(call())
    assert ran == ["reference", "host"]
    monkeypatch.setenv("SNN_EXT_BACKEND", "gpu")
    with pytest.raises(OptionError, match="SNN_EXT_BACKEND got 'gpu'"):
        run(call())


def test_blocks_nest_and_end_with_errors(ran: list[str]) -> None:
    def fails() -> None:
        with use_backend("reference"):
            with use_backend("torch"):
                run(call())
            run(call())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    run(call())
    assert ran == ["torch", "reference", "host"]


def test_a_choice_is_for_its_thread(ran: list[str]) -> None:
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: run(call()))
        thread.start()
        thread.join()
        run(call())
    assert ran == ["host", "reference"]


def test_the_backward_pass_may_come_later(ran: list[str]) -> None:
    x = torch.randn(3, 2, 4, requires_grad=True)
    with use_backend("host"):
        result = run(Call(x, LIF))
    with use_backend("reference"):
        result.spikes.sum().backward()
    assert x.grad is not None


def test_unknown_names_teach() -> None:
    with pytest.raises(OptionError, match=r"do: use one of 'auto', 'cupy', 'host', 'torch', 'reference'"):
        use_backend("cuda").__enter__()


def test_a_refusal_lists_every_candidate_and_a_remedy() -> None:
    with use_backend("cupy"), pytest.raises(BackendUnavailableError) as caught:
        run(call())
    lines = str(caught.value).splitlines()
    assert "'cupy' was asked for" in lines[0]
    assert lines[1].strip() == "why: cupy: it is for cuda tensors, these are on cpu"
    assert [line.split(":")[0].strip() for line in lines[2:5]] == ["host", "torch", "reference"]
    assert lines[-1].startswith("  do: ")


def test_reasons_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "snn_ext"):
        for _ in range(3):
            run(call(Dynamics(surrogate=Odd())))
            run(call())
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "Odd" in record.getMessage()


def test_backends_for_the_doctor() -> None:
    found = {status.name: status for status in backends()}
    assert list(found) == ["cupy", "host", "torch", "reference"]
    assert found["host"].available
    assert found["reference"].available
    if not torch.cuda.is_available():
        assert found["cupy"].reason == "torch finds no CUDA device"
        assert "pip install" in found["cupy"].fix


def test_a_plan_for_cuda_needs_no_cuda() -> None:
    if torch.cuda.is_available():
        pytest.skip("about machines without CUDA")
    choice = choose(LIF, device="cuda")
    assert choice.name == "torch"
    assert choice.reason == "cupy: torch finds no CUDA device"
    assert choose(LIF, device="mps").reason == ""
