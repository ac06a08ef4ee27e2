"""Options of the methods: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeGuard

from snn_ext.errors import OptionError

__all__ = ["BNTT", "IMP", "METHODS", "MPBN", "TEBN", "Method", "Shape", "TimeNorm"]

Shape = Literal["neuron", "channel", "layer"] | tuple[int, ...]
Init = float | tuple[float, float] | Literal["rest", "half"]


@dataclass(frozen=True)
class Method:
    """Base of all method options."""

    name: ClassVar[str]
    """Keyword of `patch`, and first part of the new state_dict keys (``<site>.<name>``)."""

    @property
    def needs(self) -> Literal["nothing", "channels", "features"]:
        """What must be known of a site to size the new parameters."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The options as plain data, for checkpoints and reports."""
        return asdict(self)


@dataclass(frozen=True)
class IMP(Method):
    """Learnable initial membrane potential: V[0] = phi(p), shared over the batch.

    V0 is *absolute* (membrane units), not an offset from the reset value, and it is read at the
    first step of every sequence. Its effect there is ``decay * V0``: in a LIF neuron with tau = 2
    half as strong as in an IF neuron.

    Args:
        init: start value of V0 in membrane units: a float (constant), a (low, high) uniform range,
            ``"rest"`` (the value the framework itself starts from: leaves every output unchanged), or
            ``"half"`` (threshold / 2 +- 0.1). None: (-0.2, 0.2), the authors' range; with
            `squash`, whose values lie in (0, 1), (0.4, 0.6), the authors' later range.
        shape: what has a V0 of its own: every ``"neuron"`` ([C, H, W]), every ``"channel"``
            ([C, 1, 1]), the ``"layer"`` (a scalar), or an explicit shape that broadcasts to one
            sample at one step.
        squash: ``"sigmoid"`` keeps V0 in (0, 1): V0 = logistic(p), and p is what is stored.

    Raises:
        OptionError: a value of the wrong kind, or an `init` outside the range of `squash`.

    Source: Shen et al., NeurIPS 2024, and its published code.
    """

    name: ClassVar[str] = "imp"

    init: Init | None = None
    shape: Shape = "neuron"
    squash: Literal["sigmoid"] | None = None

    def __post_init__(self) -> None:
        if self.squash not in (None, "sigmoid"):
            raise _impossible("squash", self.squash, "use squash=None or squash='sigmoid'")
        init = self.init
        if init is None:
            init = (0.4, 0.6) if self.squash else (-0.2, 0.2)
        object.__setattr__(self, "init", _checked_init(init, squashed=self.squash is not None))
        object.__setattr__(self, "shape", _checked_shape(self.shape))

    @property
    def needs(self) -> Literal["nothing", "channels", "features"]:
        return {"neuron": "features", "channel": "channels"}.get(str(self.shape), "nothing")  # type: ignore[return-value]


@dataclass(frozen=True)
class MPBN(Method):
    """Batch norm on the membrane before firing: S[t] = 1[BN(H[t]) > theta].

    One norm per neuron layer, called once per step: training uses the statistics of every single
    step, and the running statistics get T updates per sequence; inference uses the running ones.

    Args:
        features: what has statistics and an affine of its own: every ``"channel"`` (over batch and
            space, the authors) or every ``"element"`` (over the batch only; fixes the resolution).
        carry: what is reset and carried to the next step: the ``"raw"`` H (the authors' code; folds
            exactly, see `snn_ext.fold`) or the ``"normalised"`` one (SpikingJelly's MPBNLIFNode).
        eps, momentum, affine: of the batch norm.

    Raises:
        OptionError: a value of the wrong kind.

    Source: Guo et al., ICCV 2023, and its published code.
    """

    name: ClassVar[str] = "mpbn"

    features: Literal["channel", "element"] = "channel"
    carry: Literal["raw", "normalised"] = "raw"
    eps: float = 1e-5
    momentum: float = 0.1
    affine: bool = True

    def __post_init__(self) -> None:
        if self.features not in ("channel", "element"):
            raise _impossible("features", self.features, "use 'channel' or 'element'", "MPBN")
        if self.carry not in ("raw", "normalised"):
            raise _impossible("carry", self.carry, "use 'raw' or 'normalised'", "MPBN")
        _check_norm("MPBN", self.eps, self.momentum)

    @property
    def needs(self) -> Literal["nothing", "channels", "features"]:
        return "channels" if self.features == "channel" else "features"


