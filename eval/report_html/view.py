"""What the template shows: a sweep's records as rows of text, with the numbers to sort by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..matching import Match, keep_text, match_cells
from ..stats import Interval
from ..summary import CellSummary
from . import words
from .headline import budget_note, verdict_kind

SCALES = ((0.5, 2, 5, 10), (1, 5, 10, 20), (2, 10, 20, 40))  # points at which the heat map's colour changes
SPANS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
FOREST = 96  # px


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
    seeds: str
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
        notes = [part for part in (more.replace(">=", "≥"), budget_note(c)) if part]
        rows.append(Row(
            cell=c, kind=kind, method=c.method, keep=keep_text(c.keep),
            seeds=f"{len(c.specs)} seeds" if len(c.specs) > 1 else "",
            verdict={"unpruned": "reference", "random": "baseline"}.get(kind, first), verdict_kind=verdict_kind(c.verdict),
            verdict_more=", ".join(notes), bar=bar_of(c.against_random, span),
            progress="" if c.complete else f"{c.n} of {questions}",
        ))  # fmt: skip
    return rows


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


@dataclass(frozen=True)
class Budgets:
    """The table at equal compute: a column per budget, a row per method."""

    rule: str
    matches: list[Match]
    methods: list[str]

    def ranked(self, match: Match, method: str) -> Interval | None:
        """The rank of a cell, at the first budget that it was ranked at."""
        cell = match.cells.get(method)
        first = next((m for m in self.matches if cell is not None and m.cells.get(method) is cell), None)
        return cell.rank if cell is not None and first is match else None


def budgets_of(cells: Sequence[CellSummary], rule: str) -> Budgets | None:
    """None where there is nothing to compare."""
    matches = match_cells(cells, rule)
    methods = list(dict.fromkeys(c.method for c in cells if not c.is_unpruned))
    return Budgets(rule, matches, methods) if matches and len(methods) > 1 else None


def facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, data and statistics, by name; what `about` lacks is left out."""
    data, versions, machine = (about.get(k) or {} for k in ("data", "versions", "hardware"))
    interval = about.get("interval") or {}
    found = [
        ("Model", about.get("model")),
        ("Model identity", (about.get("configuration") or {}).get("model")),
        ("Number format", (about.get("configuration") or {}).get("dtype")),
        ("Data", f"{data['name']} {data.get('version', '')}".strip() if data.get("name") else None),
        ("Data fingerprint", data.get("fingerprint")),
        ("Questions", ", ".join(f"{k} {v}" for k, v in (data.get("questions") or {}).items())),
        ("Images", data.get("images")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Hardware", _machine(machine)),
        ("Configuration", about.get("config_hash")),
        ("Intervals", f"{100 * interval.get('level', 0.95):g}%, {interval['method']}, {interval.get('reps')} resamples"
         if interval.get("method") else None),
        ("Seed", about.get("seed")),
        ("Duration", f"{about['seconds']:,.0f} s" if isinstance(about.get("seconds"), int | float) else None),
        ("Date", about.get("date")),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in found if value not in (None, "", [])]


def _machine(machine: dict[str, Any]) -> str:
    parts = [machine.get("gpu"), machine.get("cpu"), f"device {machine['device']}" if machine.get("device") else None]
    parts += [f"{machine[k]} {k}" for k in ("cpus", "threads") if machine.get(k)]
    if machine.get("load"):
        parts.append("load at the end " + " ".join(map(str, machine["load"])))
    return ", ".join(str(p) for p in parts if p)


OFFICIAL_MOST = 8


def official_rows(cells: Sequence[CellSummary]) -> dict[str, list[str]]:
    """Names of each task's official figures, without those of single categories and those that only repeat accuracy."""
    names: dict[str, list[str]] = {}
    for c in cells:
        for task, figures in c.official.items():
            found = names.setdefault(task, [])
            found += [n for n in figures if "/" not in n and n not in found]
    kept = {task: [n for n in found if n != "accuracy"][:OFFICIAL_MOST] for task, found in names.items()}
    return {task: found for task, found in kept.items() if any(
        c.official.get(task, {}).get(n) for c in cells for n in found)}  # fmt: skip
