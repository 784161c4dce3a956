"""The benchmark harness, for a script or a notebook; ``vtc bench`` and the other jobs are in the folders below."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.eval.tasks.questions import Question, TaskSet
    from vtc.eval.tasks.reading.parquet_set import save_tasks

    from .api import Answers, load_tasks, paired_difference, report, run_sweep, summarise

# imported on first use: the parts of the harness need no more than they use
_HOME = {
    **dict.fromkeys(("Answers", "load_tasks", "paired_difference", "report", "run_sweep", "summarise"), "vtc.eval.api"),
    **dict.fromkeys(("Question", "TaskSet"), "vtc.eval.tasks.questions"),
    "save_tasks": "vtc.eval.tasks.reading.parquet_set",
}

__all__ = [
    "Answers",
    "Question",
    "TaskSet",
    "load_tasks",
    "paired_difference",
    "report",
    "run_sweep",
    "save_tasks",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vtc.eval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
