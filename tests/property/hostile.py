"""Models that nobody should build, and options that nobody should pass: all of them must be survived.

Of the toy framework of `snn_ext.testing` unless neurons and norms are given; over data [T, B, WIDTH].
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from snn_ext import BNTT, IMP, MPBN, TEBN
from snn_ext.testing.toy import Neuron, Norm
from tests.property.trees import WIDTH, Block, Listed

__all__ = ["COMMON", "TOY", "Framework", "hostile_models", "hostile_options", "inputs"]

New = Callable[[], nn.Module]


class Greedy(nn.Module):
    """Has every attribute that it is asked for."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return f"my {name}"

    def forward(self, x: Tensor) -> Tensor:
        return x


class Grumpy(Neuron):
    """Answers questions about attributes that it does not have with an error of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.made = True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.__dict__.get("made"):
                raise LookupError(name) from None
            raise


class Sealed(Neuron):
    """Lets nobody set an attribute that it does not have already."""

    def __init__(self) -> None:
        super().__init__()
        self.sealed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("sealed") and name not in {
            *self.__dict__,
            *self._parameters,
            *self._modules,
            "v",
        }:
            raise AttributeError(f"{name} cannot be set")
        super().__setattr__(name, value)


class Uncopied(Neuron):
    """Copies of it are the object itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        return self


class Taken(Neuron):
    """Uses a name that a method would like to have."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_buffer(name, torch.zeros(2))


class Properly(Neuron):
    """Its properties fail."""

    @property
    def mpbn(self) -> Any:
        raise RuntimeError("not today")


class Falsy(nn.Module):
    """Is false, as an empty container is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __len__(self) -> int:
        return 0

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Cyclic(nn.Sequential):
    """Is inside itself; torch cannot print such a thing."""

    def __repr__(self) -> str:
        return f"Cyclic({', '.join(type(m).__name__ for m in self)})"


class Raises(nn.Module):
    """Raises for some of its inputs, when others before it have run."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0.5:
            raise self.error("midway")
        return x


class Draws(nn.Module):
    """Depends on the random generator, and has a buffer that every call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + 0.01 * torch.rand_like(x) * self.count


class Double(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def _parametrized() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(layer, "weight", Double())
    return layer


def _hooked(neuron: nn.Module) -> nn.Module:
    neuron.register_forward_hook(lambda module, args, result: result * 1.0)
    neuron.register_forward_pre_hook(lambda module, args: (args[0] + 0.25,))
    return neuron


def _childless() -> nn.Module:
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH))
    module.register_module("nothing", None)
    return Block(module[0], nn.Identity())


def _frozen(neuron: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), neuron).requires_grad_(False)


def _half_made() -> nn.Module:
    """A neuron whose __init__ was interrupted before it made anything of its own."""
    neuron = Neuron.__new__(Neuron)
    nn.Module.__init__(neuron)
    return neuron


@dataclass(frozen=True)
class Framework:
    """Neurons, norms, and what else only this framework has."""

    neuron: Callable[[st.DrawFn], nn.Module]
    norm: New
    leaves: Mapping[str, New]


COMMON: dict[str, New] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "dropout": lambda: nn.Dropout(0.5),
    "lazy": lambda: nn.LazyLinear(WIDTH),
    "parametrized": _parametrized,
    "greedy": Greedy,
    "raises": lambda: Raises(RuntimeError),
    "raises oddly": lambda: Raises(StopIteration),
    "draws": Draws,
    "none": _childless,
}
_TOY_LEAVES: dict[str, New] = {
    "other neuron": lambda: Neuron(threshold=0.5, floor=-0.5),
    "plain norm": lambda: Norm(WIDTH, affine=False, track_running_stats=False),
    "grumpy": Grumpy,
    "sealed": Sealed,
    "uncopied": Uncopied,
    "imp taken": lambda: Taken("imp"),
    "mpbn taken": lambda: Taken("mpbn"),
    "failing property": Properly,
    "half made": _half_made,
}
TOY = Framework(lambda draw: Neuron(), lambda: Norm(WIDTH), _TOY_LEAVES)
_AROUND = {"neuron": lambda neuron: neuron, "hooked": _hooked, "frozen": _frozen}
_MOSTLY = ["linear", "neuron", "neuron", "norm", "tied", "shared weights", "seq", "block", "listed", "falsy"]


@st.composite
def hostile_models(draw: st.DrawFn, framework: Framework = TOY) -> nn.Module:
    """Any tree of the above: nested, tied, with shared parameters, cycles, on meta, in half precision."""
    draw(st.random_module())  # weights
    pool: list[nn.Module] = []
    leaves = {**COMMON, "norm": framework.norm, **framework.leaves}

    def module(depth: int) -> nn.Module:
        kind = draw(st.sampled_from(_MOSTLY if not _rarely(draw, 6) else [*leaves, *_AROUND]))
        if kind == "tied" and pool:
            return draw(st.sampled_from(pool))
        if depth and kind == "seq":
            made: nn.Module = nn.Sequential(*(module(depth - 1) for _ in range(draw(st.integers(0, 3)))))
        elif depth and kind == "block":
            made = Block(module(depth - 1), module(depth - 1))
        elif depth and kind == "listed":
            made = Listed([module(depth - 1) for _ in range(draw(st.integers(1, 2)))])
        elif depth and kind == "falsy":
            made = Falsy(module(depth - 1))
        elif kind == "shared weights":
            made = _sharing(framework.neuron(draw), pool)
        elif kind in leaves:
            made = leaves[kind]()
        else:
            made = _AROUND.get(kind, _AROUND["neuron"])(framework.neuron(draw))
        pool.append(made)
        return made

    root = draw(st.sampled_from(["sequential"] * 20 + ["bare", "bare", "cycle", "data parallel"]))
    if root == "bare":
        model = module(0)
    else:
        made = [module(draw(st.integers(0, 2))) for _ in range(draw(st.integers(1, 4)))]
        if not _rarely(draw, 5):
            made = [nn.Linear(WIDTH, WIDTH), framework.neuron(draw), *made]
        model = Cyclic(*made) if root == "cycle" else nn.Sequential(*made)
    if root == "cycle":
        draw(st.sampled_from(pool))._modules["up"] = model
        return model
    if root == "data parallel":
        model = nn.DataParallel(model)
    return _converted(
        model, draw(st.sampled_from(["float32"] * 9 + ["float64", "half", "meta", "eval", "ran"]))
    )


