"""What the reader of a sweep should know first: its size, and what limits its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.equal_budget import TOLERANCE
from vtc.eval.statistics.significance import NO_BASELINE

from . import numbers_in_words as words

SEEDS = 3  # of random, for its luck to be in the intervals
IMAGES = 30
UNSTEADY = 0.5  # a range of readings that is this share of their median


def notices(cells: Sequence[CellSummary], images: int) -> list[str]:
    """What limits the numbers, the gravest first."""
    pruned, found = [c for c in cells if not c.is_unpruned], []
    if open_cells := sum(not c.complete for c in cells):
        found.append(
            f"{open_cells} of {len(cells)} lines are unfinished; they are compared on the questions that both sides "
            "have."
        )
    if pruned and not any(c.is_unpruned for c in cells):
        found.append("The unpruned model was not run, so there are no differences to it.")
    randoms = [c for c in pruned if c.is_random]
    if pruned and not randoms:
        found.append("Random was not run: add it (--pruners random,...) to learn which methods beat it.")
    elif randoms and (fewest := min(max(1, len(c.specs)) for c in randoms)) < SEEDS:
        luck = "its luck is not in the intervals" if fewest == 1 else "its luck is only roughly in the intervals"
        found.append(f"Random has {fewest} seed{'s' if fewest > 1 else ''}: {luck}. {SEEDS} or more are better.")
    alone = [c for c in pruned if c.verdict.startswith(NO_BASELINE)]
    if alone:
        names = words.listed(list(dict.fromkeys(words.short(c.method) for c in alone)))
        found.append(
            f"{len(alone)} of {len(pruned)} lines ({names}) are not judged: no random cell was measured within "
            f"{100 * TOLERANCE:.0f}% of what they spend."
        )
    shaky, timed_lines = unsteady(cells)
    if shaky:
        found.append(
            f"The measured times are rough: in {shaky} of {timed_lines} lines the turns differ by more than half of "
            "the median (was the machine busy?). They stand in the tables only."
        )
    if 0 < images < IMAGES:
        found.append(f"There are only {images} images: intervals over so few are rough.")
    counted = any(c.lm_flops_ratio is not None or c.flops_ratio is not None for c in pruned)
    timed = any(c.time is not None for c in pruned)
    if pruned and not (counted and timed):
        flops, times = "FLOPs were not counted", "times were not measured"
        found.append(f"{flops}." if timed else f"{times.capitalize()}." if counted else f"{flops} and {times}.")
    return found


def unsteady(cells: Sequence[CellSummary]) -> tuple[int, int]:
    """Lines whose readings of the whole time range over more than half of their median, of how many."""
    readings = [s for c in cells if c.cost and (s := c.cost.whole) and s.median]
    return sum((s.high - s.low) / s.median > UNSTEADY for s in readings), len(readings)


def times_shown(cells: Sequence[CellSummary]) -> bool:
    """Whether the measured times belong in a headline or a chart: not where the note calls them rough."""
    return unsteady(cells)[0] == 0


def partner_note(cell: CellSummary) -> str:
    """The random cell that a cell is compared with, where it was asked for another keep."""
    partner, own = cell.against.rpartition(", ")[0], keep_text(cell.keep)
    return f"against {partner}" if partner and (not own or own not in partner.split()) else ""


def sweep_line(cells: Sequence[CellSummary], about: dict[str, Any]) -> str:
    """What was run on what."""
    data = about.get("data") or {}
    randoms = any(c.is_random for c in cells)
    methods = len({c.method for c in cells if not c.is_unpruned and not c.is_random})
    # random is also run at budgets that nobody asked for
    asked = [c.keep for c in cells if not methods or not c.is_random]
    keeps = [k for k in dict.fromkeys(asked) if k is not None]
    parts = [f"{methods} method{'s' if methods != 1 else ''}" + (" and random" if randoms else "")]
    if keeps:
        parts[0] += f" at {words.listed([keep_text(k) for k in keeps], 6)}"
    if about.get("model"):
        parts.append(f"model {about['model']}")
    if data.get("name"):
        parts.append(f"data {data['name']} {data.get('version', '')}".strip())
    return " · ".join(parts)
