"""What is particular about norse: states are in the user's hands."""

import pytest
import torch
from torch import nn

import snn_ext

norse = pytest.importorskip("norse.torch", reason="norse is not installed")
pytest.importorskip("snn_ext_norse", reason="pip install -e . first")

STRONG = torch.linspace(20, 40, 8).view(2, 4)


def net():
    torch.manual_seed(0)
    return norse.SequentialState(nn.Linear(4, 6), norse.LIFBoxCell(), nn.Linear(6, 3), norse.LIFCell())


def test_v0_acts_where_no_state_is_given():
    model = snn_ext.patch(net(), imp=snn_ext.IMP(init=0.25), example_input=STRONG)
    _, state = model(STRONG * 0)
    stock_v = net()(STRONG * 0)[1][1].v
    torch.testing.assert_close(state[1].v, stock_v + 0.9 * 0.25)  # dt / tau = 0.1
    given = state[1]._replace(v=torch.zeros(2, 6))
    _, after = model[1](torch.zeros(2, 6), given)
    assert not after.v.any()


def test_v0_trains_through_a_sequence():
    model = snn_ext.patch(net(), imp=True, example_input=STRONG)
    state, scores = None, []
    for _ in range(5):
        y, state = model(STRONG, state)
        scores.append(y + state[3].v)
    snn_ext.loss(model, "tet")(torch.stack(scores), torch.tensor([0, 2])).backward()
    assert model[1].imp.grad.any()
    assert model[3].imp.grad.any()


def test_bntt_takes_its_step_from_the_state():
    model = snn_ext.patch(net(), bntt=True, timesteps=2, example_input=STRONG)
    _, state = model(STRONG)
    _, state = model(STRONG, state)
    with pytest.raises(snn_ext.TimestepError):
        model(STRONG, state)
    model(STRONG)  # no state: a new sequence
    model.eval()
    kept = [s and s._replace(v=snn_ext.carried(s.v.clone(), of=s.v)) for s in model(STRONG)[1]]
    _, state = model(STRONG, kept)
    with pytest.raises(snn_ext.TimestepError):
        model(STRONG, state)


def test_other_neurons_are_refused_with_a_reason():
    model = nn.Sequential(norse.LIFRecurrentCell(4, 4), norse.LIFBoxCell())
    rows = snn_ext.plan(model, imp=snn_ext.IMP(shape="layer")).to_dict()["sites"]
    assert [bool(row["methods"]) for row in rows] == [False, True]
    assert "LIFBoxCell" in rows[0]["note"]


@pytest.mark.parametrize(
    "methods", [{}, {"imp": True}, {"imp": True, "mpbn": True, "bntt": True}], ids="+".join
)
def test_membranes_are_recorded_as_states_are_handed_on(methods):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            state, spikes, membranes = None, [], []
            for _ in range(5):
                y, state = self.net(x, state)
                spikes.append(y)
                membranes.append(state[1].v)
            return torch.stack(spikes), torch.stack(membranes)

    model, many = Loop(), torch.randn(9, 4) * 40
    if methods:
        snn_ext.patch(model, **methods, timesteps=5, include="net.1", example_input=many)
    found = snn_ext.figures.record(model, many)
    spikes, membranes = model(many)
    assert torch.equal(found.output[0], spikes)
    assert torch.equal(found["net.1"].v, membranes)
    assert found["net.1"].spikes.any()
    assert "equations" in found.skipped["net.3"]
