"""A job's output folder: made, checked to be writable, and removed again if nothing was written."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .atomic import remove_drafts


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
