"""What the studies of this folder share: cells that processes take from one another, texts of a table, the page."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vtc.eval.files.atomic import write_atomic
from vtc.eval.statistics.paired import Questions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trained.md"
LOGS = Path(__file__).resolve().parent / "logs"
Scores = Mapping[str, float]


@contextmanager
def claimed(file: Path, cell: str) -> Iterator[bool]:
    """Whether a `cell` is this process's to do, by the lock `file`; says so where it is not."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{cell} is being done by another process", flush=True)
            yield False
            return
        yield True


def accuracy(judge: Questions, runs: Sequence[Scores]) -> str:
    """Accuracy of the mean of runs, in percent."""
    mean = {q: sum(r[q] for r in runs) / len(runs) for q in runs[0]}
    return f"{100 * judge.interval(mean).value:.1f}"


def gap(judge: Questions, ours: Sequence[Scores], theirs: Sequence[Scores]) -> str:
    """Paired difference in points, with its interval."""
    found = judge.compare(ours, theirs).difference
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def publish(folder: Path, mark: str, end: str, text: str, logs: str) -> None:
    """Put a table between its marks into the page, and the logs of the trainings beside this file."""
    head, _, rest = PAGE.read_text().partition(mark)
    write_atomic(PAGE, f"{head}{mark}\n\n{text}\n{end}{rest.partition(end)[2]}")
    LOGS.mkdir(exist_ok=True)
    for log in folder.glob(logs):
        shutil.copy(log, LOGS / log.name)
