"""A check on the console: the bar while it runs, the table when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vtc.eval.terminal.console import make_console, say

from .outcome_table import table_of
from .results import Result


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, and what moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("building a small model", total=None)

        def move(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield move


def show(result: Result) -> None:
    """Print the table, its reasons and the verdict."""
    console = make_console()
    installed = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    say(console, f"{result.model}: {result.family} ({result.model_type}); {installed}")
    if result.about:
        say(console, result.about)
    table, notes = table_of(result)
    console.print(table)
    say(console, *notes, f"{result.verdict} {result.seconds:.1f} s")
