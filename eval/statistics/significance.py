"""Tests of paired results: McNemar's and its form for several seeds and shared images, Holm's correction, a verdict."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .intervals import Interval, codes
from .power import ALPHA, MARGIN
from .saddlepoint_tail import TIE, saddlepoint_tail

DRAWS = 9999
FEW = 20  # draws as extreme as the observed; with fewer their share is too rough for Holm's correction
BETTER, WORSE, NO_EVIDENCE = "better than random", "worse than random", "no evidence"
NO_BASELINE = "no random at this budget"


def mcnemar(down: int, up: int) -> float:
    """Exact two-sided p-value that right -> wrong and wrong -> right are equally likely.

    Parameters
    ----------
    down, up : int
        Discordant pairs of either kind.
    """
    from scipy.stats import binomtest

    return float(binomtest(down, down + up, 0.5).pvalue) if down + up else 1.0


def exchange_test(
    runs: ArrayLike,
    clusters: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    *,
    treated: int = 1,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Two-sided p-value that the first runs are exchangeable with the others, image by image.

    McNemar's test for several runs, any scores and questions that share images: under the null hypothesis any of an
    image's runs were equally likely to be the method's, so its mean is recomputed with its places drawn anew for every
    image; all ways where they are few, else `draws` of them at random, and where hardly any draw is as extreme
    ``saddlepoint_tail``. With one reference, 0/1 scores, one task and one question per image it is McNemar's.

    Parameters
    ----------
    runs : array_like
        `[runs, n]` scores, the method (its seeds, if it has several) first, then the seeds of its reference.
    clusters, groups : sequence
        `[n]` image and task of each question; see ``Resamples``.
    treated : int
        How many of the runs are the method's.
    draws, seed
        Number of random assignments, where listing all of them takes more, and their seed.
    """
    x = np.asarray(runs, dtype=float)
    if x.ndim != 2 or not 0 < treated < len(x) or x.shape[1] != len(clusters):
        raise ValueError(f"runs must be [more than {treated}, {len(clusters)}], got {x.shape}")
    c, n_clusters = codes(clusters)
    g = codes(groups)[0] if groups is not None else np.zeros(len(c), dtype=np.int64)
    share = 1 / np.bincount(g)[g] if len(g) else np.zeros(0)  # of a question in the mean of its task
    sums = np.stack([np.bincount(c, run * share, n_clusters) for run in x], axis=1)
    places = [list(chosen) for chosen in combinations(range(len(x)), treated)]  # the observed ones first
    means = np.stack([sums[:, chosen].mean(axis=1) for chosen in places], axis=1)
    gain = means - means[:, :1]  # of the mean when other runs are the method's
    gain = gain[np.abs(gain).max(axis=1, initial=0) > TIE]
    if len(gain) == 0:
        return 1.0
    if len(x) == 2 and np.ptp(np.abs(gain[:, 1])) < TIE:  # every image counts the same: the binomial distribution
        return mcnemar(int((gain[:, 1] < 0).sum()), int((gain[:, 1] > 0).sum()))
    every = len(gain) < 14 and len(places) ** len(gain) <= draws
    change = _all_changes(gain) if every else _drawn_changes(gain, draws, seed)
    lower, upper = int((change <= TIE).sum()), int((change >= -TIE).sum())
    if every:
        return min(1.0, 2 * min(lower, upper) / len(change))
    if min(lower, upper) < FEW:
        return min(1.0, 2 * saddlepoint_tail(gain if upper < lower else -gain))
    return min(1.0, 2 * (min(lower, upper) + 1) / (len(change) + 1))  # what was observed is one of the drawn


def _all_changes(gain: NDArray[np.float64]) -> NDArray[np.float64]:
    places = np.indices((gain.shape[1],) * len(gain)).reshape(len(gain), -1)
    return gain[np.arange(len(gain))[:, None], places].sum(axis=0)


def _drawn_changes(gain: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    rng, rows = np.random.default_rng(seed), np.arange(len(gain))
    step = max(1, (1 << 22) // len(gain))
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    return np.concatenate([gain[rows, rng.integers(gain.shape[1], size=(k, len(gain)))].sum(axis=1) for k in sizes])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a table's p-values, in the given order."""
    adjusted, last = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        last = max(last, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = last
    return adjusted


def verdict(
    difference: Interval,
    p_value: float,
    p_holm: float,
    detectable: float,
    needed: int,
    *,
    alpha: float = ALPHA,
    margin: float = MARGIN,
) -> str:
    """A comparison with random in words.

    Better or worse only where the corrected test AND the interval, which holds the luck of the seeds as well, say so;
    else ``no evidence``, with the sample that a difference of `margin` needs where this one is too small for it.
    """
    apart = difference.low > 0 or difference.high < 0
    if apart and p_holm <= alpha:
        return BETTER if difference.low > 0 else WORSE
    if apart and p_value <= alpha:
        return f"{NO_EVIDENCE} after correction"
    return NO_EVIDENCE if detectable <= margin else f"{NO_EVIDENCE}, needs n >= {needed} for {100 * margin:g} points"
