"""Neurons with a learnable initial membrane: the mixin adapters use, and a neuron of our own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snn_ext.dynamics.description import Dynamics, NeuronSpec, Time
from snn_ext.errors import OptionError, ShapeMismatchError
from snn_ext.kernels import Call, run
from snn_ext.methods.options import IMP, Shape
from snn_ext.methods.paths import located

__all__ = ["InitialPotential", "SpikingNeuron", "initial_potential", "potential_shape"]


def potential_shape(shape: Shape, features: Sequence[int] | None) -> tuple[int, ...]:
    """Shape of the V0 parameter for neurons with these features.

    Args:
        shape: the option, see `IMP`.
        features: shape of one sample at one step, [C, *]; may be None for ``"layer"`` and explicit
            shapes.

    Raises:
        ShapeMismatchError: an explicit shape does not broadcast to the features, or there is no
            channel.
    """
    if shape == "layer":
        return ()
    if isinstance(shape, tuple):
        if features is not None and not _broadcasts(shape, features):
            raise ShapeMismatchError(
                f"IMP(shape={shape}) does not broadcast to the features {tuple(features)}.",
                do="give the trailing dimensions, for example (C, 1, 1) for features (C, H, W)",
            )
        return shape
    if not features:
        raise ShapeMismatchError(
            f"IMP(shape={shape!r}) needs features [C, *] behind time and batch; there are none.",
            do="use IMP(shape='layer'), or feed [T, B, C, *]",
        )
    if shape == "channel":
        return (features[0], *[1] * (len(features) - 1))
    return tuple(features)


def _broadcasts(shape: Sequence[int], features: Sequence[int]) -> bool:
    tail = list(features)[len(features) - len(shape) :]
    return len(shape) <= len(features) and all(n in (1, m) for n, m in zip(shape, tail, strict=True))


def initial_potential(
    option: IMP,
    features: Sequence[int] | None,
    spec: NeuronSpec,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Parameter:
    """The parameter p behind V0, initialised (random ranges draw from torch's global generator).

    Args:
        option: shape, start value and squashing.
        features: shape of one sample at one step, [C, *].
        spec: the neuron's reset value and threshold, for ``init="rest"`` and ``"half"``.
        device, dtype: of the new parameter.

    Raises:
        OptionError: ``init="half"`` on a neuron without a threshold, or outside `squash`'s range.
        ShapeMismatchError: see `potential_shape`.
    """
    shape = potential_shape(option.shape, features)
    low, high = _bounds(option, spec)
    v0 = torch.empty(shape, device=device, dtype=dtype)
    if isinstance(low, float) and low == high:
        v0.fill_(low)
    else:
        v0.uniform_()
        try:
            v0 = v0 * (high - low) + low
            fits = v0.shape == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ShapeMismatchError(
                f"IMP(init='half') needs one threshold per value of V0 {list(shape)}.",
                why=f"the thresholds have the shape {list(torch.as_tensor(low).shape)}",
                do="use IMP(shape='neuron'), or give init as a number or a range",
            )
    if option.squash:
        if not v0.is_meta and not bool(((v0 > 0) & (v0 < 1)).all()):
            raise OptionError(
                "IMP(squash='sigmoid') gives V0 in (0, 1), and this neuron's init is outside.",
                do="pass init=(0.4, 0.6), or leave squash out",
            )
        v0 = v0.logit()
    return nn.Parameter(v0.detach().to(dtype))


def _bounds(option: IMP, spec: NeuronSpec) -> tuple[float | Tensor, float | Tensor]:
    if option.init == "rest":
        return spec.rest, spec.rest
    if option.init == "half":
        if spec.threshold is None:
            raise OptionError(
                "IMP(init='half') needs a threshold, and this neuron has none.",
                do="give init as a number or a range: IMP(init=(-0.2, 0.2))",
            )
        half = spec.threshold / 2
        return half - 0.1, half + 0.1
    if isinstance(option.init, tuple):
        return option.init
    return float(option.init or 0), float(option.init or 0)


class InitialPotential(nn.Module):
    """Mixin: a neuron whose sequences start from the learnable membrane ``self.imp``.

    Adapters mix it into a framework's neuron and call `initial_membrane` at the first step of a
    sequence, inside forward: a value stored at reset would be one optimiser step old.
    """

    imp: nn.Parameter
    _imp_option: IMP

    def start_from(self, option: IMP, parameter: nn.Parameter) -> None:
        """Attach the parameter made by `initial_potential`."""
        self.register_parameter("imp", parameter)
        # through __dict__: a framework's __setattr__ may be particular about new attributes
        self.__dict__["_imp_option"] = option

    def stop_starting(self) -> None:
        """Undo `start_from`."""
        self._parameters.pop("imp", None)
        self.__dict__.pop("_imp_option", None)

    def initial_membrane(self, features: Sequence[int], dtype: torch.dtype) -> Tensor:
        """V0 = phi(p) for samples with these features, broadcastable to [B, *features].

        Raises:
            ShapeMismatchError: the features are not those V0 was made for.
        """
        expected = potential_shape(self._imp_option.shape, features)
        if self.imp.shape != expected:
            raise ShapeMismatchError(
                f"IMP has V0 of shape {list(self.imp.shape)}, one sample has {list(features)}.",
                where=located(self),
                why=f"with shape={self._imp_option.shape!r} it must be {list(expected)}",
                do="unpatch, then patch with example_input=<a batch of this size>, or with"
                " IMP(shape='channel') if the resolution varies",
            )
        v0 = self.imp.sigmoid() if self._imp_option.squash else self.imp
        return v0.to(dtype)


class SpikingNeuron(InitialPotential):
    """A neuron described by `Dynamics`, usable without any framework.

    With ``Time.LEADING`` a call is one whole sequence [T, B, *] from V0. With ``Time.PER_CALL`` a
    call is one step [B, *], and the membrane is kept until `reset`, or until the batch size changes.

    Args:
        dynamics: the equations.
        imp: learnable V0; None starts from ``dynamics.rest``.
        features: shape of one sample at one step, needed by ``IMP(shape="neuron" | "channel")``.
        time: layout of the inputs.

    Attributes:
        v: membrane [B, *] after the last step, None before the first.

    Raises:
        OptionError: ``Time.MERGED`` (there is no time to integrate over).
        ShapeMismatchError: `features` are missing or do not fit.
    """

    def __init__(
        self,
        dynamics: Dynamics | None = None,
        *,
        imp: IMP | None = None,
        features: Sequence[int] | None = None,
        time: Time = Time.LEADING,
    ) -> None:
        super().__init__()
        if time is Time.MERGED:
            raise OptionError(
                "a spiking neuron cannot integrate over time that is merged into the batch.",
                do="use Time.LEADING with [T, B, *], or Time.PER_CALL with [B, *]",
            )
        self.dynamics = dynamics or Dynamics()
        self.time = time
        self.v: Tensor | None = None
        if imp is not None:
            self.start_from(imp, initial_potential(imp, features, self.spec))

    @property
    def spec(self) -> NeuronSpec:
        """What an adapter would say about this neuron."""
        d = self.dynamics
        return NeuronSpec(time=self.time, rest=d.rest, threshold=d.threshold, dynamics=d)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes in the shape and dtype of `x`: [T, B, *] or [B, *], by `time`."""
        result = run(self.call(x))
        self.v = result.membrane
        return result.spikes if self.time is Time.LEADING else result.spikes[0]

    def call(self, x: Tensor) -> Call:
        """What `forward` would compute now, as data."""
        sequence = x if self.time is Time.LEADING else x.unsqueeze(0)
        v = self.v
        if v is None or self.time is Time.LEADING or v.shape != sequence.shape[1:]:
            return Call(sequence, self.dynamics, v0=self._start(sequence.shape[2:], x))
        return Call(sequence, self.dynamics, v=v, resume=True)

    def _start(self, features: torch.Size, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        if "imp" in self._parameters:
            return self.initial_membrane(features, dtype)
        return torch.tensor(self.dynamics.rest, dtype=dtype, device=x.device)

    def reset(self) -> None:
        """End the sequence: the next call starts from V0."""
        self.v = None

    def extra_repr(self) -> str:
        return f"{self.dynamics}, time={self.time.value!r}"
