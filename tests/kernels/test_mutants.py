"""One-token changes of the source: each must be caught by the checks that the other files make."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from snn_ext import Dynamics, Leak
from snn_ext.kernels import build, fused
from snn_ext.kernels.arguments import Call
from snn_ext.surrogates import FastSigmoid, PiecewiseQuadratic, Rectangle, Sigmoid
from tests.kernels import harness, test_grid, test_numbers
from tests.kernels.cases import Values

DELAYED = {"timing": "delayed", "fires_at_equality": False}


@dataclass(frozen=True)
class Mutant:
    file: str
    old: str
    new: str
    call: str
    """The check that has to catch it."""


def calls() -> dict[str, Call]:
    """The smallest set of calls that sees everything; dyadic, so that thresholds are hit exactly."""
    values = Values(1, dyadic=True)

    def given(*shape: int, low: float = -2, high: float = 3) -> torch.Tensor:
        return values.tensor(*shape, low=low, high=high).requires_grad_()

    def call(dynamics: Dynamics, *, channels: int = 3, **more: torch.Tensor | bool) -> Call:
        return Call(given(5, 2, channels, 4), dynamics, store=True, **more)  # type: ignore[arg-type]

    def learned() -> torch.Tensor:
        return given(3, 1, low=0.5, high=1.5)

    carried = {"v": given(2, 3, 4), "v0": given(3, 4), "resume": True}
    affine = {"scale": given(5, 3), "shift": given(5, 3)}
    soft = {"decay": learned(), "gain": 0.75, "reset": "soft", "threshold": learned()}
    frozen = {name: p.detach() for name, p in affine.items()}
    signs = torch.tensor([[1.0], [-1.0], [1.0]])
    found = {
        "if": call(Dynamics(rest=0.25, threshold=learned())),
        "lif": call(Dynamics(leak=Leak(given(3, 4, low=1.5, high=3)), reset="soft", surrogate=Sigmoid())),
        "lif, no input": call(Dynamics(leak=Leak(3.0, input=False), surrogate=PiecewiseQuadratic())),
        "plif": call(
            Dynamics(leak=Leak(given(low=0.25, high=0.75), divide=False), surrogate=Rectangle()), **affine
        ),
        "frozen affine": call(Dynamics(surrogate=FastSigmoid(2.0)), **frozen),
        "soft": call(Dynamics(**soft, **DELAYED), v=carried["v"], v0=carried["v0"]),
        "resumed": call(Dynamics(**soft, **DELAYED, detach_reset=True), **carried),
        "hard": call(
            Dynamics(decay=learned(), rest=0.25, threshold=learned(), detach_reset=True, **DELAYED), **carried
        ),
        "folded": call(Dynamics(), folded=(torch.tensor([[1.0], [0.5], [0.0]]), signs)),
    }
    found["folded"] = replace(found["folded"], x=found["folded"].x.detach())
    every_second = found["if"].x.detach().repeat_interleave(2, 0)[::2].requires_grad_()
    found["strided"] = replace(found["if"], x=every_second)
    return found


MUTANTS = [
    Mutant("neuron.cuh", "p.decay * v + p.gain", "p.gain * v + p.gain", "soft"),
    Mutant("neuron.cuh", "p.gain * x + p.offset", "p.gain * x - p.offset", "hard"),
    Mutant(
        "neuron.cuh",
        "x - distance : distance;\n        lost",
        "x + distance : distance;\n        lost",
        "lif",
    ),
    Mutant("neuron.cuh", "lost / p.decay", "lost * p.decay", "lif"),
    Mutant("neuron.cuh", "v - lost + x", "v + lost + x", "lif, no input"),
    Mutant("neuron.cuh", "h >= p.folded", "h > p.folded", "folded"),
    Mutant("neuron.cuh", "h <= p.folded", "h < p.folded", "folded"),
    Mutant("neuron.cuh", "p.sign > 0", "p.sign < 0", "folded"),
    Mutant("neuron.cuh", "u >= 0 : u > 0", "u > 0 : u > 0", "if"),
    Mutant("neuron.cuh", "u >= 0 : u > 0", "u >= 0 : u >= 0", "soft"),
    Mutant("neuron.cuh", "+ p.rest * s", "- p.rest * s", "if"),
    Mutant("neuron.cuh", "return v - p.threshold * s", "return v + p.threshold * s", "lif"),
    Mutant(
        "neuron.cuh",
        "before = S::delayed && S::reset == HARD",
        "before = S::delayed && S::reset == SOFT",
        "hard",
    ),
    Mutant(
        "neuron.cuh",
        "after = S::delayed && S::reset == SOFT",
        "after = S::delayed && S::reset == HARD",
        "soft",
    ),
    Mutant("neuron.cuh", "(p.rest - h)", "(p.rest + h)", "if"),
    Mutant("neuron.cuh", "grad_s - of_soft * p.threshold", "grad_s + of_soft * p.threshold", "lif"),
    Mutant("neuron.cuh", "S::delayed ? g.h : of_reset", "S::delayed ? g.v : of_reset", "soft"),
    Mutant("neuron.cuh", "g.threshold - of_fire", "g.threshold + of_fire", "if"),
    Mutant("neuron.cuh", "g.threshold - of_soft * s", "g.threshold + of_soft * s", "soft"),
    Mutant("neuron.cuh", "-factor / (p", "factor / (p", "lif"),
    Mutant("neuron.cuh", "R(1) - (S::divides", "R(1) + (S::divides", "plif"),
    Mutant("neuron.cuh", "g.v * (R(1) - r)", "g.v * (R(1) + r)", "hard"),
    Mutant("neuron.cuh", "g.threshold - g.h * r", "g.threshold + g.h * r", "resumed"),
    Mutant("surrogates.cuh", "R(1) + w * w", "R(1) - w * w", "if"),
    Mutant(
        "surrogates.cuh",
        "(d * d);\n    } else if constexpr (KIND == PIECE",
        "(d + d);\n    } else if constexpr (KIND == PIECE",
        "lif",
    ),
    Mutant("surrogates.cuh", "1.6666665459e-1f", "1.6666665459e-2f", "lif"),
    Mutant("surrogates.cuh", "height < 0", "height > 0", "lif, no input"),
    Mutant("surrogates.cuh", "R(1) + a * absolute", "R(1) - a * absolute", "frozen affine"),
    Mutant("surrogates.cuh", "absolute(u) < b", "absolute(u) > b", "plif"),
    Mutant("numbers.cuh", "0x1p112f", "0x1p111f", "read Half"),
    Mutant("numbers.cuh", ">= 0x7c00u", "> 0x7c00u", "read Half"),
    Mutant("numbers.cuh", "raw) << 16", "raw) << 15", "read BFloat"),
    Mutant("numbers.cuh", "0x7fffu + ((u", "0x8000u + ((u", "written BFloat"),
    Mutant("numbers.cuh", "0xc8000fffu", "0xc8001000u", "written Half"),
    Mutant("numbers.cuh", "u < 0x38800000u", "u < 0x38000000u", "written Half"),
    Mutant(
        "grid.cuh", "from<IO>(a.x.data, t * a.x.step)", "from<IO>(a.x.data, t * a.spikes.step)", "strided"
    ),
    Mutant("grid.cuh", "last && a.grad_membrane", "!last && a.grad_membrane", "if"),
    Mutant("grid.cuh", "v.lane[k] + read_of", "v.lane[k] - read_of", "soft"),
    Mutant("grid.cuh", "a.unscaled ? grad_x", "!a.unscaled ? grad_x", "plif"),
    Mutant("grid.cuh", "h[t > 0 ? t - 1 : 0]", "h[t > 0 ? t : 0]", "soft"),
    Mutant("grid.cuh", "return (n / p.inner)", "return (n % p.inner)", "huge"),
    Mutant("grid.cuh", "(snn::i64(blockIdx.x)", "(unsigned(blockIdx.x)", "huge"),
    Mutant("lanes.cuh", "final[i] + stored[i]", "final[i] - stored[i]", "if"),
    Mutant("lanes.cuh", "carried[i] + v.lane[i]", "carried[i] - v.lane[i]", "soft"),
    Mutant("lanes.cuh", "x + shift.lane", "x - shift.lane", "frozen affine"),
    Mutant("lanes.cuh", "a.unscaled ? grad_input", "!a.unscaled ? grad_input", "plif"),
    Mutant("lanes.cuh", "h_from + (t - 1) * h_step", "h_from + t * h_step", "soft"),
    Mutant("lanes.cuh", "a.scale, t * a.scale_step", "a.scale, 0 * a.scale_step", "frozen affine"),
]


def check(name: str, sources: Path, *, host: bool) -> None:
    """One check on kernels made of another source; raises AssertionError."""
    launcher = harness.Host(sources) if host else harness.Emulated(1, sources)
    if name == "huge":
        return test_grid.check_huge("forward", 2**33 + 4 * 128, 1, sources)
    if name.split()[0] in ("read", "written"):
        dtype = torch.float16 if name.endswith("Half") else torch.bfloat16
        test = test_numbers.reads if name.startswith("read") else test_numbers.writes
        return test(dtype, launcher)
    call = calls()[name]
    unrolled = (None, 0) if host else (None, 5)
    launcher.prepare(fused.prepare(call, launcher, unrolled=u)[0].kernel for u in unrolled)
    for u in unrolled:
        harness.check(call, {"mutant": functools.partial(fused.run, launcher=launcher, unrolled=u)})
    return None


@pytest.mark.parametrize("number", range(len(MUTANTS)))
def test_mutants_are_caught(number: int, tmp_path: Path) -> None:
    mutant = MUTANTS[number]
    shutil.copytree(build.SOURCES, tmp_path / "src")
    path = tmp_path / "src" / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, "the mutant fits the source in one place"
    path.write_text(text.replace(mutant.old, mutant.new))
    with pytest.raises(AssertionError):
        check(mutant.call, tmp_path / "src", host=mutant.file == "lanes.cuh")


@pytest.mark.parametrize("host", [False, True], ids=["grid", "host"])
@pytest.mark.parametrize("name", sorted({m.call for m in MUTANTS}))
def test_the_source_itself_passes(name: str, host: bool) -> None:
    check(name, build.SOURCES, host=host)


def test_there_are_enough() -> None:
    assert len(MUTANTS) == len({(m.file, m.old, m.new) for m in MUTANTS}) >= 15
    assert {m.file for m in MUTANTS} == {
        f"{n}.cuh" for n in ("neuron", "surrogates", "numbers", "grid", "lanes")
    }
