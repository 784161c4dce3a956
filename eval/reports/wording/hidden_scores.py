"""What a score hides, as rows of texts for the screen and the reports."""

from __future__ import annotations

from collections.abc import Sequence

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.intervals import Interval

TITLE = "What a score hides"
ABOUT = (
    "In brackets the paired difference to the unpruned model in points, with its 95% interval. Second: a question "
    "more about the picture, on the cache that the first one was pruned for. Pointing: where a named thing is. "
    "Made up: yes to what is not there; fewer are better."
)
NAMES = {"second": "second question", "pointing": "pointing", "made_up": "made up"}


def hidden_heads(cells: Sequence[CellSummary]) -> list[str]:
    """The columns that some cell has, with how many questions; behind method and keep."""
    return ["method", "keep", *(f"{NAMES[name]}, n={_count(cells, name)}" for name in _told(cells))]


def hidden_rows(cells: Sequence[CellSummary]) -> list[tuple[str, ...]]:
    """A row under ``hidden_heads`` for each cell; none where the questions tell nothing of it."""
    told = _told(cells)
    return [(c.method, keep_text(c.keep), *(_text(c, name) for name in told)) for c in cells] if told else []


def _told(cells: Sequence[CellSummary]) -> list[str]:
    return [name for name in NAMES if _count(cells, name)]


def _count(cells: Sequence[CellSummary], name: str) -> int:
    return max((getattr(c.hidden, f"{name}_n") for c in cells if c.hidden), default=0)


def _text(cell: CellSummary, name: str) -> str:
    value: float | None = getattr(cell.hidden, name, None)
    gap: Interval | None = getattr(cell.hidden, f"{name}_difference", None)
    if value is None:
        return words.NONE
    return (
        words.percent(value)
        if gap is None
        else f"{words.percent(value)} ({words.points(gap)} {words.ends(gap, False)})"
    )
