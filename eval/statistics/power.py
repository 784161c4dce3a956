"""What a sample can tell: the smallest difference it detects, and the sample that a difference needs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .intervals import codes

ALPHA, POWER = 0.05, 0.80
MARGIN = 0.02  # the difference that a sample should be able to tell, in accuracy
FEWEST = 6  # with fewer discordant pairs the exact McNemar test can't reach 0.05 however they fall: 2 / 2**5 > 0.05


def discordant_rate(
    differences: ArrayLike, clusters: Sequence[Hashable], groups: Sequence[Hashable] | None = None
) -> float:
    """The discordant rate of independent 0/1 pairs that would estimate the difference as precisely.

    Parameters
    ----------
    differences : array_like
        `[n]` paired differences of scores, which need not be 0/1.
    clusters, groups : sequence
        `[n]` image and task of each question; see ``Resamples``.

    Returns
    -------
    float
        ``n`` times the linearised variance of the mean of the groups' means, between clusters, plus the squared mean.
        For 0/1 scores, one question per image and one task that is the share of discordant pairs exactly; questions of
        one image that go wrong together make it larger.
    """
    d = np.asarray(differences, dtype=float)
    c, n_clusters = codes(clusters)
    g, n_groups = codes(groups) if groups is not None else (np.zeros(len(d), dtype=np.int64), 1)
    size = np.bincount(g, minlength=n_groups)
    mean = np.bincount(g, d, n_groups) / size
    influence = np.bincount(c, (d - mean[g]) / (size[g] * n_groups), n_clusters)
    return float(len(d) * (influence**2).sum() + mean.mean() ** 2)


def _quantiles(alpha: float, power: float) -> tuple[float, float]:
    from scipy.stats import norm

    return float(norm.isf(alpha / 2)), float(norm.isf(1 - power))


def detectable_difference(rate: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest difference that a two-sided McNemar test on `n` pairs finds with probability `power`.

    Parameters
    ----------
    rate : float
        Share of discordant pairs; fewer than ``FEWEST`` of them are taken for so many.
    n : int
        Number of pairs.

    Notes
    -----
    Solves Miettinen's (1968) ``n d^2 = (z_alpha sqrt(rate) + z_power sqrt(rate - d^2))^2`` for `d`; at most 1.
    """
    if n < 1:
        return 1.0
    z, w = _quantiles(alpha, power)
    rate = max(rate, FEWEST / n)
    a = z * math.sqrt(rate)  # (d sqrt(n) - a)^2 = w^2 (rate - d^2), the larger root
    root = math.sqrt(max(0.0, n * a * a - (n + w * w) * (a * a - w * w * rate)))
    return min(1.0, (a * math.sqrt(n) + math.copysign(root, w)) / (n + w * w))


def needed_sample(rate: float, margin: float = MARGIN, alpha: float = ALPHA, power: float = POWER) -> int:
    """Pairs that a difference of `margin` needs to be found with probability `power`, by the same formula.

    A rate below `margin` is taken for `margin`: a difference can't be larger than the share of pairs that differ.

    Raises
    ------
    ValueError
        If `margin` is not in (0, 1].
    """
    if not 0 < margin <= 1:
        raise ValueError(f"margin must be in (0, 1], a difference in accuracy, got {margin}")
    z, w = _quantiles(alpha, power)
    rate = max(rate, margin)
    pairs = (z * math.sqrt(rate) + w * math.sqrt(rate - margin**2)) ** 2 / margin**2
    return max(math.ceil(pairs - 1e-9), math.ceil(FEWEST / rate))
