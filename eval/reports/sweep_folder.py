"""A sweep's folder and the files in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtc.eval.statistics.cell_summary import CellSummary
from vtc.eval.sweep.results_store import ResultStore
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.pruning_settings import Cell

from .html import kept_finder, write_report
from .pareto_plot import draw_pareto
from .summary_files import write_csv, write_json

FILES = ("summary.csv", "summary.json", "report.html", "report.md", "pareto.png")


def write_files(
    folder: Path,
    summary: Sequence[CellSummary],
    about: dict[str, Any],
    store: ResultStore,
    loaded: Loaded,
    tasks: TaskSet,
    cells: Sequence[Cell],
) -> None:
    """Write ``FILES``, each in one go."""
    write_csv(folder / "summary.csv", summary)
    write_json(folder / "summary.json", summary, about)
    title = f"{loaded.name}, {tasks.name} {tasks.version}, {len(tasks.questions)} questions in {len(tasks.tasks)} tasks"
    draw_pareto(summary, folder / "pareto.png", title)
    write_report(folder, summary, about, tasks, store.rows.values(), kept_finder(loaded, cells, tasks))
