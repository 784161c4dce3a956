"""A method beside smaller pictures: at as many tokens, in as much time, on easy and hard questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_sweeps import make_sweep

from vtc.eval.reports.wording.against_smaller import HEADS, smaller_rows
from vtc.eval.statistics.cell_summary import CellSummary


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CellSummary]:
    made = make_sweep(tmp_path_factory.mktemp("sweep"), {"downsample": -0.2, "random": 0.0, "good": 0.2})
    return {cell.label: cell for cell in made.summarise()}


def test_only_methods_are_compared(cells: dict[str, CellSummary]) -> None:
    assert {c.method for c in cells.values() if c.against_smaller} == {"random", "good"}
    assert [row[0] for row in smaller_rows(list(cells.values()))] == ["random"] * 3 + ["good"] * 3
    assert all(len(row) == len(HEADS) for row in smaller_rows(list(cells.values())))


def test_at_as_many_tokens(cells: dict[str, CellSummary]) -> None:
    good, small = cells["good 25%"], cells["downsample 25%"]
    found = good.against_smaller
    assert found is not None
    assert (found.partner, found.tokens) == ("downsample 25%", small.tokens_per_layer)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(good.mean.value - small.mean.value)
    assert found.difference.low < found.difference.value < found.difference.high


def test_easy_and_hard_are_all_questions(cells: dict[str, CellSummary]) -> None:
    good, small = cells["good 25%"], cells["downsample 25%"]
    found = good.against_smaller
    assert found is not None
    easy, hard = found.easy, found.hard
    assert easy is not None
    assert hard is not None
    assert easy.n == round(small.mean.value * small.n)
    assert easy.n + hard.n == good.n
    assert easy.accuracy is not None
    assert hard.accuracy is not None
    assert easy.n * easy.accuracy + hard.n * hard.accuracy == pytest.approx(good.mean.value * good.n)


def test_in_as_much_time(cells: dict[str, CellSummary]) -> None:
    small = [c for c in cells.values() if c.is_smaller]
    for cell in cells.values():
        if cell.against_smaller is None:
            continue
        assert cell.time is not None
        fast = [c for c in small if c.time is not None and c.time.seconds <= cell.time.seconds]
        if not fast:
            assert cell.against_smaller.timed == ""
            continue
        slowest = max(fast, key=lambda c: c.time.seconds if c.time else 0.0)
        assert cell.against_smaller.timed == slowest.label
        assert cell.against_smaller.timed_difference is not None


def test_no_smaller_pictures_near_enough(tmp_path: Path) -> None:
    made = make_sweep(tmp_path, {"downsample": 0.0, "random": 0.0}, keeps=(0.5, 0.1), layers={"random": 8})
    found = {cell.label: cell for cell in made.summarise()}["random 10% (3 seeds)"].against_smaller
    assert found is not None
    assert (found.partner, found.difference, found.easy) == ("", None, None)


def test_columns_of_the_table(cells: dict[str, CellSummary]) -> None:
    row = cells["good 25%"].flat()
    assert row["smaller"] == "downsample 25%"
    assert row["easy_n"] + row["hard_n"] == row["n"]
    assert row["smaller_difference_low"] <= row["smaller_difference"] <= row["smaller_difference_high"]
    assert cells["unpruned"].flat()["smaller"] == ""
