"""The table that plans and reports print, to the letter."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import snn_ext
from snn_ext.patching.table import Row, render
from tests.toy import LeadingNeuron, Odd

ROW = Row(
    "body.0", 0, "LIF", "toy", "leading", (4, 2), "traced", ("imp", "mpbn"), {"imp": 8, "mpbn": 4000}, ""
)

EVERYTHING = """\
plan for Net
site         module  adapter  time     features      methods    new parameters  step
body.0       LIF     toy      leading  4x2 (traced)  IMP, MPBN  8 + 4000        host
body.1 (+2)  LIF     toy      leading  not needed    IMP        1               framework
head         BN      toy      leading                none
tail         BN      toy      leading                none
odd          Odd     toy      leading                none
none at head, tail: not selected
none at odd: it has no membrane
body.1: mpbn: no
step framework at body.1: it has none
2 of 5 sites, 4,009 new parameters"""


def test_everything_that_a_table_says() -> None:
    left_out = replace(ROW, module="BN", methods=(), parameters={}, note="not selected")
    rows = [
        replace(ROW, step="host"),
        replace(
            ROW,
            site="body.1",
            aliases=2,
            features=None,
            origin="not needed",
            methods=("imp",),
            parameters={"imp": 1},
            note="mpbn: no",
            step="framework",
            step_note="it has none",
        ),
        replace(left_out, site="head"),
        replace(left_out, site="tail"),
        replace(left_out, site="odd", module="Odd", note="it has no membrane"),
    ]
    assert render("plan for Net", rows) == EVERYTHING


def test_sites_with_the_same_remark_share_a_line() -> None:
    rows = [replace(ROW, site=name, note="half", step="torch", step_note="slow") for name in "ab"]
    lines = render("title", [*rows, replace(ROW, site="c", step="host")]).splitlines()
    assert lines[-3:] == ["a, b: half", "step torch at a, b: slow", "3 of 3 sites, 12,024 new parameters"]


def test_long_remarks_are_wrapped_and_indented() -> None:
    rows = [replace(ROW, site="a", note="left " * 40), replace(ROW, site="b", methods=(), note="out " * 40)]
    rows.append(replace(ROW, site="c", step="framework", step_note="slow " * 40))
    lines = render("title", rows).splitlines()
    assert max(map(len, lines)) <= 100
    wrapped = [line for line in lines if line.startswith("  ")]
    assert len(wrapped) >= 3
    assert all(line.startswith("  ") and line[2] != " " for line in wrapped)


def test_data_is_plain() -> None:
    data = ROW.to_dict()
    assert data["features"] == [4, 2]
    assert data["methods"] == ["imp", "mpbn"]
    assert replace(ROW, features=None).to_dict()["features"] is None


def test_plans_and_reports_say_whose_they_are_and_agree() -> None:
    net = nn.Sequential(nn.Linear(4, 6), LeadingNeuron(), Odd())
    plan = snn_ext.plan(net, imp=True, example_input=torch.rand(3, 2, 4))
    assert str(plan).splitlines()[0] == "plan for Sequential"
    assert str(plan).splitlines()[-1] == "1 of 2 sites, 6 new parameters"
    assert "none at 2: it has no membrane" in str(plan).splitlines()
    planned = plan.to_dict()
    report = snn_ext.report(plan.apply())
    assert str(report).splitlines()[0] == "report for Sequential"
    assert str(report).splitlines()[1:] == str(plan).splitlines()[1:]
    done = report.to_dict()
    assert done == {"model": "Sequential", "sites": planned["sites"], "fold": None}
    assert planned["sites"][0]["parameters"] == {"imp": 6}
    assert planned["sites"][0]["step"] == "host"
