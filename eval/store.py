"""The results file: one JSON line per sample and cell, safe against kill -9, a torn last line and a full disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows: no lock, everything else works
    fcntl = None  # type: ignore[assignment]

Key = tuple[str, str]


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of a results file and the number of bytes up to the end of the last whole line.

    Lines that are no JSON object are skipped: they were torn by a crash and are computed again.
    """
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    rows = []
    for line in data[:end].splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, end


class ResultStore:
    """Append-only results of one configuration.

    Parameters
    ----------
    path : Path
        The file; it is made by the first ``append`` and may hold rows of other configurations, which are left alone.
    config : str
        Hash of the whole configuration; only rows that carry it count as done.
    """

    def __init__(self, path: Path, config: str):
        self.path, self.config = path, config
        self._file: BinaryIO | None = None
        rows, self._end = read_rows(path)
        self.rows: dict[Key, dict[str, Any]] = {
            (row["cell"], row["question_id"]): row for row in rows if row.get("config") == config
        }

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, key: Key) -> bool:
        return key in self.rows

    def cell(self, cell: str) -> dict[str, dict[str, Any]]:
        """Rows of one cell by question id."""
        return {question: row for (name, question), row in self.rows.items() if name == cell}

    def open(self) -> None:
        """Lock the file and cut off a torn last line.

        Raises
        ------
        ValueError
            If another process writes to it.
        """
        if self._file is not None:
            return
        file = open(self.path, "ab")  # noqa: SIM115 - closed by close()
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise ValueError(
                    f"another run is writing to {self.path}; wait for it or choose another --output"
                ) from None
        file.truncate(self._end)
        self._file = file

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows and force them to the disk; on an error the file is as it was before."""
        self.open()
        assert self._file is not None
        rows = [{"config": self.config, **row} for row in rows]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._rewind()
            raise
        self._end += len(data)
        self.rows.update({(row["cell"], row["question_id"]): row for row in rows})

    def _rewind(self) -> None:
        assert self._file is not None
        try:
            os.ftruncate(self._file.fileno(), self._end)
            self._file.close()  # its buffer may still hold what did not fit
        except OSError:
            pass
        self._file = None

    def close(self) -> None:
        """Close the file; an empty one is removed."""
        if self._file is not None:
            self._file.close()
            self._file = None
            if self.path.stat().st_size == 0:
                self.path.unlink()


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that readers see the old one or the whole new one; nothing is left behind on an error."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(draft, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
