"""Cells at equal compute: the nearest that was measured, or none with the reason; and the random cell beside each."""

from __future__ import annotations

from typing import Any

import pytest

from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.equal_budget import match_cells, random_partner, same_budget, spent
from vtc.eval.statistics.intervals import Interval


def cell(method: str, keep: int | float | None, per_layer: float, flops: float | None = None, **more: Any):
    mean = Interval(0.5, 0.4, 0.6)
    return CellSummary(
        method, keep, f"{method} {keep}" if method != "unpruned" else "unpruned", 10, True, {}, mean, None, None,
        100.0, per_layer, per_layer, per_layer, lm_flops_ratio=flops, **more,
    )  # fmt: skip


UNPRUNED = cell("unpruned", None, 100, 1.0)
RANDOM = [cell("random", 0.5, 50, 0.55), cell("random", 0.25, 25, 0.32), cell("random", 0.1, 10, 0.2)]
LATE = [cell("fastv", 0.5, 53, 0.58), cell("fastv", 0.25, 29, 0.36), cell("fastv", 0.1, 15, 0.24)]
OWN = [cell("vtw(layer=16)", None, 51, None)]


def names(match: Any) -> dict[str, Any]:
    return {method: c.keep for method, c in match.cells.items()}


def test_equal_keep():
    pool = cell("pool", 0.1, 10)
    found = match_cells([UNPRUNED, *RANDOM, cell("random", 0.29, 29), *LATE[:2], pool, *OWN])
    assert [m.label for m in found] == ["keep 50%", "keep 25%", "keep 10%"]  # at 29% there is nothing to compare
    assert names(found[0]) == {"random": 0.5, "fastv": 0.5}
    assert found[0].missed == {"vtw(layer=16)": "sets its own budget", "pool": "was not run at this keep"}
    assert found[2].missed["fastv"] == "was not run at this keep"
    assert [m.label for m in match_cells(RANDOM)] == ["keep 50%", "keep 25%", "keep 10%"]


def test_one_token_is_not_all_of_them():
    found = match_cells([cell("random", 1, 1), cell("random", 1.0, 100), cell("a", 1, 1), cell("b", 1.0, 100)])
    assert [names(m) for m in found] == [{"random": 1.0, "b": 1.0}, {"random": 1, "a": 1}]
    randoms = [cell("random", 1.0, 100), cell("random", 1, 100)]
    assert [random_partner(cell("a", keep, 100), randoms).keep for keep in (1, 1.0)] == [1, 1.0]


def test_equal_tokens_takes_the_nearest_and_says_who_cannot():
    found = match_cells([UNPRUNED, *RANDOM, *LATE, *OWN], by="mean-tokens")
    assert [m.budget for m in found] == [0.5, 0.25, 0.1]
    assert names(found[0]) == {"random": 0.5, "fastv": 0.5, "vtw(layer=16)": None}
    # 29 is 16% off, 15 is 50% off: nothing is interpolated
    assert found[1].missed["fastv"] == "can't reach it: nearest is 29% (keep 25%)"
    assert found[2].missed["fastv"] == "can't reach it: nearest is 15% (keep 10%)"
    assert found[0].label == "50% of the tokens per layer"
    wider = match_cells([UNPRUNED, *RANDOM, *LATE], by="mean-tokens", tolerance=0.2)
    assert names(wider[1]) == {"random": 0.25, "fastv": 0.25}


def test_equal_flops_needs_flops():
    found = match_cells([UNPRUNED, *RANDOM, *LATE, *OWN], by="flops")
    assert [m.budget for m in found] == [0.55, 0.32, 0.2]
    assert names(found[0]) == {"random": 0.5, "fastv": 0.5}
    assert found[0].missed["vtw(layer=16)"] == "not measured"
    assert spent(cell("a", 0.5, 50, 0.5, flops_ratio=0.7), "flops") == 0.7  # of the whole prefill where it is known


def test_without_random_the_longest_line_gives_the_budgets():
    found = match_cells([UNPRUNED, *OWN, *LATE], by="mean-tokens")
    assert [m.budget for m in found] == [0.53, 0.29, 0.15]
    assert match_cells([UNPRUNED], by="flops") == []


def test_the_random_cell_beside_a_method():
    assert random_partner(LATE[1], RANDOM).keep == 0.25
    assert random_partner(OWN[0], RANDOM).keep == 0.5  # no keep of its own
    deep = cell("random(layer=2)", 0.25, 30)
    assert random_partner(LATE[1], [*RANDOM, deep]) is deep  # nearer in tokens
    late = cell("late", 0.1, 26, 0.5)  # what it was asked to keep is not what it spends
    assert [random_partner(late, RANDOM, rule).keep for rule in ("keep", "mean-tokens", "flops")] == [0.25, 0.25, 0.5]
    two = [cell("random", 0.5, 26), cell("random", 0.1, 26)]
    assert random_partner(late, two).keep == 0.1  # of equal ones that of the same keep
    assert random_partner(LATE[0], []) is None
    assert random_partner(OWN[0], RANDOM, "flops") is None


def test_the_same_budget():
    assert same_budget(LATE[0], RANDOM[0])  # 53 and 50
    assert not same_budget(LATE[2], RANDOM[2])  # 15 and 10
    assert same_budget(LATE[2], RANDOM[2], tolerance=0.4)
    assert [same_budget(LATE[1], RANDOM[1], rule) for rule in ("keep", "mean-tokens", "flops")] == [False, False, False]
    assert same_budget(LATE[0], RANDOM[0], "flops")
    assert not same_budget(OWN[0], RANDOM[0], "flops")  # not measured


@pytest.mark.parametrize(("by", "tolerance"), [("time", 0.1), ("flops", 1.0), ("flops", -0.1)])
def test_bad_arguments(by: str, tolerance: float):
    with pytest.raises(ValueError, match="allowed are keep, mean-tokens, flops"):
        match_cells(RANDOM, by, tolerance)
