"""The device kernels compile for real GPUs, without a GPU: every specialisation, and nothing spills."""

from __future__ import annotations

import pytest

from snn_ext.kernels import cupy_backend
from snn_ext.kernels.spec import Spec
from tests.kernels import nvrtc

CHUNKS = 7

needs_nvrtc = pytest.mark.skipif(nvrtc.library() is None, reason="there is no NVRTC (nvidia-cuda-nvrtc)")


@needs_nvrtc
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_specialisation_compiles_without_spills(chunk: int, architecture: int) -> None:
    """Steps and neurons per thread take turns, so that each meets every kind of neuron."""
    kernels = nvrtc.specialisations()[chunk::CHUNKS]
    found = nvrtc.resources(kernels, architecture)
    assert len(found) == 2 * len(kernels)
    spilled = {name: r for name, r in found.items() if r.spill_bytes}
    assert not spilled
    most = max(r.registers for r in found.values())
    assert most <= 168, "three blocks of 128 threads fit"


def test_the_specialisations_are_all_there() -> None:
    kernels = [kernel for kernel, _ in nvrtc.specialisations()]
    assert len(kernels) == len(set(kernels)) > 70
    assert {k.charge for k in kernels} == {
        "PLAIN", "LEAK_INPUT_DIVIDE", "LEAK_INPUT_MULTIPLY", "LEAK_DIVIDE", "LEAK_MULTIPLY"
    }  # fmt: skip
    assert {(k.reset, k.delayed) for k in kernels} >= {
        ("HARD", True),
        ("SOFT", True),
        ("HARD", False),
        ("SOFT", False),
    }
    assert len({k.surrogate for k in kernels}) == 5
    assert len({k.io for k in kernels}) == 3
    assert {k.unrolled for k in kernels} == {0, 1, 4, 8, 16}


@needs_nvrtc
def test_errors_point_at_the_source() -> None:
    """The twin: source that does not compile is refused, with the name of the file and the line."""
    library = nvrtc.library()
    assert library is not None
    options = [*cupy_backend.options(Spec()), "--gpu-architecture=sm_80", "-DR=broken)"]
    with pytest.raises(RuntimeError, match=r"(neuron\.cu|cuh)\(\d+\): error"):
        nvrtc.compile_(library, cupy_backend.source(), options)
