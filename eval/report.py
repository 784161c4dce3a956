"""What a sweep leaves behind: tables on the screen, ``summary.csv`` and ``summary.json``."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from .matching import keep_text
from .store import write_atomic
from .summary import CellSummary
from .tasks import TaskSet


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def _difference(cell: CellSummary) -> str:
    if cell.difference is None:
        return ""
    gap = [100 * x for x in cell.difference]
    return f"{gap[0]:+.1f} [{gap[1]:+.1f}, {gap[2]:+.1f}]"


def accuracy_table(cells: Sequence[CellSummary], tasks: TaskSet) -> Table:
    """Accuracy in percent per task and mean, with the paired difference to the unpruned model."""
    counts = tasks.counts
    table = Table(title="Accuracy (%)", title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    table.add_column("keep", justify="right")
    for task in tasks.tasks:
        table.add_column(f"{task}\nn={counts[task]}", justify="right")
    table.add_column("mean", justify="right", style="bold")
    table.add_column("vs unpruned\n[95% interval]", justify="right", no_wrap=True)
    last = None
    for cell in cells:
        if last is not None and cell.method != last:
            table.add_section()
        last = cell.method
        name = cell.method + ("" if cell.complete else f" ({cell.n} of {len(tasks.questions)})")
        scores = [_percent(cell.accuracy[t]) if t in cell.accuracy else "-" for t in tasks.tasks]
        table.add_row(name, keep_text(cell.keep), *scores, _percent(cell.mean.value), _difference(cell))
    return table


def cost_table(cells: Sequence[CellSummary]) -> Table:
    """Visual tokens asked and measured, and cost as a ratio to the unpruned model."""
    table = Table(title="Cost (visual tokens per image; ratios to unpruned)", title_justify="left", title_style="bold")
    table.add_column("method", no_wrap=True)
    for name in (
        "keep",
        "asked",
        "measured",
        "mean per\nlayer",
        "KV\nbytes",
        "FLOPs\nLM",
        "FLOPs\nall",
        "time\nLM",
        "time\nall",
    ):
        table.add_column(name, justify="right")
    last = None
    for cell in cells:
        if last is not None and cell.method != last:
            table.add_section()
        last = cell.method
        time = cell.time
        table.add_row(
            cell.method, keep_text(cell.keep), _count(cell.tokens_asked), _count(cell.tokens_kept),
            _count(cell.tokens_per_layer), _ratio(cell.kv_ratio), _ratio(cell.lm_flops_ratio), _ratio(cell.flops_ratio),
            _ratio(time.lm_ratio if time else None), _ratio(time.ratio if time else None),
        )  # fmt: skip
    return table


def _clean(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, cells: Sequence[CellSummary]) -> None:
    """Write ``summary.csv``, one line per cell, accuracies and differences in [0, 1]."""
    rows = [cell.flat() for cell in cells]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def write_json(path: Path, cells: Sequence[CellSummary], about: dict[str, Any]) -> None:
    """Write ``summary.json``: `about` (configuration, versions, hardware, command) and all cells."""
    listed = []
    for cell in cells:
        row = asdict(cell)
        for name in ("mean", "difference", "against_random", "rank"):
            row[name] = gap._asdict() if (gap := getattr(cell, name)) else None
        row["difference_by_task"] = {task: gap._asdict() for task, gap in cell.difference_by_task.items()}
        row["time"] = (
            {**asdict(cell.time), "ratio": cell.time.ratio, "lm_ratio": cell.time.lm_ratio} if cell.time else None
        )
        listed.append(row)
    write_atomic(path, json.dumps(_clean({**about, "cells": listed}), indent=1, ensure_ascii=False) + "\n")


def unpruned_of(cells: Sequence[CellSummary]) -> CellSummary | None:
    """The reference among the summaries."""
    return next((cell for cell in cells if cell.is_unpruned), None)
