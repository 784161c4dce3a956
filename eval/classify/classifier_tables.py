"""A classifier's tables on the screen: accuracy with its verdicts, and FLOPs and throughput as measured."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vtc.eval.reports.screen_table_notes import unreached
from vtc.eval.reports.screen_tables import fill_table, make_table, verdict_table
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.notices import unsteady
from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.tasks.questions import TaskSet

from .pictures import TASK


def print_tables(console: Console, cells: Sequence[CellSummary], tasks: TaskSet, match: str, batch: int) -> None:
    """Show everything; `batch` is the size of the timed batch."""
    console.print(verdict_table(cells, len(tasks.questions), console.width))
    for line in unreached(cells, match):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(cost_table(cells, batch))


def _caption(cells: Sequence[CellSummary], batch: int) -> str:
    said = "Random keeps as many tokens at the same layers as the method that it is named after. FLOPs of one picture"
    repeats = next((c.cost.repeats for c in cells if c.cost and c.cost.vision), 0)
    if not repeats:
        return said + "."
    said += f"; pictures a second at batch {batch}: medians of {repeats} interleaved turns after a warm-up."
    shaky, lines = unsteady(cells)
    if shaky:
        said += (
            f" They are rough: in {shaky} of {lines} lines the turns differ by more than half of the median (was the "
            "machine busy?)."
        )
    return said


def cost_table(cells: Sequence[CellSummary], batch: int) -> Table:
    """Top-5, patches left, FLOPs and throughput; what nobody measured is left out."""
    table = make_table("Cost", _caption(cells, batch))
    timed = any(c.cost and c.cost.images_per_second for c in cells)
    table.add_column("method", overflow="fold", min_width=8)
    times = ("images/s", "speed-up") if timed else ()
    for head in ("keep", "top-1", "top-5", "left", "mean per\nlayer", "FLOPs", "ratio", *times):
        table.add_column(head, justify="right", no_wrap=True)

    def row(cell: CellSummary) -> list[str]:
        top5, cost = cell.official.get(TASK, {}).get("top5"), cell.cost
        found = [words.percent(cell.mean.value), words.percent(top5)]
        found += [words.count(cell.tokens_kept), words.count(cell.tokens_per_layer)]
        found += [words.flops(cost.vision_flops) if cost else words.NONE, words.ratio(cell.flops_ratio)]
        if timed:
            rate, time = cost.images_per_second if cost else None, cell.time
            found += [words.count(rate.median) if rate else words.NONE]
            found += [f"{1 / time.ratio:.2f}" if time else words.NONE]
        return found

    return fill_table(table, cells, row)
