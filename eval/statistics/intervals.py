"""Intervals for accuracies and paired differences: a bootstrap over images, because questions share images.

``scipy.stats.bootstrap`` draws single observations. Given each image's sums and counts as paired observations it makes
the same intervals (a test compares them), but it draws anew for every number. Here one draw of images serves every cell
of a sweep: ranks and differences need the same images on both sides, and a table of hundreds of intervals costs one
draw and as many matrix products.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
CHUNK = 1 << 22  # weights turned to floats at once


class Interval(NamedTuple):
    """An estimate and the two ends of its interval."""

    value: float
    low: float
    high: float


def codes(labels: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Labels as numbers from 0 in order of appearance, and how many there are."""
    number: dict[Hashable, int] = {}
    found = np.array([number.setdefault(x, len(number)) for x in labels], dtype=np.int64)
    return found, len(number)


def percentile(value: float, replicates: Floats, level: float = 0.95) -> Interval:
    """The interval between the outer quantiles of bootstrap `replicates`."""
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


class Resamples:
    """Images drawn with replacement, once, for every score of the same questions.

    Parameters
    ----------
    clusters : sequence
        `[n]` what is drawn together: the image of each question.
    groups : sequence, optional
        `[n]` the task of each question; estimates are then the unweighted mean of the groups' means.
    reps, seed
        Number of resamples and the seed of the draw.
    """

    def __init__(
        self,
        clusters: Sequence[Hashable],
        groups: Sequence[Hashable] | None = None,
        *,
        reps: int = 2000,
        seed: int = 0,
    ):
        if reps < 1 or (groups is not None and len(groups) != len(clusters)):
            raise ValueError(f"reps must be at least 1 and clusters and groups equally long, got {reps}")
        self.n = len(clusters)
        self.clusters, self.n_clusters = codes(clusters)
        self.groups, self.n_groups = codes(groups) if groups is not None else (np.zeros(self.n, dtype=np.int64), 1)
        self.reps, self.seed = reps, seed
        self._count = self._sums(np.ones(self.n))
        self._weights: NDArray[np.uint16] | None = None

    def _sums(self, values: Floats) -> Floats:
        total = np.zeros((self.n_clusters, self.n_groups))
        np.add.at(total, (self.clusters, self.groups), values)
        return total

    def _weighted(self, sums: Floats) -> Floats:
        if self._weights is None:  # how often each resample has each image
            even = np.full(self.n_clusters, 1 / self.n_clusters)
            draws = np.random.default_rng(self.seed).multinomial(self.n_clusters, even, size=self.reps)
            self._weights = draws.astype(np.uint16)
        step = max(1, CHUNK // self.n_clusters)
        parts = [self._weights[i : i + step].astype(float) @ sums for i in range(0, self.reps, step)]
        return np.concatenate(parts)

    def value(self, values: ArrayLike) -> float:
        """The estimate: the mean, or the mean of the groups' means."""
        return float((self._sums(self._checked(values)).sum(0) / self._count.sum(0)).mean()) if self.n else float("nan")

    def means(self, values: ArrayLike) -> Floats:
        """`[reps]` estimates; a resample that misses a group altogether leaves it out of its mean."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nanmean(self._weighted(self._sums(self._checked(values))) / self._weighted(self._count), axis=1)

    def interval(self, values: ArrayLike, level: float = 0.95) -> Interval:
        """The estimate with its percentile interval; not a number where there are no values."""
        if self.n == 0:
            return Interval(float("nan"), float("nan"), float("nan"))
        return percentile(self.value(values), self.means(values), level)

    def _checked(self, values: ArrayLike) -> Floats:
        x = np.asarray(values, dtype=float)
        if x.shape != (self.n,):
            raise ValueError(f"values, clusters and groups must be equally long, got {x.shape}, {self.n}")
        return x


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    *,
    reps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with a percentile interval, whole clusters resampled; see ``Resamples``.

    Raises
    ------
    ValueError
        If the lengths differ, or `level` or `reps` is out of range.
    """
    if not 0 < level < 1 or reps < 1:
        raise ValueError(f"level must be in (0, 1) and reps at least 1, got {level} and {reps}")
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(clusters) != len(x) or (groups is not None and len(groups) != len(x)):
        raise ValueError(f"values, clusters and groups must be equally long, got {x.shape}, {len(clusters)}")
    return Resamples(clusters, groups, reps=reps, seed=seed).interval(x, level)
