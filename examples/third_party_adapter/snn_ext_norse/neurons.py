"""norse's cells as data, and what they become: the same cell, with another first state, input or decision."""

import torch
from norse.torch import LIFBoxCell, LIFCell
from norse.torch.functional.lif_box import lif_box_feed_forward_step
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.functional.threshold import threshold
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell

from snn_ext import Dynamics, Leak, NeuronSpec, Time, original_class
from snn_ext.functional import step
from snn_ext.kernels import Call
from snn_ext.neurons import InitialPotential
from snn_ext.norms import FiringRule, NormalisedInput, NormalisedMembrane
from snn_ext.patching.sequence import mark_output, steps_behind
from snn_ext.surrogates import FastSigmoid


def describe(module):
    """The spec of a neuron, with the reason where it cannot be patched; None for other modules."""
    if not isinstance(module, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
        return None
    time = Time.LEADING if isinstance(module, SNN | SNNRecurrent) else Time.PER_CALL
    p = module.p
    if not isinstance(module, LIFBoxCell | LIFCell) or getattr(p.v_leak, "ndim", 0):
        reason = "this adapter knows LIFBoxCell and LIFCell whose leak potential is one number"
        return NeuronSpec(time, threshold=None, unsupported={"*": reason})
    theta = float(p.v_th) if p.v_th.ndim == 0 else p.v_th
    reason = _no_membrane_norm(module)
    exact = None if reason or p.v_leak != 0 else equations(module)
    return NeuronSpec(time, float(p.v_leak), theta, exact, unsupported={"mpbn": reason} if reason else {})


def _no_membrane_norm(module):
    if not isinstance(module, LIFBoxCell):
        return "its input goes through a synaptic current, which this adapter does not describe"
    own = original_class(module).forward is not SNNCell.forward
    if own or module.activation is not lif_box_feed_forward_step or module.p.method != "super":
        return "its step is not LIFBoxCell's"
    if module.p.reset_method not in (reset_value, reset_subtract) or module.p.v_reset != module.p.v_leak:
        return "its reset is neither to the leak potential nor by subtraction"
    return None


def equations(module):
    """What a LIFBoxCell computes, in its own order of operations (to the last bit if it leaks to 0)."""
    p = module.p
    return Dynamics(
        leak=Leak(module.dt * p.tau_mem_inv, divide=False),
        threshold=p.v_th,
        rest=float(p.v_leak),
        reset="soft" if p.reset_method is reset_subtract else "hard",
        fires_at_equality=False,
        surrogate=FastSigmoid(1.0),  # SuperSpike, whose backward ignores alpha in norse 1.1
    )


class _Cell(SNNCell):
    """Keeps the membrane in float32 for half inputs, and the spikes in the dtype of the input."""

    def forward(self, input_tensor, state=None):
        spikes, state = super().forward(input_tensor, state)
        return spikes.to(input_tensor.dtype), state


class IMP(InitialPotential, _Cell):
    """A sequence that is given no state starts from V0."""

    def first(self, x):
        return self.initial_membrane(x.shape[1:], torch.promote_types(x.dtype, torch.float32))

    def forward(self, x, state=None):
        if state is None:
            state = self.state_fallback(x)._replace(v=self.first(x).expand_as(x))
        return super().forward(x, state)


class Normalised(NormalisedInput, _Cell):
    """BNTT or TEBN on the input; the time step travels with the membrane."""

    def forward(self, input_tensor, state=None):
        t = 0 if state is None else steps_behind(state.v, type(self).__name__)
        spikes, state = super().forward(self.input_norm.step(t, input_tensor), state)
        mark_output(state.v, t + 1)
        return spikes, state


class MPBN(NormalisedMembrane, _Cell):
    """Decides on the normalised membrane; the step is that of `equations`."""

    def firing_rule(self):
        return FiringRule(self.p.v_th, lambda u: threshold(u, self.p.method, self.p.alpha), False)

    def forward(self, input_tensor, state=None):
        state = self.state_fallback(input_tensor) if state is None else state
        x = input_tensor.to(torch.promote_types(input_tensor.dtype, torch.float32))
        spikes, v = step(x, state.v, equations(self), decide=self.membrane_decision())
        return spikes.to(input_tensor.dtype), state._replace(v=v)


MIXINS = {"imp": IMP, "bntt": Normalised, "tebn": Normalised, "mpbn": MPBN}  # outermost first


def call_of(module, x, state=None):
    """What a call will compute, as data, so that membranes can be recorded; None where that is not known."""
    if not isinstance(module, LIFBoxCell) or module.p.v_leak != 0 or _no_membrane_norm(module):
        return None
    v0 = module.first(x) if isinstance(module, IMP) else 0.0
    start = {"v0": v0} if state is None else {"v": state.v}
    return Call(x.unsqueeze(0), equations(module), **start)
