"""Who computes what, where several processes work on one output folder: a lock per part of the work.

The locks are the operating system's, on single bytes of a file that stays empty: a process that dies, however it dies,
holds none any more, and nothing has to be cleaned up. File systems without such locks lose the sharing out, not the
results: two processes may then compute the same, and of equal rows the first one counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from vtc.eval.files.atomic import same_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".claims"


class Claims:
    """Claims on the parts of one output folder's work; use one instance per process and folder."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._file: int | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def take(self, part: str, wait: bool = False) -> bool:
        """Claim a part; False where another process has it, unless `wait`."""
        if fcntl is None:
            return True
        if self._file is not None and not same_file(self._file, self.path):  # another process has tidied up
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _byte(part))
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        except OSError:
            pass  # no locks on this file system
        return True

    def give_back(self, part: str) -> None:
        """Drop a claim."""
        if fcntl is not None and self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _byte(part))

    def tidy(self) -> None:
        """Remove what processes have left that were ended, if nobody works here."""
        if self.path.exists():
            self.take("tidy")
            self.close()

    def close(self) -> None:
        """Drop all claims; the file goes with the last process that has any."""
        if self._file is None:
            return
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink(missing_ok=True)
            except OSError:
                pass
        os.close(self._file)
        self._file = None


def _byte(part: str) -> int:
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:7], "big")
