"""A sweep's folder and the files in it."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cells import Cell
from .loading import Loaded
from .plot import draw_pareto
from .report import write_csv, write_json
from .report_html import kept_finder, write_report
from .store import ResultStore, remove_drafts
from .summary import CellSummary
from .tasks import TaskSet

FILES = ("summary.csv", "summary.json", "report.html", "report.md", "pareto.png")


def results_folder(output: Path | None, loaded: Loaded, tasks: TaskSet, config: str, job: str = "bench") -> Path:
    """Where the results of a `job` go; the default name is stable, so that the same command resumes."""
    model = loaded.name.rstrip("/").split("/")[-1].replace(":", "_")
    data = tasks.name.replace("/", "_").replace(":", "_")[:60]
    return output or Path(f"vtc-{job}") / "-".join(dict.fromkeys((model, data, config[:8])))


def prepare_folder(folder: Path) -> list[Path]:
    """Make `folder` and check that it can be written; returns the folders that were made.

    Raises
    ------
    ValueError
        With the reason why it can't.
    """
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".vtc-probe-{time.time_ns()}"
        probe.write_bytes(b"vtc")
        probe.unlink()
    except OSError as e:
        remove_empty(made)
        raise ValueError(f"can't write to the output folder {folder}: {e.strerror or e}") from None
    remove_drafts(folder)
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of `folders` (innermost first) that hold nothing."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """For a job that writes to `folder`: makes it, and removes it again if nothing was written.

    Raises
    ------
    ValueError
        One line, if it can't be written to, or no longer can.
    """
    made = prepare_folder(folder)
    try:
        yield
    except OSError as e:
        if e.errno is None:  # not the system's but our own, such as a missing picture
            raise
        raise no_writing(folder, e) from None
    finally:
        remove_empty(made)


def no_writing(folder: Path, error: OSError) -> ValueError:
    """What a failed write means for a sweep, in one line."""
    what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
    return ValueError(f"can't write to {folder}: {what}; what was finished is kept, the same command resumes")


def write_files(
    folder: Path, summary: Sequence[CellSummary], about: dict[str, Any], store: ResultStore, loaded: Loaded,
    tasks: TaskSet, cells: Sequence[Cell],
) -> None:  # fmt: skip
    """Write ``FILES``, each in one go."""
    write_csv(folder / "summary.csv", summary)
    write_json(folder / "summary.json", summary, about)
    title = f"{loaded.name}, {tasks.name} {tasks.version}, {len(tasks.questions)} questions in {len(tasks.tasks)} tasks"
    draw_pareto(summary, folder / "pareto.png", title)
    write_report(folder, summary, about, tasks, store.rows.values(), kept_finder(loaded, cells, tasks))
