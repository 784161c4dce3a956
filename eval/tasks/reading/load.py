"""Evaluation sets in a folder, whatever kind they are."""

from __future__ import annotations

from pathlib import Path

from vtc.eval.tasks.questions import TaskSet

from .parquet_set import read_parquet_set
from .read_benchmarks import load_folder


def load_tasks(folder: str | Path, on_error: str = "stop") -> TaskSet:
    """Read an evaluation set.

    Parameters
    ----------
    folder : str or Path
        Holds ``images.parquet`` (image_id, image: encoded bytes or a struct with them), ``questions.parquet``
        (question_id, task, image_id, question, answer) and, if you like, ``dataset.json`` with "name", "version" and
        "tasks" (their order). Or it holds task definitions (``*.yaml``, see ``definition``) and their data.

    on_error : {"stop", "skip"}
        What happens at a row that can't be used: stop, or leave it out (``TaskSet.skipped`` names it).

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing file or column, a repeated question_id or a question about an image that is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if any(folder.glob("*.yaml")):
        return load_folder(folder, on_error)
    return read_parquet_set(folder, on_error)
