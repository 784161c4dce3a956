"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


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


def remove_drafts(folder: Path, age: float = 60) -> None:
    """Remove what processes left that were ended in the middle of ``write_atomic``, at least `age` seconds ago."""
    for draft in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime >= age:
                draft.unlink()
