"""How long a sweep still takes: cells differ much in speed, so each is reckoned at its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Clock = Callable[[], float]


class Estimator:
    """Seconds left, from what each cell's answers have taken so far.

    Parameters
    ----------
    total : mapping
        Answers of each cell.
    clock : callable
        Gives seconds.
    """

    def __init__(self, total: Mapping[str, int], clock: Clock = time.monotonic):
        self.clock = clock
        self.left = dict(total)
        self._seconds = dict.fromkeys(total, 0.0)
        self._count = dict.fromkeys(total, 0)
        self._last = clock()

    def found(self, cell: str, count: int) -> None:
        """Answers that were there already: they say nothing about speed."""
        self.left[cell] = max(0, self.left[cell] - count)

    def done(self, cell: str, count: int) -> None:
        """Answers that have just been computed, since the last call."""
        now = self.clock()
        self._seconds[cell] += now - self._last
        self._count[cell] += count
        self._last = now
        self.left[cell] = max(0, self.left[cell] - count)

    def seconds_left(self) -> float | None:
        """None before anything was computed; a cell not yet seen is reckoned at the others' mean."""
        speeds = {cell: self._seconds[cell] / n for cell, n in self._count.items() if n}
        if not speeds:
            return None
        typical = statistics.fmean(speeds.values())
        since = self.clock() - self._last
        return max(0.0, sum(n * speeds.get(cell, typical) for cell, n in self.left.items()) - since)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Left(TextColumn):
    """The estimate of the task's own ``estimator``."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Any:
        from rich.text import Text

        estimator = task.fields.get("estimator")
        return Text(f"ETA {_duration(estimator.seconds_left())}" if estimator and not task.finished else "")


def make_progress(console: Console) -> Progress:
    """The bars of a sweep; give the task an ``estimator``."""
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _Left())
    return Progress(*columns, console=console)
