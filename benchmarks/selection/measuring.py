"""Time and memory of two sides that do the same: CPU time in turns, peak bytes by the allocator's own record."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

LEAST = 0.03  # seconds of a turn: shorter calls are repeated


def in_turns(sides: Sequence[Callable[[], Any]], turns: int) -> list[list[float]]:
    """CPU seconds a call of each side, `turns` of them; the same place in the lists is one turn.

    The sides take turns, and who begins changes, so that what else the machine does falls on all alike.
    """
    calls = []
    for side in sides:
        once = max(_seconds(side, 1), 1e-6)
        calls.append(max(1, math.ceil(LEAST / once)))
    found: list[list[float]] = [[] for _ in sides]
    for turn in range(turns):
        order = list(range(len(sides)))
        for i in order if turn % 2 == 0 else reversed(order):
            found[i].append(_seconds(sides[i], calls[i]))
    return found


def _seconds(side: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        side()
    return (time.process_time() - start) / calls


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the narrowest pair of the sorted `values` that holds the true one with 90% (or all there are)."""
    ordered, n = sorted(values), len(values)
    inside = 0
    for cut in range((n - 1) // 2, 0, -1):
        outside = 2 * sum(math.comb(n, i) for i in range(cut + 1)) / 2**n
        if outside <= 0.1:
            inside = cut + 1 if cut + 1 <= (n - 1) // 2 else cut
            break
    return statistics.median(ordered), ordered[inside], ordered[n - 1 - inside]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The least-squares slope of log time over log size; NaN with fewer than two sizes."""
    if len(set(sizes)) < 2:
        return math.nan
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(s) for s in seconds]).slope


def peak_bytes(side: Callable[[], Any]) -> int:
    """Most bytes held at a time beyond those before, also what an operator holds only inside itself."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        side()
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
