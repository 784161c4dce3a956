"""Ranks of methods with their uncertainty: how the order changes when other images are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .intervals import Floats, Interval


def rank_intervals(means: Mapping[str, tuple[float, Floats]], level: float = 0.95) -> dict[str, Interval]:
    """Rank of each method (1 is best, ties share the mean of their ranks) with its bootstrap interval.

    Parameters
    ----------
    means : mapping
        Score and bootstrap replicates of each method, all of the same resamples (``Resamples.means``).
    level : float
        Coverage of the intervals.
    """
    from scipy.stats import rankdata

    if not means:
        return {}
    names = list(means)
    # rounded: the same scores summed in another order are a tie
    observed = rankdata(np.round([-means[name][0] for name in names], 9))
    ranks = rankdata(np.round(np.stack([-means[name][1] for name in names]), 9), axis=0)
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(ranks, ends, axis=1, method="inverted_cdf")  # ranks that occur
    return {m: Interval(*map(float, x)) for m, x in zip(names, zip(observed, low, high, strict=True), strict=True)}
