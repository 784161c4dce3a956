"""The tasks of a folder of questions, by its definitions or one column of a table: no picture is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .definition import read_definition
from .parquet_set import task_column


def refuse_folder(folder: Path, tasks: Sequence[str] | None = None) -> None:
    """Refuse a folder that holds no evaluation set, or none with all of these tasks.

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing or unreadable file, a definition that is wrong, or an unknown task: the known ones are named.
    """
    files = sorted(folder.glob("*.yaml"))
    known = [read_definition(path).task for path in files] if files else task_column(folder)
    for task in tasks or ():
        if task not in known:
            raise ValueError(f"--tasks: unknown task {task!r}. In {folder} there is: {', '.join(known)}")
