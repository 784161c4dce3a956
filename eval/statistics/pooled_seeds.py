"""One line of the tables: the cells that differ only in their seed, pooled per question."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

Rows = Mapping[str, Mapping[str, Any]]  # of one cell, by question id


@dataclass(frozen=True)
class Line:
    """Cells that share a line, and the rows of each."""

    cells: tuple[Cell, ...]
    rows: tuple[Rows, ...]

    @property
    def first(self) -> Cell:
        """The cell that names it."""
        return self.cells[0]

    @property
    def pruned(self) -> bool:
        """Whether it is not the plain model."""
        return self.first.spec != UNPRUNED.spec

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the cells that have any."""
        return tuple(seed for cell in self.cells if (seed := cell.seed) is not None)

    @cached_property
    def runs(self) -> list[dict[str, float]]:
        """Score of each question, one mapping per seed that has any result."""
        return [{q: row["score"] for q, row in rows.items()} for rows in self.rows if rows]

    @cached_property
    def scores(self) -> dict[str, float]:
        """Score of each question, the mean of the seeds that have answered it."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            for q, score in run.items():
                found.setdefault(q, []).append(score)
        return {q: statistics.fmean(v) for q, v in found.items()}

    @property
    def every_row(self) -> list[Mapping[str, Any]]:
        """All rows of all seeds."""
        return [row for rows in self.rows for row in rows.values()]

    def complete(self, questions: Collection[str]) -> bool:
        """Whether every seed has answered all `questions`."""
        return all(len(rows) == len(questions) for rows in self.rows)


def pool_lines(cells: Sequence[Cell], rows_of: Mapping[str, Rows]) -> list[Line]:
    """The lines of a sweep in order; a cell without a ``line`` is one of its own.

    Parameters
    ----------
    cells : sequence of Cell
        All cells.
    rows_of : mapping
        Rows of each cell's spec.
    """
    lines: dict[str, list[Cell]] = {}
    for cell in cells:
        lines.setdefault(cell.line or cell.spec, []).append(cell)
    return [Line(tuple(same), tuple(rows_of.get(cell.spec, {}) for cell in same)) for same in lines.values()]
