"""What every cell costs, part by part: columns that nobody measured are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import CellSummary


@dataclass(frozen=True)
class Column:
    """A column of the table; ``of`` gives a cell's value or None, ``text`` writes it and ``more`` its range."""

    label: str
    unit: str
    of: Callable[[CellSummary], Any]
    text: Callable[[Any], str]
    more: Callable[[Any], str] = lambda _: ""


def _part(name: str) -> Callable[[CellSummary], Any]:
    return lambda cell: getattr(cell.cost, name) if cell.cost else None


def _time(label: str, name: str) -> Column:
    return Column(label, "ms", _part(name), lambda s: words.milliseconds(s.median), words.spread)


def _rate(s: Any) -> str:
    return words.count(s.median)


def _rates(s: Any) -> str:
    return f"[{words.count(s.low)}–{words.count(s.high)}]"


COLUMNS = (
    Column("Asked", "tokens", lambda c: c.tokens_asked, words.count),
    Column("Left", "tokens", lambda c: c.tokens_kept, words.count),
    Column("KV cache", "ratio", lambda c: c.kv_ratio, words.ratio),
    Column("Tower", "FLOPs", _part("tower_flops"), words.flops),
    Column("LM", "FLOPs", _part("lm_flops"), words.flops),
    Column("Head", "FLOPs", _part("head_flops"), words.flops),
    _time("Vision", "vision"),
    _time("Selection", "selection"),
    _time("LM prefill", "lm_prefill"),
    _time("First token", "prefill"),
    _time("Next tokens", "decode"),
    Column("Throughput", "images/s", _part("images_per_second"), _rate, _rates),
    Column("Memory", "MiB", _part("peak_memory"), lambda n: f"{n / 2**20:,.0f}"),
)


def cost_columns(cells: Sequence[CellSummary]) -> list[Column]:
    """Those that some cell has; none where no cell was measured by itself, the main table says the rest."""
    if not any(c.cost for c in cells):
        return []
    return [column for column in COLUMNS if any(column.of(c) is not None for c in cells)]


def memory_note(cells: Sequence[CellSummary]) -> str:
    """Of what the peak memory is."""
    return next((c.cost.memory_of for c in cells if c.cost and c.cost.peak_memory is not None), "")
