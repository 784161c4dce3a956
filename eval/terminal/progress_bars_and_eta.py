"""How long a sweep still takes: cells differ much in speed, so each is reckoned at its own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Clock = Callable[[], float]
COLD = 2  # cells that are slow because they come first
DOUBT = 0.2  # of all the work: how much has to be seen to believe that the pace is another
MEMORY = 0.3  # of all the work: what the pace of late is taken over


class Visits:
    """Joins a cell's answers that come one after the other: a last, small batch among them costs more per answer.

    Parameters
    ----------
    closed : callable
        Called with a cell, a number of its answers and their seconds, once another cell's turn comes.
    clock : callable
        Gives seconds.
    """

    def __init__(self, closed: Callable[[str, int, float], None], clock: Clock = time.monotonic):
        self.closed, self.clock = closed, clock
        self.open: tuple[str, int, float] | None = None
        self.last = clock()

    def skip(self) -> None:
        """The time until now says nothing about speed."""
        self.last = self.clock()

    def done(self, cell: str, count: int) -> None:
        """Answers that have just been computed, since the last call."""
        now = self.clock()
        seconds, self.last = now - self.last, now
        if self.open is not None and self.open[0] != cell:
            self.close()
        _, n, spent = self.open or (cell, 0, 0.0)
        self.open = cell, n + count, spent + seconds

    def close(self) -> None:
        """End the visit."""
        if self.open is not None:
            visit, self.open = self.open, None
            self.closed(*visit)


class Estimator:
    """Seconds left, from what each cell's answers have taken so far, and from how fast the machine is of late.

    Parameters
    ----------
    total : mapping
        Answers of each cell, and steps of other parts of the work.
    clock : callable
        Gives seconds.
    processes : int
        How many work at once.
    alone : iterable of str
        Parts that one process does when the others are done; their steps are no answers.
    sizes : mapping, optional
        How many answers' worth a step of such a part is, as long as none was seen.
    """

    def __init__(
        self,
        total: Mapping[str, int],
        clock: Clock = time.monotonic,
        processes: int = 1,
        alone: Iterable[str] = (),
        sizes: Mapping[str, float] | None = None,
    ):
        self.clock, self.processes, self.alone, self.sizes = clock, processes, {*alone}, dict(sizes or {})
        self.left = dict(total)
        self._expected_of: dict[str, float] = {}
        self._done: dict[str, tuple[int, float]] = {}  # answers, and the seconds of work that they were
        self._actual = self._expected = self._doubt = 0.0  # seconds of late
        self._visits = Visits(self.took, clock)
        self._last = clock()

    def found(self, cell: str, count: int) -> None:
        """Answers that were there already: neither they nor the time until now say anything about speed."""
        self._advance(cell, count)
        self._visits.skip()

    def skip(self) -> None:
        """The time until now says nothing about speed."""
        self._visits.close()
        self._visits.skip()

    def done(self, cell: str, count: int) -> None:
        """Answers that have just been computed in this process, since the last call."""
        self._visits.done(cell, count)
        if cell in self.alone:  # one step after the other: each is seen by itself
            self._visits.close()
        self._advance(cell, count)

    def _advance(self, cell: str, count: int) -> None:
        self.left[cell] = max(0, self.left[cell] - count)
        self._last = self.clock()

    def expect(self, cell: str, seconds: float) -> None:
        """What a step will take as far as was tried ahead, as long as none was seen: the load may have been another."""
        self._expected_of[cell] = seconds

    def took(self, cell: str, count: int, seconds: float) -> None:
        """What answers have taken a process, in one visit; they are counted elsewhere."""
        n, work = self._done.get(cell, (0, 0.0))
        if n and work:
            share = 1 if cell in self.alone else 1 / self.processes
            seconds, expected = share * seconds, share * count * work / n
            whole = self._work()
            fading, self._doubt = math.exp(-expected / (MEMORY * whole)), DOUBT * whole
            self._actual = fading * self._actual + seconds
            self._expected = fading * self._expected + expected
            seconds /= share
        self._done[cell] = n + count, work + seconds / self._pace

    @property
    def _pace(self) -> float:
        """Seconds that a second of work takes at the moment: load comes and goes, but a little says little."""
        return (self._actual + self._doubt) / (self._expected + self._doubt) if self._expected else 1.0

    def _speeds(self) -> dict[str, float]:
        """Seconds of work per answer."""
        found = self._expected_of | {cell: work / n for cell, (n, work) in self._done.items()}
        if self._visits.open is not None:
            cell, n, seconds = self._visits.open
            found.setdefault(cell, seconds / n / self._pace)
        return found

    def _work_left(self) -> float:
        """Seconds of work until the end: what several processes share counts by its share."""
        speeds = self._speeds()
        seen = [speed for cell, speed in speeds.items() if cell not in self.alone]
        typical = statistics.fmean(seen[COLD:] if len(seen) > 2 * COLD else seen) if seen else 0.0
        left = 0.0
        for cell, n in self.left.items():
            alone = cell in self.alone
            seconds = speeds.get(cell, typical * self.sizes.get(cell, 1.0))
            left += n * seconds / (1 if alone else self.processes)
        return left

    def _work(self) -> float:
        done = sum(work / (1 if cell in self.alone else self.processes) for cell, (_, work) in self._done.items())
        return done + self._work_left()

    def seconds_left(self) -> float | None:
        """None before anything was computed; a cell not yet seen is reckoned at the others' mean."""
        if not self._speeds() or (self._unknown() and not self._answered()):
            return None
        return max(0.0, self._pace * self._work_left() - (self.clock() - self._last))

    def _unknown(self) -> bool:
        speeds = self._speeds()
        return any(n and cell not in speeds for cell, n in self.left.items())

    def _answered(self) -> bool:
        return any(cell not in self.alone for cell in self._speeds())


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
