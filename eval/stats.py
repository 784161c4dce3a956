"""Intervals for accuracies and paired differences: a bootstrap over images, because questions share images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """An estimate and the two ends of its interval."""

    value: float
    low: float
    high: float


def _codes(labels: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    number: dict[Hashable, int] = {}
    codes = np.array([number.setdefault(x, len(number)) for x in labels], dtype=np.int64)
    return codes, len(number)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    *,
    reps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with a percentile interval, whole clusters resampled.

    Parameters
    ----------
    values : array_like
        `[n]` scores or differences of scores.
    clusters : sequence
        `[n]` what is drawn together: the image of each question.
    groups : sequence, optional
        `[n]` the task of each question; the estimate is then the unweighted mean of the groups' means.
    reps, level, seed
        Number of resamples, coverage, and the seed of the draw.

    Returns
    -------
    Interval
        Not a number where `values` is empty.

    Notes
    -----
    A resample that misses a group altogether leaves it out of that resample's mean.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(clusters) != len(x) or (groups is not None and len(groups) != len(x)):
        raise ValueError(f"values, clusters and groups must be equally long, got {x.shape}, {len(clusters)}")
    if not 0 < level < 1 or reps < 1:
        raise ValueError(f"level must be in (0, 1) and reps at least 1, got {level} and {reps}")
    if len(x) == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    c, n_clusters = _codes(clusters)
    g, n_groups = _codes(groups) if groups is not None else (np.zeros(len(x), dtype=np.int64), 1)
    total = np.zeros((n_clusters, n_groups))
    count = np.zeros((n_clusters, n_groups))
    np.add.at(total, (c, g), x)
    np.add.at(count, (c, g), 1.0)
    weights = np.random.default_rng(seed).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=reps)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.nanmean((weights @ total) / (weights @ count), axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    value = float((total.sum(0) / count.sum(0)).mean())
    return Interval(value, float(low), float(high))


def paired_difference(
    treated: Mapping[str, float],
    reference: Mapping[str, float],
    cluster_of: Mapping[str, Hashable],
    group_of: Mapping[str, Hashable],
    *,
    reps: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Difference `treated` - `reference` over the questions both have, paired per question.

    Parameters
    ----------
    treated, reference : mapping
        Score of each question id.
    cluster_of, group_of : mapping
        Image and task of each question id.

    Raises
    ------
    ValueError
        If they have no question in common.
    """
    both = sorted(treated.keys() & reference.keys())
    if not both:
        raise ValueError("the two results have no question in common")
    return cluster_bootstrap(
        [treated[q] - reference[q] for q in both],
        [cluster_of[q] for q in both],
        [group_of[q] for q in both],
        reps=reps,
        level=level,
        seed=seed,
    )