def _rarely(draw: st.DrawFn, often: int) -> bool:
    """Once in so many draws (integers() would prefer small numbers)."""
    return draw(st.sampled_from([False] * (often - 1) + [True]))


def _sharing(neuron: nn.Module, pool: list[nn.Module]) -> nn.Module:
    """A neuron that shares its parameters with earlier ones, tied otherwise than by being one object."""
    for other in pool:
        if type(other) is type(neuron):
            shared = {k: p for k, p in other._parameters.items() if k in neuron._parameters}
            neuron._parameters.update(shared)
    return neuron


def _converted(model: nn.Module, how: str) -> nn.Module:
    lazy = any(isinstance(m, nn.LazyLinear) for m in model.modules())
    if how == "eval":
        return model.eval()
    if how == "float64" and not lazy:
        return model.double()
    if how == "half" and not lazy:
        return model.half()
    if how == "meta" and not lazy:
        return model.to("meta")
    if how == "ran":  # states from before, as after some training
        try:
            model(torch.rand(3, 2, WIDTH))
        except Exception:  # noqa: BLE001
            return model
    return model


def inputs() -> st.SearchStrategy[Any]:
    """Inputs of the right shape mostly; then empty ones, wrong ones, and containers of them."""
    right = st.builds(lambda b: torch.rand(3, b, WIDTH), st.integers(1, 3))
    empty = st.sampled_from([(0, 2, WIDTH), (3, 0, WIDTH), (3, 2, 0)]).map(torch.zeros)
    wrong = st.sampled_from([torch.rand(2, WIDTH + 1), torch.rand(WIDTH), "no tensor", [], {}, object()])
    strange = st.sampled_from([torch.full((3, 2, WIDTH), v) for v in (torch.nan, torch.inf, -torch.inf)])
    packed = right.flatmap(lambda x: st.sampled_from([(x,), [x], {"input": x}, (x, x)]))
    return st.one_of(*[right] * 9, strange, empty, wrong, packed)


def _imp(draw: st.DrawFn) -> Any:
    shapes = ["neuron", "neuron", "channel", "layer", "layer", (WIDTH,), (1,), (WIDTH, WIDTH)]
    inits = [0.0, "rest", "half", (0.2, 0.8), -3.0]
    squash = draw(st.sampled_from([None, None, "sigmoid"]))
    init = draw(st.sampled_from(["half", (0.2, 0.8)] if squash else inits))
    return IMP(init=init, shape=draw(st.sampled_from(shapes)), squash=squash)


def _value(draw: st.DrawFn, name: str) -> Any:
    kind = draw(st.sampled_from([*["on"] * 4, *["option"] * 4, "mapping", "off"]))
    if _rarely(draw, 16):
        kind = "nonsense"
    if kind == "nonsense":
        return draw(st.sampled_from([3, "yes", [], object, {3: True}, MPBN if name != "mpbn" else IMP]))
    if kind in ("off", "on"):
        return kind == "on"
    options: dict[str, Callable[[], Any]] = {
        "imp": lambda: _imp(draw),
        "mpbn": lambda: MPBN(features=draw(st.sampled_from(["channel", "element"]))),
        "bntt": lambda: BNTT(bias=draw(st.booleans()), at=draw(st.sampled_from(["auto", "norm", "neuron"]))),
        "tebn": lambda: TEBN(stats=draw(st.sampled_from(["joint", "step"]))),
    }
    if kind == "option":
        return options[name]()
    pattern = draw(_patterns()) if _rarely(draw, 4) else re.compile(".*first")
    return {pattern: draw(st.sampled_from([None, True])), "*": options[name]()}


def _patterns() -> st.SearchStrategy[Any]:
    return st.sampled_from(["*", "0", "1", "2", "0.*", "*.first", "no.such", re.compile(r"\d"), ""])


@st.composite
def hostile_options(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments of `patch`."""
    options: dict[str, Any] = {"imp": _value(draw, "imp")}
    for name in ("mpbn", "bntt", "tebn"):
        if _rarely(draw, 3):
            options[name] = _value(draw, name)
    if not _rarely(draw, 5):
        options["example_input"] = draw(inputs())
    if draw(st.booleans()):
        wrong = _rarely(draw, 16)
        options["timesteps"] = draw(st.sampled_from([0, -1, 2.5, True] if wrong else [3, 3, 3, 1, 5]))
    if _rarely(draw, 8):
        options[draw(st.sampled_from(["include", "exclude"]))] = draw(_patterns())
    if _rarely(draw, 32):
        options["inp"] = True
    return copy.copy(options)
