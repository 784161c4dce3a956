"""The results files: one JSON line per sample and cell, safe against kill -9, a full disk and one another."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

from vtc.eval.files.atomic import same_file
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.vlm.loading import Loaded
from vtc.pruners.untrusted_json import parse_json


def results_folder(output: Path | None, loaded: Loaded, tasks: TaskSet, config: str, job: str = "bench") -> Path:
    """Where the results of a `job` go; the default name is stable, so that the same command resumes."""
    model = loaded.name.rstrip("/").split("/")[-1].replace(":", "_")
    data = tasks.name.replace("/", "_").replace(":", "_")[:60]
    return output or Path(f"vtc-{job}") / "-".join(dict.fromkeys((model, data, config[:8])))


try:
    import fcntl
except ImportError:  # Windows: no lock, everything else works
    fcntl = None  # type: ignore[assignment]

Key = tuple[str, str]
NAMES = ("config", "cell", "question_id")  # texts that every row has


def read_rows(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Rows of a results file from byte `start` on, and the number of bytes up to the end of the last whole line.

    Lines that are no rows (a JSON object with ``NAMES``) are skipped: torn by a crash or written by something else,
    they are computed again.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    end = data.rfind(b"\n") + 1
    rows = []
    for line in data[:end].splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in NAMES):
            rows.append(row)
    return rows, start + end


def result_files(path: Path) -> list[Path]:
    """`path` and its siblings: ``results.jsonl``, ``results-1.jsonl``, ..., those that are there, in order."""
    number = re.compile(re.escape(path.stem) + r"-(\d+)" + re.escape(path.suffix))
    found = [(int(m.group(1)), p) for p in path.parent.glob(f"{path.stem}-*") if (m := number.fullmatch(p.name))]
    return [path] * path.exists() + [p for _, p in sorted(found)]


class ResultStore:
    """Append-only results of one configuration, in one file per writing process.

    All files are read; each process that writes locks one of its own. A row that is in several counts once.

    Parameters
    ----------
    path : Path
        The first file; further ones are called ``NAME-1.jsonl`` and so on. They may hold rows of other configurations,
        which are left alone.
    config : str
        Hash of the whole configuration; only rows that carry it count as done.
    """

    numbers: ClassVar[tuple[str, ...]] = ()  # what must be finite numbers in a row for it to count

    def __init__(self, path: Path, config: str):
        self.path, self.config = path, config
        self.rows: dict[Key, dict[str, Any]] = {}
        self.number = 0
        self._file: FileIO | None = None
        self._end = 0
        self._read: dict[Path, int] = {}
        self.refresh()

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, key: Key) -> bool:
        return key in self.rows

    @property
    def file(self) -> Path:
        """The file that this process writes."""
        return self.path if self.number == 0 else self.path.with_stem(f"{self.path.stem}-{self.number}")

    def cell(self, cell: str) -> dict[str, dict[str, Any]]:
        """Rows of one cell by question id."""
        return {question: row for (name, question), row in self.rows.items() if name == cell}

    def refresh(self) -> list[dict[str, Any]]:
        """Read what has been added to the files since the last time; returns the rows that were not known."""
        new = []
        for path in result_files(self.path):
            if self._file is not None and path == self.file:
                continue
            rows, self._read[path] = read_rows(path, self._read.get(path, 0))
            for row in rows:
                key = (row["cell"], row["question_id"])
                if row["config"] == self.config and key not in self.rows and self._whole(row):
                    self.rows[key] = row
                    new.append(row)
        return new

    def _whole(self, row: dict[str, Any]) -> bool:
        values = [row.get(name) for name in self.numbers]
        return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)

    def open(self) -> None:
        """Lock the first file that no other process writes, and cut off a torn last line.

        Raises
        ------
        OSError
            If there is no writing here.
        """
        while self._file is None:
            file = open(self.file, "ab", buffering=0)  # noqa: SIM115 - closed by close(); a buffer would outlive an error
            if not self._lock(file):
                file.close()
                self.number += 1
                continue
            if not same_file(file.fileno(), self.file):  # its last owner has just removed it
                file.close()
                continue
            self.refresh()  # before it counts as our own: the last owner may have written after we read it
            self._end = self._read.get(self.file, 0)
            file.truncate(self._end)
            self._file = file

    def _lock(self, file: FileIO) -> bool:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks: only a file that was not there is surely our own
        return os.fstat(file.fileno()).st_size == 0

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and force them to the disk; on an error the file is as it was before."""
        self.open()
        assert self._file is not None
        rows = [{"config": self.config, **row} for row in rows]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._rewind()
            raise
        self._end += len(data)
        self._read[self.file] = self._end
        self.rows.update({(row["cell"], row["question_id"]): row for row in rows})

    def _rewind(self) -> None:
        assert self._file is not None
        try:
            os.ftruncate(self._file.fileno(), self._end)
            self._file.close()
        except OSError:
            pass
        self._file = None

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        if self._file is not None:
            if self.file.exists() and self.file.stat().st_size == 0:
                self.file.unlink()  # still locked: nobody else has begun to write to it
            self._file.close()
            self._file = None


class AnswerStore(ResultStore):
    """Rows that say what was answered, of how many visual tokens."""

    numbers = ("score", "visual_total", "visual_kept", "visual_mean_per_layer")
