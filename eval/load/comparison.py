"""Targets against the baseline: ratios of the same rounds, beside the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vtc.eval.statistics.intervals import Interval

from .figures import Figures, paired_ratio
from .speed_limit import Limit
from .targets import Target

Found = Mapping[tuple[str, int], Figures]


@dataclass(frozen=True)
class Comparison:
    """A target over the baseline at one concurrency; more than 1 is faster.

    Attributes
    ----------
    rate : Interval
        Requests per second over the baseline's.
    ttft : Interval
        The baseline's median time to the first token over the target's.
    limit : Limit, optional
        What bounds them.
    """

    target: Target
    concurrency: int
    rate: Interval
    ttft: Interval
    limit: Limit | None = None

    def attained(self, of: Interval) -> float | None:
        """A ratio over its limit."""
        return None if self.limit is None or math.isnan(of.value) else of.value / self.limit.speed_up


def compare(
    targets: Sequence[Target], base: Target, found: Found, limits: Mapping[str, Limit]
) -> dict[tuple[str, int], Comparison]:
    """Every target but the baseline, where both have a finished block of one round."""
    result = {}
    for (name, concurrency), mine in found.items():
        reference = found.get((base.name, concurrency))
        if name == base.name or reference is None or not {*mine.rates} & {*reference.rates}:
            continue
        target = next(t for t in targets if t.name == name)
        result[name, concurrency] = Comparison(
            target,
            concurrency,
            paired_ratio(mine.rates, reference.rates),
            paired_ratio(reference.ttfts, mine.ttfts),
            limits.get(name),
        )
    return result
