"""``vtc fitprune``: what goes within a bound, by plain loops on a whole map, and a file that the method reads."""

from __future__ import annotations

import json

import pytest
import torch
from zoo import prompt, tiny
from zoo.models import DEPTH

import vtc
from vtc.commands.main import main
from vtc.eval.schedules.within_a_bound import Within, can_go
from vtc.pruners.fitprune import read_recipes

pytestmark = pytest.mark.usefixtures("no_grad")


def test_what_can_go_by_hand():
    """Of 1, 4, 2 and 3 with 6.5 to be left the smallest go, 1 and 2; padding neither goes nor counts."""
    spending = torch.tensor([[[1.0, 4.0, 2.0, 3.0, 0.0]], [[5.0, 1.0, 1.0, 3.0, 0.0]]]).double()
    valid = torch.tensor([[True, True, True, True, False]])
    found = can_go(spending, valid, torch.tensor([[6.5], [8.5]]))
    assert found[..., :4].tolist() == [[[True, False, True, False]], [[False, True, False, False]]]
    assert not can_go(spending, valid, torch.tensor([[10.0], [10.0]]))[..., :4].any()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("bound", [0.1, 0.6])
def test_within_a_bound_of_the_whole_models_attention(family, bound):
    """Plain loops over what eager attention gives; the first layer of both runs is the same one."""
    inputs = prompt(family, "one").inputs
    model = tiny(family, "eager")
    maps = model(**inputs, output_attentions=True, use_cache=False).attentions
    within = Within()
    with vtc.compressed(model, within):
        model(**inputs, use_cache=False)
        assert [len(ids) for step in model.vtc.report.steps for ids in step.kept] == [
            len(s.columns) for s in model.vtc.report.spans for _ in range(1, DEPTH)
        ]
        within.bound = bound
        model(**inputs, use_cache=False)
        report = model.vtc.report
    [span] = report.spans
    columns = span.columns.tolist()
    largest = maps[0][0].double().amax(0)
    picture = [sum(float(largest[i, j]) for i in columns) / len(columns) for j in columns]
    text = [sum(float(largest[t, j]) for t in range(columns[-1] + 1, len(largest))) for j in columns]
    gone = [least_looked_at(spent, (1 - bound) * sum(spent)) for spent in (picture, text)]
    assert sorted(report.steps[0].kept[0].tolist()) == [j for j in range(len(columns)) if j not in gone[0] & gone[1]]
    counts = [len(step.kept[0]) for step in report.steps]
    assert counts == sorted(counts, reverse=True)


def least_looked_at(spent: list[float], least: float) -> set[int]:
    """The tokens that go one after the other, as long as the rest has `least`."""
    gone: set[int] = set()
    for j in sorted(range(len(spent)), key=lambda j: spent[j]):
        if sum(x for i, x in enumerate(spent) if i not in {*gone, j}) < least:
            break
        gone.add(j)
    return gone


def test_the_command_writes_what_fitprune_reads(tmp_path, capsys):
    file = tmp_path / "schedule.json"
    command = ["fitprune", "--limit", "1", "--output", str(file), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    recipes, about = read_recipes(str(file)), json.loads(file.read_text())
    assert about["data"] == "scenes", "never the bundled evaluation set"
    alphas = [one["alpha"] for one in about["recipes"]]
    assert alphas == sorted(alphas)
    assert recipes[0][0] > recipes[-1][0]
    assert "fitprune(schedule=" in capsys.readouterr().out.replace("\n", "")
    depth = len(recipes[0]) + 1
    [pruner] = vtc.parse("fitprune", schedule=str(file), keep=recipes[1][-1])
    wanted = {i + 1: share for i, share in enumerate(recipes[1]) if share < (1.0, *recipes[1])[i]}
    assert {s.layer: s.keep for s in pruner.stops(depth)} == pytest.approx(wanted)
    with pytest.raises(SystemExit):
        main(command)
    assert "is there already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fitprune", "--tasks", "color", "--limit", "1", "--output", str(tmp_path / "x.json")])
    assert "bundled evaluation set" in capsys.readouterr().err
