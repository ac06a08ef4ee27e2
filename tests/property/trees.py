"""Random module trees: nested containers, tied modules, custom modules, several neurons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

WIDTH = 4


class Block(nn.Module):
    """A custom module with two children, run one after the other; the second may be the first."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Listed(nn.Module):
    """Runs a ModuleList and a ModuleDict."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.listed = nn.ModuleList(modules)
        self.named = nn.ModuleDict({f"m{i}": m for i, m in enumerate(modules[:1])})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in (*self.listed, *self.named.values()):
            x = module(x)
        return x


@st.composite
def trees(draw: st.DrawFn, neurons: Callable[[st.DrawFn], nn.Module]) -> nn.Module:
    """A tree in which every module keeps the shape [..., WIDTH] and at least one neuron occurs."""
    pool: list[nn.Module] = []

    def module(depth: int) -> nn.Module:
        kind = draw(st.sampled_from(["linear", "neuron", "neuron", "tied", "seq", "block", "listed"]))
        if kind == "tied" and pool:
            return draw(st.sampled_from(pool))
        if depth > 0 and kind == "seq":
            made: nn.Module = nn.Sequential(*(module(depth - 1) for _ in range(draw(st.integers(1, 3)))))
        elif depth > 0 and kind == "block":
            made = Block(module(depth - 1), module(depth - 1))
        elif depth > 0 and kind == "listed":
            made = Listed([module(depth - 1) for _ in range(draw(st.integers(1, 2)))])
        elif kind == "neuron":
            made = neurons(draw)
        else:
            made = nn.Linear(WIDTH, WIDTH)
        pool.append(made)
        return made

    parts = [module(draw(st.integers(0, 2))) for _ in range(draw(st.integers(1, 3)))]
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), neurons(draw), *parts)


@st.composite
def imp_options(draw: st.DrawFn) -> Any:
    """Any valid IMP."""
    from snn_ext import IMP

    squash = draw(st.sampled_from([None, "sigmoid"]))
    inside = st.floats(0.1, 0.9)
    init = draw(st.one_of(inside, st.just("half"), st.just((0.2, 0.8))))
    shape = draw(st.sampled_from(["neuron", "channel", "layer", (WIDTH,), (1,)]))
    return IMP(init=init, shape=shape, squash=squash)
