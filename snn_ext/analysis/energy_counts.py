"""Count the operations of a running model, layer by layer, where torch dispatches them.

Below modules nothing escapes: functional calls, matrix products of attention, checkpointed segments and
layers that a framework calls without their hooks are all seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from snn_ext.analysis.energy_origins import Origins
from snn_ext.analysis.energy_values import Operand
from snn_ext.patching.sequence import tensors_in

__all__ = ["Kind", "NormTally", "Recorder", "Tally"]

Kind = Literal["conv", "linear", "product"]
_aten = torch.ops.aten

_CONVOLUTIONS = {op for op in flop_registry if "conv" in str(op) and "backward" not in str(op)}
_FACTORS = {
    _aten.mm: (0, 1),
    _aten.bmm: (0, 1),
    _aten.mv: (0, 1),
    _aten.dot: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.addbmm: (1, 2),
    _aten.addmv: (1, 2),
}
"""Matrix products -> which arguments are multiplied."""
_UNREGISTERED = (_aten.mv, _aten.dot, _aten.addmv, _aten.addbmm)  # torch's counter takes them for nothing
_BATCH_NORMS = ("batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "_batch_norm_no_update")
_OTHER_NORMS = ("native_layer_norm", "native_group_norm", "_fused_rms_norm")


@dataclass
class Tally:
    """The products of one layer, over all calls.

    Attributes:
        name: path of the layer; of a product of two activations the module that computes it.
        macs: all multiply-accumulates, over all samples and steps.
        operands: the sides that are no weights: one, or two or three of a product of activations.
        shapes: shape of the input -> number of calls.
    """

    name: str
    kind: Kind
    macs: int = 0
    operands: list[Operand] = field(default_factory=list)
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)


@dataclass
class NormTally:
    """One norm: elements that went through it, and what they cost.

    Attributes:
        free: why it costs nothing; empty where every element is a multiply-accumulate.
        why: why it is not free.
    """

    name: str
    elements: int = 0
    free: str = ""
    why: str = ""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of one model.

    Args:
        model: the model.
        skip: paths of modules whose norms are counted elsewhere.
        neurons: modules whose inner operations are no layers that could be missing.
    """

    def __init__(self, model: nn.Module, *, skip: set[str], neurons: list[nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tallies: dict[tuple[Any, ...], Tally | NormTally] = {}
        self.unknown: dict[str, None] = {}
        self._skip, self._neurons = skip, {id(n) for n in neurons}
        self.origins = Origins(model, self._neurons)
        self._inside: list[tuple[int, str, tuple[int, ...]]] = []
        self._watch(model)

    def _watch(self, model: nn.Module) -> None:
        """Know which module is at work, for names. The caller takes the hooks away again."""
        for path, module in model.named_modules():

            def enter(m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
                self._inside.append((id(m), path, () if first is None else tuple(first.shape)))

            def leave(m: nn.Module, *_: Any) -> None:
                left = False
                while self._inside and not left:  # modules inside that an exception left go too
                    left = self._inside.pop()[0] == id(m)

            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(leave, always_call=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, op = kwargs or {}, func._overloadpacket
        counted = op in _FACTORS or (op in flop_registry and "backward" not in str(op))
        if not counted and func is not torch.ops.prim.device.default:
            with self:  # under inference mode whole layers arrive here
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if counted and not self.origins.constant(args, kwargs):  # weights may be computed from weights
            name = self._product(op, args, kwargs, out)
            self.origins.follow(func, args, kwargs, out)
            self.origins.mark_product(out, name)
            return out
        if _is_norm(op):
            self._norm(op, args, out)
        elif not counted:
            self._look_for_weights(func, args, kwargs)
        self.origins.follow(func, args, kwargs, out)
        return out

    def _product(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> str:
        macs = _macs(op, args, kwargs, out)
        path = self._inside[-1][1] if self._inside else ""
        if op in _CONVOLUTIONS:
            tally = self._tally(self.origins.weight(args[1]) or path, "conv")
            self._add(tally, args[:1], macs, tuple(args[0].shape))
        elif op in _FACTORS and (weight := self._weight(op, args)) is not None:
            factor, layer = weight
            tally = self._tally(layer, "linear")
            called = self._inside and self._inside[-1][1] == layer
            self._add(tally, [factor], macs, self._inside[-1][2] if called else tuple(factor.shape))
        else:
            factors = [args[i] for i in _FACTORS[op]] if op in _FACTORS else list(tensors_in(args))[:3]
            sizes = " @ ".join("x".join(map(str, f.shape[-2:])) for f in factors)
            tally = self._tally(f"{path} ({sizes})".strip(), "product")
            self._add(tally, factors, macs, ())
            if op not in _FACTORS:  # fused attention: the softmax inside makes a factor analog
                for operand in tally.operands:
                    operand.values, operand.active = "analog", tally.macs
        return tally.name

    def _weight(self, op: Any, args: tuple[Any, ...]) -> tuple[Tensor, str] | None:
        """Of a product with a weight: the other factor, and the layer. The second factor goes first: a
        constant (a learnt embedding) may be an input."""
        i, j = _FACTORS[op]
        for weight, other in ((args[j], args[i]), (args[i], args[j])):
            layer = self.origins.weight(weight)
            if layer is not None:
                return other, layer
        return None

    def _tally(self, name: str, kind: Kind) -> Tally:
        return self.tallies.setdefault((name, kind), Tally(name, kind))  # type: ignore[return-value]

    @staticmethod
    def _add(tally: Tally, factors: Any, macs: int, shape: tuple[int, ...]) -> None:
        tally.macs += macs
        tally.shapes[shape] += 1
        if not tally.operands:
            tally.operands.extend(Operand() for _ in factors)
        for operand, factor in zip(tally.operands, factors, strict=True):
            operand.add(factor, macs)

    def _norm(self, op: Any, args: tuple[Any, ...], out: Any) -> None:
        path = self._inside[-1][1] if self._inside else ""
        named = (self.origins.owner(a) for a in args[1:5])
        name = next((n for n in named if n is not None), path)
        if any(not s or name == s or name.startswith(s + ".") for s in self._skip):
            return
        if _short(op) in _OTHER_NORMS or any(a is True for a in args):  # the flag `training` of batch norms
            self.add_norm(name, args[0].numel(), why="takes statistics of its input")
        elif (layer := self.origins.product(args[0])) is None:
            self.add_norm(name, args[0].numel(), why="not directly behind a layer that could take it")
        else:
            self.add_norm(name, args[0].numel(), free="can be folded into the layer before")
            self.origins.mark_product(out, layer)  # and what follows can be folded too

    def add_norm(self, name: str, elements: int, *, free: str = "", why: str = "") -> None:
        """`elements` went through the norm of this name."""
        norm = self.tallies.setdefault((name, "norm", free), NormTally(name, 0, free, why))
        norm.elements += elements  # type: ignore[union-attr]

    def _look_for_weights(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Operations that take a matrix of weights and are none of ours must not pass in silence."""
        if (
            func.is_view
            or torch.Tag.pointwise in func.tags
            or any(m[0] in self._neurons for m in self._inside)
        ):
            return
        tensors = list(tensors_in((args, kwargs)))
        matrices = [t for t in tensors if t.ndim > 1 and self.origins.weight(t) is not None]
        if matrices and any(self.origins.owner(t) is None for t in tensors):
            layer = self.origins.weight(matrices[0]) or "(root)"
            self.unknown[f"{layer} ({func._overloadpacket})"] = None


def _short(op: Any) -> str:
    return str(op).partition(".")[2]


def _is_norm(op: Any) -> bool:
    name = _short(op)
    return "backward" not in name and (
        name in _OTHER_NORMS or name.startswith(_BATCH_NORMS) or name.endswith(_BATCH_NORMS)
    )


def _macs(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """By torch's own formulas, which count two operations per multiply-accumulate."""
    if op in _UNREGISTERED:
        first, second = (args[i] for i in _FACTORS[op])
        return int(first.numel() * (second.shape[-1] if second.ndim > 1 else 1))
    return int(flop_registry[op](*args, **kwargs, out_val=out)) // 2
