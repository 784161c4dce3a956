"""The main table and the one at equal budgets: a sweep's records as rows of text, with the numbers to sort by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vtc.eval.reports.wording.notices import partner_note
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.equal_budget import TOLERANCE, Match, match_cells
from vtc.eval.statistics.intervals import Interval

from .headline import verdict_kind

SPANS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
FOREST = 80  # px


@dataclass(frozen=True)
class Bar:
    """An interval on a line of `FOREST` px; ``cut`` says on which sides it leaves it."""

    low: float
    high: float
    value: float
    kind: str


@dataclass(frozen=True)
class Row:
    """A line of the main table."""

    cell: CellSummary
    kind: str  # "unpruned", "random" or "method"
    method: str
    keep: str
    about: str
    verdict: str
    verdict_kind: str
    verdict_more: str
    bar: Bar | None
    progress: str


def span_of(cells: Sequence[CellSummary]) -> float:
    """The largest end of all intervals against random, in points, rounded up; the scale of the bars."""
    ends = [100 * abs(v) for c in cells if c.against_random for v in c.against_random if math.isfinite(v)]
    largest = max(ends, default=1.0)
    return next((span for span in SPANS if largest <= span), 100)


def bar_of(gap: Interval | None, span: float) -> Bar | None:
    """Where an interval lies on the line from -span to +span points."""
    if gap is None or not all(map(math.isfinite, gap)):
        return None
    low, high, value = (FOREST / 2 + 100 * v / span * (FOREST / 2 - 4) for v in (gap.low, gap.high, gap.value))
    return Bar(low, high, value, "up" if gap.low > 0 else "down" if gap.high < 0 else "zero")


def table_rows(cells: Sequence[CellSummary], questions: int) -> list[Row]:
    """Lines of the main table, in the order of the sweep."""
    span = span_of(cells)
    rows = []
    for c in cells:
        kind = "unpruned" if c.is_unpruned else "random" if c.is_random else "method"
        first, _, more = c.verdict.partition(", ")
        if first.endswith(" after correction"):
            first, more = first.removesuffix(" after correction"), "after correction"
        notes = [part for part in (more.replace(">=", "≥"), partner_note(c)) if part]
        rows.append(
            Row(
                cell=c,
                kind=kind,
                method=c.method,
                keep=keep_text(c.keep),
                about=f"{len(c.specs)} seeds" if len(c.specs) > 1 else "trained" if c.is_trained else "",
                verdict={"unpruned": "reference", "random": "baseline"}.get(kind, first),
                verdict_kind=verdict_kind(c.verdict),
                verdict_more=", ".join(notes),
                bar=bar_of(c.against_random, span),
                progress="" if c.complete else f"{c.n} of {questions}",
            )
        )
    return rows


@dataclass(frozen=True)
class Budgets:
    """The table at equal compute: a column per budget, a row per method, the best first."""

    rule: str
    matches: list[Match]
    methods: list[str]

    def uneven(self, match: Match) -> bool:
        """Whether cells of the same keep spend different tokens."""
        spent = [c.tokens_per_layer for c in match.cells.values()]
        return self.rule == "keep" and max(spent) - min(spent) > TOLERANCE * max(spent)

    def ranked(self, match: Match, method: str) -> Interval | None:
        """The rank of a cell, at the first budget that it was ranked at."""
        cell = match.cells.get(method)
        first = next((m for m in self.matches if cell is not None and m.cells.get(method) is cell), None)
        return cell.rank if cell is not None and first is match else None


def budgets_of(cells: Sequence[CellSummary], rule: str) -> Budgets | None:
    """None where there is nothing to compare."""
    matches = match_cells(cells, rule)
    found = Budgets(rule, matches, list(dict.fromkeys(c.method for c in cells if not c.is_unpruned)))
    if not matches or len(found.methods) < 2:
        return None

    def place(method: str) -> float:
        ranks = [rank.value / m.cells[method].ranked for m in matches if (rank := found.ranked(m, method))]
        return sum(ranks) / len(ranks) if ranks else 2.0

    return replace(found, methods=sorted(found.methods, key=place))
