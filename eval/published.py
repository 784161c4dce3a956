"""Measured beside published: the table and the figures of a sweep that followed a recipe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .cells import UNPRUNED, Cell
from .recipes import UNPRUNED_COLUMN, Recipe, is_average
from .summary import CellSummary
from .tasks import TaskSet

RELATIVE = "% of unpruned"
Figures = dict[str, dict[str, float]]


def task_of(benchmark: str, tasks: TaskSet) -> str | None:
    """The task that carries a benchmark's name, in upper or lower case."""
    return next((task for task in tasks.tasks if task.casefold() == benchmark.casefold()), None)


def averaged_tasks(recipe: Recipe, tasks: TaskSet) -> list[str]:
    """The tasks that a measured average is over.

    Those that were published one by one; of a recipe that knows averages only all that there are.
    """
    single = [name for name in recipe.published if not is_average(name)]
    if not single:
        return list(tasks.tasks)
    return [task for task in (task_of(name, tasks) for name in single) if task is not None]


def measured(recipe: Recipe, cells: Mapping[str, Cell], summary: Sequence[CellSummary], tasks: TaskSet) -> Figures:
    """What was measured, in percent, for each published row by label; a row that was not is missing.

    `cells` are the recipe's by label, as they were run.
    """
    by_spec = {cell.spec: cell for cell in summary}
    asked = {UNPRUNED_COLUMN: UNPRUNED, **cells}
    columns = {label: by_spec[cell.spec].accuracy for label, cell in asked.items() if cell.spec in by_spec}
    base, over = columns.get(UNPRUNED_COLUMN, {}), averaged_tasks(recipe, tasks)
    found: Figures = {}
    for benchmark in recipe.published:
        task = task_of(benchmark, tasks)
        row: dict[str, float] = {}
        for label, accuracy in columns.items():
            value = _average(benchmark, accuracy, base, over) if is_average(benchmark) else accuracy.get(task or "")
            if value is not None:
                row[label] = 100 * value
        if row:
            found[benchmark] = row
    return found


def _average(
    benchmark: str, accuracy: Mapping[str, float], base: Mapping[str, float], over: Sequence[str]
) -> float | None:
    if RELATIVE not in benchmark:
        values = [accuracy[task] for task in over if task in accuracy]
    else:
        values = [accuracy[task] / base[task] for task in over if task in accuracy and base.get(task)]
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
            f"Not measured, as {tasks.name} has no task of that name: {', '.join(lacking)}. An evaluation set with "
            "them is given by --data FOLDER."
        )
    if any(map(is_average, found)):
        other = "" if single else f", tasks of {tasks.name}, and not over the paper's benchmarks"
        said.append(f"The measured average is over {', '.join(averaged_tasks(recipe, tasks))}{other}.")
    if found:
        said.append("Measured is the share of exactly matching answers; benchmarks have scorers of their own.")
    return said + [f"Note: {note}." for note in recipe.notes]


def recipe_json(recipe: Recipe, found: Figures) -> dict[str, Any]:
    """The same for ``summary.json``."""
    return {
        "name": recipe.name, "method": recipe.method, "model": recipe.model, "pruner": recipe.pruner,
        "source": recipe.source, "notes": list(recipe.notes), "cells": recipe.cells,
        "published": recipe.published, "measured": found,
    }  # fmt: skip
