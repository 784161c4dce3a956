"""A sweep's tables on the screen: accuracy and whether it beats random's, accuracy by task, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vtc.eval.reports.wording import hidden_scores as hidden
from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.reports.wording.against_smaller import ABOUT, HEADS, TITLE, smaller_rows
from vtc.eval.reports.wording.hidden_scores import hidden_heads, hidden_rows
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.power import MARGIN
from vtc.eval.tasks.questions import TaskSet

from .screen_table_notes import cost_caption, unparsed, unreached

RATIOS: dict[str, Callable[[CellSummary], float | None]] = {
    "KV\nbytes": lambda cell: cell.kv_ratio,
    "FLOPs\nLM": lambda cell: cell.lm_flops_ratio,
    "FLOPs\nall": lambda cell: cell.flops_ratio,
    "time\nLM": lambda cell: cell.time.lm_ratio if cell.time else None,
    "time\nall": lambda cell: cell.time.ratio if cell.time else None,
}
NEEDS = f" for {100 * MARGIN:g} points"  # said once, below the table
WIDE = 110  # columns from which the difference to unpruned has its interval beside it


def print_tables(console: Console, cells: Sequence[CellSummary], tasks: TaskSet, match: str = "keep") -> None:
    """Show everything, and in words what the numbers alone would not say."""
    console.print(verdict_table(cells, len(tasks.questions), console.width))
    for line in (*unreached(cells, match), *unparsed(cells, tasks)):
        console.print(line, highlight=False, soft_wrap=True)
    for table in task_tables(cells, tasks, console.width) if len(tasks.tasks) > 1 else ():
        console.print(table)
    if rows := smaller_rows(cells):
        console.print(_table_of(TITLE, ABOUT, HEADS, rows))
    if rows := hidden_rows(cells):
        console.print(_table_of(hidden.TITLE, hidden.ABOUT, hidden_heads(cells), rows))
    console.print(cost_table(cells))


def make_table(title: str, caption: str = "") -> Table:
    """An empty table in the sweep's style."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="",
    )


def fill_table(table: Table, cells: Sequence[CellSummary], row: Callable[[CellSummary], Sequence[str]]) -> Table:
    """A row per cell behind its method and keep; the first ones of a method stand apart."""
    last = None
    for cell in cells:
        if last is not None and cell.method != last:
            table.add_row()
        last = cell.method
        table.add_row(Text(_named(cell)), keep_text(cell.keep), *row(cell))
    return table


def _named(cell: CellSummary) -> str:
    return f"{cell.method} (trained)" if cell.is_trained else cell.method


def verdict_table(cells: Sequence[CellSummary], questions: int, width: int) -> Table:
    """Mean accuracy, its differences to unpruned and to random, and what follows."""
    seeds = next((len(c.specs) for c in cells if c.is_random), 0)
    about = ["mean of the tasks; differences in points, paired by question, with 95% intervals"]
    if seeds > 1:
        about.append(f"random is the mean of {seeds} seeds")
    if seeds:
        about.append("the verdict is corrected for the number of comparisons (Holm)")
    if any(NEEDS in c.verdict for c in cells):
        about.append(f"n is the number of questions that {100 * MARGIN:g} points need")
    table = make_table("Accuracy (%)", "; ".join(about) + ".")
    table.add_column("method", overflow="fold", min_width=8)
    table.add_column("keep", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True, style="bold")
    table.add_column("vs unpruned", justify="right", no_wrap=width >= WIDE)
    table.add_column("vs random", justify="right", no_wrap=True)
    table.add_column("verdict", ratio=1, min_width=16)

    def row(cell: CellSummary) -> list[str]:
        mean = words.percent(cell.mean.value)
        verdict = "reference" if cell.is_unpruned else "baseline" if cell.is_random else cell.verdict
        verdict = verdict.removesuffix(NEEDS)
        if not cell.complete:
            verdict = ", ".join(filter(None, (f"unfinished: {cell.n} of {questions}", verdict)))
        plain = _gap(cell.difference, width >= WIDE, cell.flips == 0)
        return [mean, plain, _gap(cell.against_random), verdict]

    return fill_table(table, cells, row)


def _gap(interval: Any, ends: bool = True, same: bool = False) -> str:
    if interval is None:
        return ""
    return f"{words.points(interval)} {words.ends(interval, same)}".strip() if ends else words.points(interval)


def task_tables(cells: Sequence[CellSummary], tasks: TaskSet, width: int) -> Iterator[Table]:
    """Accuracy by task, in as many tables as the width asks for."""
    heads = {task: (task, f"n={n}") for task, n in tasks.counts.items()}
    room = width - max(len(_named(c)) for c in cells) - max(4, *(len(keep_text(c.keep)) for c in cells)) - 8
    blocks: list[list[str]] = [[]]
    for task, head in heads.items():
        used = sum(max(map(len, heads[t])) + 2 for t in blocks[-1])
        if blocks[-1] and used + max(5, *map(len, head)) > room:
            blocks.append([])
        blocks[-1].append(task)
    for i, block in enumerate(blocks):
        part = f", {i + 1} of {len(blocks)}" if len(blocks) > 1 else ""
        table = make_table(f"Accuracy by task (%){part}")
        table.add_column("method", overflow="fold", min_width=8)
        table.add_column("keep", justify="right", no_wrap=True)
        for task in block:
            table.add_column("\n".join(heads[task]), justify="right", min_width=5)

        def row(cell: CellSummary, block: list[str] = block) -> list[str]:
            return [words.percent(cell.accuracy.get(task)) for task in block]

        yield fill_table(table, cells, row)


def _table_of(title: str, about: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = make_table(title, about)
    table.add_column(heads[0], overflow="fold", min_width=8)
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for i, row in enumerate(rows):
        if i and row[0] != rows[i - 1][0]:
            table.add_row()
        table.add_row(Text(row[0]), *row[1:])
    return table


def cost_table(cells: Sequence[CellSummary]) -> Table:
    """Visual tokens asked and measured, and cost as a ratio to the unpruned model; what nobody measured is left out."""
    table = make_table("Cost (visual tokens, and ratios to unpruned)", cost_caption(cells))
    table.add_column("method", overflow="fold", min_width=8)
    ratios = [(head, of) for head, of in RATIOS.items() if any(of(cell) is not None for cell in cells)]
    for head in ("keep", "asked", "kept", "mean per\nlayer", *(head for head, _ in ratios)):
        table.add_column(head, justify="right", no_wrap=True)

    def row(cell: CellSummary) -> list[str]:
        tokens = [words.count(n) for n in (cell.tokens_asked, cell.tokens_kept, cell.tokens_per_layer)]
        return tokens + [words.ratio(of(cell)) for _, of in ratios]

    return fill_table(table, cells, row)
