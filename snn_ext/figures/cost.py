"""Figure 6 of the IMP paper: what a learnable initial potential costs in time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from snn_ext import kernels
from snn_ext.dynamics.description import Dynamics
from snn_ext.errors import OptionError
from snn_ext.figures.stopwatch import Way, interleaved, ratio

__all__ = ["Overhead", "overhead"]


@dataclass(frozen=True, eq=False)
class Overhead:
    """What `overhead` returns; all arrays are [len(timesteps), len(neurons)].

    Attributes:
        neurons, timesteps: the axes, N and T.
        plain, imp: seconds of one forward and backward pass without and with V0, median over rounds.
        ratio: imp / plain of the same round, median over rounds; `low` and `high` are its quartiles.
        batch: samples, over which V0 is shared.
        rounds: how often both were run in turn.
        device: "cpu" (processor time) or "cuda" (time between events).
        backend: what ran the neurons.
    """

    neurons: tuple[int, ...]
    timesteps: tuple[int, ...]
    plain: NDArray[np.float64]
    imp: NDArray[np.float64]
    ratio: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    batch: int
    rounds: int
    device: str
    backend: str


def overhead(
    neurons: Sequence[int] = (2**8, 2**12, 2**16),
    timesteps: Sequence[int] = (2, 4, 8, 16, 32),
    *,
    batch: int = 1,
    rounds: int = 15,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Overhead:
    """Time forward and backward of one layer of IF neurons, with and without learnable V0.

    Runs what patched models run (`snn_ext.kernels`; `use_backend` chooses): gradients of the input, and with
    IMP of V0, one value per neuron. Both ways run in turn in every round. (The authors' script times the
    backward pass alone, of ten nodes of which only the first starts from V0.)

    Args:
        neurons: N, neurons of the layer.
        timesteps: T.
        batch: samples; V0 is shared over them, so 1 shows it at its dearest.
        rounds: how often both are run in turn.
        device: "cpu" or "cuda"; None for CUDA where there is one.
        progress: show a bar on stderr.

    Raises:
        OptionError: a number that is not positive, or no such device.

    Source: IMP (Shen et al., NeurIPS 2024), Figure 6.
    """
    place = _device(device)
    for name, given in (
        ("neurons", neurons),
        ("timesteps", timesteps),
        ("batch", [batch]),
        ("rounds", [rounds]),
    ):
        if not len(given) or not all(isinstance(n, int) and n > 0 for n in given):
            raise OptionError(f"{name}={given!r} is not possible.", do="pass positive numbers")
    cases = list(itertools.product(timesteps, neurons))
    console = Console(stderr=True, quiet=not progress)
    shown = track(cases, description="overhead", console=console)
    found = np.array([_measure(*case, batch, rounds, place) for case in shown])
    plain, imp, middle, low, high = found.T.reshape(5, len(timesteps), len(neurons))
    backend = kernels.choose(_DYNAMICS, device=place).name
    return Overhead(
        tuple(neurons), tuple(timesteps), plain, imp, middle, low, high, batch, rounds, place.type, backend
    )


_DYNAMICS = Dynamics()


def _device(device: torch.device | str | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda") or (found.type == "cuda" and not torch.cuda.is_available()):
        raise OptionError(f"device={device!r} is not possible here.", do='pass device="cpu", or None')
    return found


def _measure(steps: int, count: int, batch: int, rounds: int, device: torch.device) -> tuple[float, ...]:
    shape = (steps, batch, count)
    generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers are not used up
    x = torch.randn(shape, generator=generator, device=device).add_(0.5).requires_grad_()
    gradient = torch.randn(shape, generator=generator, device=device)
    v0 = torch.zeros(count, device=device, requires_grad=True)
    ways = {"plain": _pass(x, None, gradient), "imp": _pass(x, v0, gradient)}
    with torch.enable_grad():
        times = interleaved(ways, rounds, device.type)
    compared = ratio(times["imp"], times["plain"])
    return float(np.median(times["plain"])), float(np.median(times["imp"])), *compared


def _pass(x: Tensor, v0: Tensor | None, gradient: Tensor) -> Way:
    """Forward and backward."""

    def way() -> None:
        x.grad = None
        if v0 is not None:
            v0.grad = None
        kernels.run(kernels.Call(x, _DYNAMICS, v0=v0)).spikes.backward(gradient)  # type: ignore[no-untyped-call]

    return way
