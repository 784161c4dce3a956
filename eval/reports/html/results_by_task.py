"""Results task by task: the heat map of differences, and the official figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import CellSummary

SCALES = ((0.5, 2, 5, 10), (1, 5, 10, 20), (2, 10, 20, 40))  # points at which the colour changes
OFFICIAL_MOST = 8


@dataclass(frozen=True)
class Heat:
    """A field of the heat map: its step from -4 to 4, its text, whether its interval leaves out zero."""

    step: int
    text: str
    sure: bool
    title: str
    value: float | None


def heat_scale(cells: Sequence[CellSummary]) -> tuple[float, ...]:
    """Steps that tell the differences of this sweep apart."""
    gaps = [100 * abs(gap.value) for c in cells for gap in c.difference_by_task.values()]
    return next((s for s in SCALES if sum(gap >= s[-1] for gap in gaps) <= len(gaps) / 2), SCALES[-1])


def heat_of(cell: CellSummary, task: str, steps: Sequence[float] = SCALES[0]) -> Heat:
    """Difference to unpruned on one task."""
    gap = cell.difference_by_task.get(task)
    if gap is None:
        known = cell.accuracy.get(task)
        return Heat(0, words.NONE, False, "" if known is None else f"{words.percent(known)}%", None)
    size = sum(abs(100 * gap.value) >= s for s in steps)
    title = f"{cell.label}, {task}: {words.percent(cell.accuracy.get(task))}%, {words.ends(gap)}"
    sure = gap.low > 0 or gap.high < 0
    return Heat(int(math.copysign(size, gap.value)), words.signed(100 * gap.value), sure, title, gap.value)


def official_rows(cells: Sequence[CellSummary]) -> dict[str, list[str]]:
    """Names of each task's official figures, without those of single categories and those that only repeat accuracy."""
    names: dict[str, list[str]] = {}
    for c in cells:
        for task, figures in c.official.items():
            known = names.setdefault(task, [])
            known += [n for n in figures if "/" not in n and n not in known]

    def tells(task: str, name: str) -> bool:
        having = [c for c in cells if name in c.official.get(task, {})]
        found = [(c.official[task][name], c.accuracy.get(task, 0.0)) for c in having]
        return any(value for value, _ in found) and not all(math.isclose(value, score) for value, score in found)

    kept = {task: [n for n in found if tells(task, n)][:OFFICIAL_MOST] for task, found in names.items()}
    return {task: found for task, found in kept.items() if found}
