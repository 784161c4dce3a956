"""What one mean of accuracies hides: second questions, pointing, and things that are made up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vtc.eval.tasks.questions import Question

from .beside_the_mean import Hidden
from .cell_summary import CellSummary
from .intervals import Interval
from .paired import Questions, Scores
from .pooled_seeds import Line, Rows, pool_lines

POINTING = ("quadrant",)  # tasks that ask where a named thing is
PRESENCE = ("exist", "pope", "existence")  # tasks, and categories of tasks, that ask whether a named thing is there
ONE_TASK = "second"


def add_hidden(
    summaries: Sequence[CellSummary],
    lines: Sequence[Line],
    asked: Mapping[str, Question],
    questions: Questions,
    second: Mapping[str, Rows],
) -> None:
    """Fill in ``hidden`` of all cells of a sweep.

    Parameters
    ----------
    summaries, lines : sequence
        The cells, and the results behind each.
    asked : mapping
        The sweep's questions by id.
    questions : Questions
        Their images and tasks.
    second : mapping
        Rows of second questions of each cell's spec; empty where none were asked.
    """
    pointing = {i for i, q in asked.items() if q.task in POINTING}
    absent = {i for i, q in asked.items() if {q.task, q.category} & {*PRESENCE} and q.answer.strip().lower() == "no"}
    lined = {line.first.spec: line for line in pool_lines([c for line in lines for c in line.cells], second)}
    image_of = {i: str(row["image_id"]) for rows in second.values() for i, row in rows.items()}
    of_second = Questions(image_of, dict.fromkeys(image_of, ONE_TASK), questions.reps, questions.seed)
    base = next((line for line in lines if not line.pruned), None)
    plain = {} if base is None else _parts(base, lined, pointing, absent)
    for summary, line in zip(summaries, lines, strict=True):
        hidden = Hidden()
        for name, scores in _parts(line, lined, pointing, absent).items():
            drawn = of_second if name == "second" else questions
            setattr(hidden, name, statistics.fmean(scores.values()) if scores else None)
            setattr(hidden, f"{name}_n", len(scores))
            if line.pruned:
                setattr(hidden, f"{name}_difference", _gap(drawn, scores, plain.get(name, {})))
        summary.hidden = hidden


def _parts(line: Line, second: Mapping[str, Line], pointing: set[str], absent: set[str]) -> dict[str, Scores]:
    """Scores by what they tell; of what is not there, a yes counts 1."""
    again = second.get(line.first.spec)
    return {
        "second": again.scores if again else {},
        "pointing": {q: score for q, score in line.scores.items() if q in pointing},
        "made_up": _yes(line.rows, absent),
    }


def _yes(runs: Iterable[Mapping[str, Mapping[str, Any]]], absent: set[str]) -> dict[str, float]:
    said: dict[str, list[bool]] = {}
    for rows in runs:
        for q, row in rows.items():
            if q in absent:
                said.setdefault(q, []).append(str(row["parsed"]).strip().lower().startswith("yes"))
    return {q: statistics.fmean(yes) for q, yes in said.items()}


def _gap(questions: Questions, scores: Scores, base: Scores) -> Interval | None:
    return questions.interval(scores, base) if scores.keys() & base.keys() else None
