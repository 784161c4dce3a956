"""Measured beside published: the table and the figures of a sweep that followed a recipe."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.sweep.paper_recipes import UNPRUNED_COLUMN, Recipe, is_average
from vtc.eval.tasks.metrics import Metric, metric
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

RELATIVE = "% of unpruned"
Figures = dict[str, dict[str, float]]
# the papers' names of benchmarks whose definitions are called otherwise
DEFINITIONS = {"mmbench": "mmbenchen", "scienceqa": "scienceqaimg"}


def task_of(benchmark: str, tasks: TaskSet) -> str | None:
    """The task that carries a benchmark's name: case, hyphens and the like aside, or the ready definition of it."""
    named = {plain(task): task for task in reversed(tasks.tasks)}
    return named.get(plain(benchmark)) or named.get(DEFINITIONS.get(plain(benchmark), ""))


def plain(name: str) -> str:
    """A name's letters and digits, in lower case; ``lmms:`` in front of it is left out."""
    return re.sub(r"[\W_]", "", name.casefold().removeprefix("lmms:"))


def figure_of(cell: CellSummary, task: str, tasks: TaskSet) -> float | None:
    """What papers print of a task: its metric's figure, in percent unless it is a score."""
    kinds = {q.metric for q in tasks.questions if q.task == task}
    scorer = metric(kinds.pop()) if len(kinds) == 1 else Metric()
    name = scorer.printed or scorer.main
    value = cell.official.get(task, {}).get(name, cell.accuracy.get(task))
    return value if value is None or name.endswith("_score") else 100 * value


def averaged_tasks(recipe: Recipe, tasks: TaskSet) -> list[str]:
    """The tasks that a measured average is over.

    Those that were published one by one; of a recipe that knows averages only all that there are.
    """
    single = [name for name in recipe.published if not is_average(name)]
    if not single:
        return list(tasks.tasks)
    return [task for task in (task_of(name, tasks) for name in single) if task is not None]


def measured(recipe: Recipe, cells: Mapping[str, Cell], summary: Sequence[CellSummary], tasks: TaskSet) -> Figures:
    """What was measured for each published row by label, as ``figure_of`` gives it; a row that was not is missing.

    `cells` are the recipe's by label, as they were run.
    """
    by_spec = {cell.spec: cell for cell in summary}
    asked = {UNPRUNED_COLUMN: UNPRUNED, **cells}
    run = {label: by_spec[cell.spec] for label, cell in asked.items() if cell.spec in by_spec}
    columns = {
        label: {t: value for t in tasks.tasks if (value := figure_of(cell, t, tasks)) is not None}
        for label, cell in run.items()
    }
    base, over = columns.get(UNPRUNED_COLUMN, {}), averaged_tasks(recipe, tasks)
    found: Figures = {}
    for benchmark in recipe.published:
        task = task_of(benchmark, tasks)
        row: dict[str, float] = {}
        for label, figures in columns.items():
            value = _average(benchmark, figures, base, over) if is_average(benchmark) else figures.get(task or "")
            if value is not None:
                row[label] = value
        if row:
            found[benchmark] = row
    return found


def _average(
    benchmark: str, figures: Mapping[str, float], base: Mapping[str, float], over: Sequence[str]
) -> float | None:
    if RELATIVE not in benchmark:
        values = [figures[task] for task in over if task in figures]
    else:
        values = [100 * figures[task] / base[task] for task in over if task in figures and base.get(task)]
    return statistics.fmean(values) if values else None


def published_table(recipe: Recipe, found: Figures, tasks: TaskSet) -> RenderableType:
    """Two lines for each published row, the paper's and what was `found`; below, what they can't be compared in."""
    labels = [UNPRUNED_COLUMN, *recipe.cells]
    title = f"{recipe.name}: published and measured (in brackets: % of unpruned)"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("benchmark", overflow="fold")
    table.add_column("", no_wrap=True)
    for label in labels:
        table.add_column(label, justify="right", no_wrap=True)
    for benchmark, row in recipe.published.items():
        table.add_row(benchmark, "published", *_columns(benchmark, row, labels), style="dim")
        if benchmark in found:
            table.add_row("", "measured", *_columns(benchmark, found[benchmark], labels), end_section=True)
        else:
            table.add_row("", "not measured", end_section=True)
    return Group(table, *(Text(line) for line in remarks(recipe, found, tasks)))


def _columns(benchmark: str, row: Mapping[str, float], labels: Sequence[str]) -> list[str]:
    base = row.get(UNPRUNED_COLUMN)
    texts = []
    for label in labels:
        value = row.get(label)
        if value is None:
            texts.append("-")
        elif not base or label == UNPRUNED_COLUMN or RELATIVE in benchmark:
            texts.append(_number(value))
        else:
            texts.append(f"{_number(value)} ({100 * value / base:.1f})")
    return texts


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 200 else f"{value:.1f}"


def remarks(recipe: Recipe, found: Figures, tasks: TaskSet) -> list[str]:
    """What a reader must know to compare the two."""
    said = [f"Published: {recipe.source}; model {recipe.model}."]
    single = [name for name in recipe.published if not is_average(name)]
    lacking = [name for name in single if name not in found]
    if lacking:
        said.append(
            f"Not measured, as {tasks.name} has no task of that name: {', '.join(lacking)}. --tasks reads public "
            "benchmarks, --data FOLDER an evaluation set of yours."
        )
    if any(map(is_average, found)):
        other = "" if single else f", tasks of {tasks.name}, and not over the paper's benchmarks"
        said.append(f"The measured average is over {', '.join(averaged_tasks(recipe, tasks))}{other}.")
    if found and any(q.metric == "exact" for q in tasks.questions):
        said.append("Measured is the share of exactly matching answers; benchmarks have scorers of their own.")
    return said + [f"Note: {note}." for note in recipe.notes]


def recipe_json(recipe: Recipe, found: Figures) -> dict[str, Any]:
    """The same for ``summary.json``."""
    return {
        "name": recipe.name,
        "method": recipe.method,
        "model": recipe.model,
        "pruner": recipe.pruner,
        "source": recipe.source,
        "notes": list(recipe.notes),
        "cells": recipe.cells,
        "published": recipe.published,
        "measured": found,
    }
