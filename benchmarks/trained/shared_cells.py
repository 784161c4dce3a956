"""What the studies of this folder share: options, cells that processes take from one another, tables, the page."""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vtc.eval.files.atomic import write_atomic
from vtc.eval.statistics.paired import Questions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trained.md"
LOGS = Path(__file__).resolve().parent / "logs"
Scores = Mapping[str, float]


class Place(NamedTuple):
    """Where a study's table stands in the page, and which of its files are logs of trainings."""

    mark: str
    end: str
    logs: str


def parser_of(about: str, steps: int, cell: str = "CELL:SEED") -> argparse.ArgumentParser:
    """The options of a study whose trainings have so many `steps`, and whose cells are called so."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", action="append", help=f"a cell as {cell}; default: all")
    parser.add_argument("--table", action="store_true", help="do no cells, write the table of those that are there")
    parser.add_argument("--page", action="store_true", help="the same, and put it into docs/trained.md")
    return parser


def to_do(folder: Path, cells: Iterable[str], named: Callable[[str], str]) -> Iterator[tuple[str, Path]]:
    """Cells that are not answered yet and no other process does, with the file for their answers, one at a time."""
    for cell in cells:
        file = folder / f"{named(cell)}.json"
        with claimed(file.with_suffix(".lock"), cell) as mine:
            if mine and not file.exists():
                yield cell, file


def keep_scores(file: Path, cell: str, scores: Scores) -> None:
    """Write down a cell's answers, and say how many are right."""
    write_atomic(file, json.dumps(scores))
    print(f"{cell}: {100 * sum(scores.values()) / len(scores):.1f}% of all questions", flush=True)


def scores_of(folder: Path, run: str) -> list[Scores]:
    """The answers of all seeds of `run`, the name of seed 0's file."""
    return [json.loads(f.read_text()) for f in sorted(folder.glob(f"{run.removesuffix('0')}[0-9].json"))]


def tell(options: argparse.Namespace, found: str, place: Place) -> None:
    """Show a table, keep it, and put it into the page where that is asked for."""
    write_atomic(options.out / "table.md", found)
    print(found)
    if options.page:
        publish(options.out, place, found)


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


def publish(folder: Path, place: Place, text: str) -> None:
    """Put a table between its marks into the page, and the logs of the trainings beside this file."""
    head, _, rest = PAGE.read_text().partition(place.mark)
    write_atomic(PAGE, f"{head}{place.mark}\n\n{text}\n{place.end}{rest.partition(place.end)[2]}")
    LOGS.mkdir(exist_ok=True)
    for log in folder.glob(place.logs):
        shutil.copy(log, LOGS / log.name)
