"""How long a sweep still takes: cells differ much in speed, so each is reckoned at its own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Clock = Callable[[], float]
COLD = 2  # cells that are slow because they come first
DOUBT = 0.2  # of all the work: how much has to be seen to believe that the pace is another
MEMORY = 0.3  # of all the work: what the pace of late is taken over


class Estimator:
    """Seconds left, from what each cell's answers have taken so far, and from how fast the machine is of late.

    A cell's answers that come one after the other are one visit: a last, small batch among them costs more per answer.

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
        self._done: dict[str, tuple[int, float]] = {}  # answers, and the seconds of work that they were
        self._actual = self._expected = self._doubt = 0.0  # seconds of late
        self._visit: tuple[str, int, float] | None = None
        self._last = clock()

    def found(self, cell: str, count: int) -> None:
        """Answers that were there already: neither they nor the time until now say anything about speed."""
        self.left[cell] = max(0, self.left[cell] - count)
        self._last = self.clock()

    def done(self, cell: str, count: int) -> None:
        """Answers that have just been computed, since the last call."""
        now = self.clock()
        seconds, self._last = now - self._last, now
        if self._visit is not None and self._visit[0] != cell:
            self._close(*self._visit)
            self._visit = None
        _, n, spent = self._visit or (cell, 0, 0.0)
        self._visit = cell, n + count, spent + seconds
        self.left[cell] = max(0, self.left[cell] - count)

    def _close(self, cell: str, count: int, seconds: float) -> None:
        n, work = self._done.get(cell, (0, 0.0))
        if n and work:
            expected = count * work / n
            whole = self._work()
            fading, self._doubt = math.exp(-expected / (MEMORY * whole)), DOUBT * whole
            self._actual = fading * self._actual + seconds
            self._expected = fading * self._expected + expected
        self._done[cell] = n + count, work + seconds / self._pace

    @property
    def _pace(self) -> float:
        """Seconds that a second of work takes at the moment: load comes and goes, but a little says little."""
        return (self._actual + self._doubt) / (self._expected + self._doubt) if self._expected else 1.0

    def _speeds(self) -> dict[str, float]:
        """Seconds of work per answer."""
        found = {cell: work / n for cell, (n, work) in self._done.items()}
        if self._visit is not None:
            cell, n, seconds = self._visit
            found.setdefault(cell, seconds / n / self._pace)
        return found

    def _work_left(self) -> float:
        speeds = self._speeds()
        seen = list(speeds.values())
        typical = statistics.fmean(seen[COLD:] if len(seen) > 2 * COLD else seen)
        return sum(n * speeds.get(cell, typical) for cell, n in self.left.items())

    def _work(self) -> float:
        return sum(work for _, work in self._done.values()) + self._work_left()

    def seconds_left(self) -> float | None:
        """None before anything was computed; a cell not yet seen is reckoned at the others' mean."""
        if not self._speeds():
            return None
        return max(0.0, self._pace * self._work_left() - (self.clock() - self._last))


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


def plain_progress(console: Console, *more: TextColumn, disable: bool = False) -> Progress:
    """Bars of a job whose steps take about equally long."""
    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), *more, console=console, disable=disable)
