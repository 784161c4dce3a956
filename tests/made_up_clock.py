"""A sweep on a clock that only it moves: cells of different speeds, several processes, other load, a timing phase."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vtc.eval.cost.interleaved_timing import tried
from vtc.eval.terminal.progress_bars_and_eta import Estimator

TIMING = "timing"


class Clock:
    """Stands still."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Load:
    """How many times longer everything takes at a moment: other jobs come and go."""

    generator: np.random.Generator
    levels: tuple[float, ...]
    lasting: float
    _ends: list[float] = field(default_factory=list)
    _level: list[float] = field(default_factory=list)

    def at(self, now: float) -> float:
        """The factor at `now`."""
        while not self._ends or self._ends[-1] <= now:
            begin = self._ends[-1] if self._ends else 0.0
            self._ends.append(begin + self.generator.exponential(self.lasting))
            self._level.append(float(self.generator.choice(self.levels)))
        return self._level[int(np.searchsorted(self._ends, now, side="right"))]


@dataclass
class World:
    """What a sweep consists of: seconds per answer of each cell, chunks of questions, seconds of a step of timing."""

    speeds: dict[str, float]
    chunks: list[int]
    timing: dict[str, float]
    turns: int = 6
    processes: int = 1
    noise: float = 0.15
    batch: int = 16


def run(world: World, load: Load, seed: int) -> list[tuple[float, float]]:
    """All moments of a sweep: the time, and the seconds that the estimator has left then."""
    generator, clock = np.random.default_rng(seed), Clock()
    total = {cell: sum(world.chunks) for cell in world.speeds} | {TIMING: len(world.timing) * world.turns}
    estimator = Estimator(total, clock, world.processes, [TIMING])
    seen: list[tuple[float, float]] = []

    def note() -> None:
        left = estimator.seconds_left()
        if left is not None:
            seen.append((clock.now, left))

    def lasts(seconds: float, now: float) -> float:
        return seconds * load.at(now) * float(np.exp(generator.normal(0, world.noise)))

    tries: list[float] = []
    for cell in tried(list(world.timing), world.turns):
        tries.append(lasts(world.timing[cell], clock.now))
        clock.now += tries[-1]
    estimator.expect(TIMING, float(np.mean(tries)))
    answer(world, estimator, clock, lasts, note)
    for _ in range(world.turns):
        for cell in generator.permutation(list(world.timing)):
            clock.now += lasts(world.timing[cell], clock.now)
            estimator.done(TIMING, 1)
            note()
    return seen


def answer(
    world: World, estimator: Estimator, clock: Clock, lasts: Callable[[float, float], float], note: Callable[[], None]
) -> None:
    """The answers, chunk by chunk and cell by cell, by as many processes as there are."""
    work = [(cell, n) for n in world.chunks for cell in world.speeds]
    free = [(clock.now, i) for i in range(world.processes)]
    events: list[tuple[float, int, str, int, float, bool]] = []
    for order, (cell, n) in enumerate(work):
        now, worker = heapq.heappop(free)
        begin = now
        while n:
            size = min(n, world.batch)
            cost = world.speeds[cell] * (size + world.batch) / 2  # small ones cost more
            now += lasts(cost, now)
            n -= size
            events.append((now, order, cell, size, now - begin, n == 0))
        heapq.heappush(free, (now, worker))
    for now, _, cell, size, whole, last in sorted(events):
        clock.now = max(clock.now, now)
        if world.processes == 1:
            estimator.done(cell, size)
        else:
            estimator.found(cell, size)
            if last:
                estimator.took(cell, world.chunks[0], whole)
        note()


def errors(seen: list[tuple[float, float]], begin: float, end: float) -> dict[float, float]:
    """Relative error of the seconds left at a tenth, half and nine tenths of the time."""
    found = {}
    for share in (0.1, 0.5, 0.9):
        at = begin + share * (end - begin)
        now, left = max((moment for moment in seen if moment[0] <= at), default=seen[0])
        left -= at - now
        found[share] = left / (end - at) - 1
    return found
