"""The console that tables and progress bars go to."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

WIDTH = 160


def make_console() -> Console:
    """A console that does not squeeze tables when the output is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def say(console: Console, *lines: str) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def say_found(console: Console, found: int, total: int | None = None) -> None:
    """Say how many answers of an earlier run are used, if there are any; `total` is how many are needed."""
    if found:
        left = "" if total is None else "; none is left" if found == total else f"; {total - found} are left"
        of = "" if total is None else f" of {total}"
        say(console, f"resuming: {found}{of} answers were there already{left}")


def say_replaced(console: Console, summary: Path, arguments: Sequence[str]) -> None:
    """Say whose tables will be replaced, where another command has written `summary`; the answers stay."""
    try:
        before = json.loads(summary.read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before != shlex.join(["vtc", *arguments]):
        say(
            console,
            f"tables and report here are of `{before}` and will be replaced (answers stay); --output keeps both",
        )
