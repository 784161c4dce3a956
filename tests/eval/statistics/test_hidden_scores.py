"""What a mean hides is counted from the answers themselves."""

from __future__ import annotations

import pytest

from vtc.eval.reports.wording.hidden_scores import hidden_heads, hidden_rows
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.statistics.hidden_scores import add_hidden
from vtc.eval.statistics.intervals import Interval
from vtc.eval.statistics.paired import Questions
from vtc.eval.statistics.pooled_seeds import pool_lines
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.pruning_settings import UNPRUNED, make_cell

CELL = make_cell("uniform", 0.5)
ASKED = {
    **{f"e{i}": Question(f"e{i}", "exist", f"i{i}", "is there a dog?", "no") for i in range(4)},
    "y": Question("y", "exist", "i0", "is there a cat?", "yes"),
    **{f"p{i}": Question(f"p{i}", "quadrant", f"i{i}", "where is it?", "top-left") for i in range(4)},
}


def row(parsed: str, score: float, image: str = "i0") -> dict[str, object]:
    return {"parsed": parsed, "score": score, "image_id": image}


def summary(spec: str) -> CellSummary:
    return CellSummary("m", 0.5, spec, 9, True, {}, Interval(0, 0, 0), None, None, 0, 0, 0, 0)


def test_counts() -> None:
    rows = {
        UNPRUNED.spec: {**{f"e{i}": row("no", 1.0) for i in range(4)}, "y": row("yes", 1.0),
                        **{f"p{i}": row("top-left", 1.0) for i in range(4)}},
        CELL.spec: {"e0": row("Yes", 0.0), "e1": row("yes.", 0.0), "e2": row("no", 1.0), "e3": row("maybe", 0.0),
                    "y": row("yes", 1.0), **{f"p{i}": row("top-left", float(i > 0)) for i in range(4)}},
    }  # fmt: skip
    second = {UNPRUNED.spec: {"a": row("x", 1.0, "i0"), "b": row("x", 1.0, "i1")},
              CELL.spec: {"a": row("x", 0.0, "i0"), "b": row("x", 1.0, "i1")}}  # fmt: skip
    lines = pool_lines([UNPRUNED, CELL], rows)
    summaries = [summary(line.first.spec) for line in lines]
    questions = Questions({i: q.image_id for i, q in ASKED.items()}, {i: q.task for i, q in ASKED.items()}, 200)
    add_hidden(summaries, lines, ASKED, questions, second)
    plain, pruned = (s.hidden for s in summaries)
    assert plain is not None
    assert pruned is not None
    assert (plain.made_up, plain.made_up_n, plain.made_up_difference) == (0.0, 4, None)
    assert (pruned.made_up, pruned.pointing, pruned.second) == (0.5, 0.75, 0.5)
    for gap, value in (
        (pruned.made_up_difference, 0.5),
        (pruned.pointing_difference, -0.25),
        (pruned.second_difference, -0.5),
    ):
        assert gap is not None
        assert gap.value == pytest.approx(value)
    assert hidden_heads(summaries) == ["method", "keep", "second question, n=2", "pointing, n=4", "made up, n=4"]
    assert [r[2].split(" ")[0] for r in hidden_rows(summaries)] == ["100.0", "50.0"]


def test_nothing_is_told_of_questions_that_tell_nothing() -> None:
    lines = pool_lines([UNPRUNED], {UNPRUNED.spec: {"y": row("yes", 1.0)}})
    summaries = [summary(UNPRUNED.spec)]
    asked = {"y": ASKED["y"]}
    add_hidden(summaries, lines, asked, Questions({"y": "i0"}, {"y": "exist"}, 200), {})
    assert hidden_rows(summaries) == []
    assert summaries[0].flat()["second"] == ""
