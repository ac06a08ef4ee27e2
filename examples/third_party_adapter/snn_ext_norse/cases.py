"""A norse network for the compliance suite."""

import torch
from norse.torch import LIFBoxCell, LIFBoxParameters, LIFCell, LIFParameters, SequentialState
from norse.torch.functional.reset import reset_subtract
from torch import nn

from snn_ext.testing import Case


def _box(**parameters):
    # dt / tau = 0.5: membranes can meet their threshold exactly
    return LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(1.0), **parameters), dt=0.5)


def _boxes():
    soft = _box(v_th=torch.tensor(0.5), reset_method=reset_subtract)
    return _driven(SequentialState(nn.Linear(4, 6), _box(), nn.Linear(6, 5), soft, nn.Linear(5, 3)))


def _currents():
    slow = LIFCell(LIFParameters(tau_mem_inv=torch.tensor(500.0)))
    resting = _box(v_leak=torch.tensor(0.25), v_reset=torch.tensor(0.25))
    return _driven(SequentialState(nn.Linear(4, 6), slow, nn.Linear(6, 5), resting, nn.Linear(5, 3)))


def _driven(net):
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.Linear):
                module.weight.mul_(5)
    return net


def _loop(module, x):
    """A network or a cell over [T, B, *]: states are handed on from step to step."""
    spikes, state = [], None
    for x_t in x:
        s, state = module(x_t, state)
        spikes.append(s)
    return torch.stack(spikes)


def _case(name, make_model):
    return Case(
        name=f"norse-{name}",
        make_model=make_model,
        make_input=lambda batch: torch.rand(6, batch, 4) * 4 - 1,
        run=_loop,
        play=_loop,
        example=lambda x: x[0],
        neurons=("1", "3"),
    )


CASES = (_case("boxes", _boxes), _case("currents", _currents))