@dataclass(frozen=True)
class TimeNorm(Method):
    """What BNTT and TEBN have in common."""

    at: Literal["auto", "norm", "neuron"] = field(default="auto", kw_only=True)
    eps: float | None = field(default=None, kw_only=True)
    momentum: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.at not in ("auto", "norm", "neuron"):
            raise _impossible("at", self.at, "use 'auto', 'norm' or 'neuron'", type(self).__name__)
        _check_norm(
            type(self).__name__,
            1e-5 if self.eps is None else self.eps,
            0.1 if self.momentum is None else self.momentum,
        )

    @property
    def needs(self) -> Literal["nothing", "channels", "features"]:
        return "channels"


@dataclass(frozen=True)
class BNTT(TimeNorm):
    """Batch norm through time: an independent batch norm per step, gamma_t and statistics of its own.

    Args:
        bias: add beta_t. The authors have none, so that converting a batch norm that has one changes
            its output; with ``bias=True`` a fresh conversion is neutral.
        at: convert existing batch norms (``"norm"``: they become slot 0, the others start as copies), or
            normalise the input of neurons (``"neuron"``); ``"auto"``: convert where there is one.
        eps, momentum: None keeps those of a converted norm; 1e-4 and 0.1 where there was none.

    Raises:
        OptionError: a value of the wrong kind.

    Source: Kim and Panda, Frontiers in Neuroscience 2021, and its published code.
    """

    name: ClassVar[str] = "bntt"

    bias: bool = False


@dataclass(frozen=True)
class TEBN(TimeNorm):
    """Temporal effective batch norm: one batch norm over all steps, and a learnable scale per step.

    Args:
        stats: ``"joint"`` over time, batch and space (the authors; whole sequences only), or
            ``"step"``: every step by its own statistics, another method, possible in per-step loops.
        at, eps, momentum: as for `BNTT`; 1e-5 and 0.1 where there was no norm.

    Raises:
        OptionError: a value of the wrong kind.

    Source: Duan et al., NeurIPS 2022, and its published code.
    """

    name: ClassVar[str] = "tebn"

    stats: Literal["joint", "step"] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stats not in ("joint", "step"):
            raise _impossible("stats", self.stats, "use 'joint' or 'step'", "TEBN")


def _check_norm(method: str, eps: object, momentum: object) -> None:
    if not _is_number(eps) or not eps > 0:
        raise _impossible("eps", eps, "use a small positive number such as 1e-5", method)
    if not _is_number(momentum) or not 0 <= momentum <= 1:
        raise _impossible("momentum", momentum, "use a number from 0 to 1, such as 0.1", method)


def _impossible(field: str, value: object, do: str, method: str = "IMP") -> OptionError:
    return OptionError(f"{method}({field}={value!r}) is not possible.", do=do)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _checked_init(init: object, *, squashed: bool) -> Init:
    if squashed and (init == "rest" or not _inside_unit_interval(init)):
        raise _impossible(
            "init",
            init,
            "use init='half' or a range inside (0, 1): squash='sigmoid' gives no other V0",
        )
    if init == "rest":
        return "rest"
    if init == "half":
        return "half"
    if _is_number(init):
        return float(init)
    if isinstance(init, tuple | list) and len(init) == 2 and all(map(_is_number, init)):
        low, high = map(float, init)
        if low <= high:
            return low, high
    raise _impossible("init", init, "use a number, a range (low, high) with low <= high, 'rest' or 'half'")


def _inside_unit_interval(init: object) -> bool:
    values = init if isinstance(init, tuple | list) else [init]
    return all(0 < v < 1 for v in values if _is_number(v))


def _checked_shape(shape: object) -> Shape:
    for granularity in ("neuron", "channel", "layer"):
        if shape == granularity:
            return granularity
    if isinstance(shape, tuple | list) and all(_is_number(n) and n == int(n) > 0 for n in shape):
        return tuple(int(n) for n in shape)
    raise _impossible("shape", shape, "use 'neuron', 'channel', 'layer' or a tuple of positive sizes")


METHODS: dict[str, type[Method]] = {method.name: method for method in (IMP, MPBN, BNTT, TEBN)}
