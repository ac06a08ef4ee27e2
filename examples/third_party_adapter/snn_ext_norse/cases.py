"""A norse network for the compliance suite."""

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, LIFCell, LIFParameters, SequentialState
from norse.torch.functional.reset import reset_subtract
from torch import nn

from snn_ext.testing import Case


def _box(**parameters):
    # dt / tau = 0.5: membranes can meet their threshold exactly
    return LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(1.0), **parameters), dt=0.5)


def _net(first, second):
    net = SequentialState(nn.Linear(4, 6), first, nn.Linear(6, 5), second, nn.Linear(5, 3))
    for i in (0, 2, 4):
        net[i].weight.data.mul_(5)  # enough to fire
    return net


def boxes():
    return _net(_box(), _box(v_th=torch.tensor(0.5), reset_method=reset_subtract))


def currents():
    slow = LIFCell(LIFParameters(tau_mem_inv=torch.tensor(500.0)))
    return _net(slow, _box(v_leak=torch.tensor(0.25), v_reset=torch.tensor(0.25)))


def _loop(module, x):
    """A network or a cell over [T, B, *]: states are handed on from step to step."""
    spikes, state = [], None
    for x_t in x:
        s, state = module(x_t, state)
        spikes.append(s)
    return torch.stack(spikes)


_RUN = {
    "make_input": lambda batch: torch.rand(6, batch, 4) * 4 - 1,
    "run": _loop,
    "play": _loop,
    "example": lambda x: x[0],
    "neurons": ("1", "3"),
}
CASES = tuple(Case(name=f"norse-{net.__name__}", make_model=net, **_RUN) for net in (boxes, currents))
