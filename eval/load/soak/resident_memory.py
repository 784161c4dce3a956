"""The resident memory of a process and its children, sampled while it works (Linux)."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROC = Path("/proc")
PERIOD = 0.2  # seconds


def resident(pid: int) -> int:
    """Bytes of a process and all below it; 0 where it is gone, and of process 0, which is none."""
    total = 0
    for one in family(pid) if pid else ():
        try:
            lines = (PROC / str(one) / "status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return total


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        for children in (PROC / str(found[-1]) / "task").glob("*/children"):
            try:
                left += map(int, children.read_text().split())
            except OSError:
                continue
    return found


class MemoryWatch:
    """Samples memory beside how much of the work is done, until it is closed.

    Parameters
    ----------
    pid : int
        The server's.
    done : callable
        Requests so far.
    """

    def __init__(self, pid: int, done: Callable[[], int]):
        self.samples: list[tuple[int, int]] = []
        self._pid, self._done, self._stop = pid, done, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(PERIOD):
            self.samples.append((self._done(), resident(self._pid)))


def growth(samples: Sequence[tuple[int, int]], total: int) -> float | None:
    """By how much memory grew from the second quarter of `total` requests to the last one; None with too few samples.

    Medians, so that a large request in flight is no growth.
    """
    quarters = ([], []) if total < 1 else ([m for n, m in samples if 1 <= 4 * n / total < 2],
                                           [m for n, m in samples if 4 * n / total >= 3])  # fmt: skip
    if not all(quarters):
        return None
    return statistics.median(quarters[1]) / statistics.median(quarters[0]) - 1


def wait_until(true: Callable[[], bool], seconds: float, period: float = 0.05) -> bool:
    """Whether something became true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(period)
    return True
