"""What selections of the same tokens have in common, in numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from vtc.eval.statistics.intervals import Interval, cluster_bootstrap

Mask = NDArray[np.bool_]


class Overlap(NamedTuple):
    """What two selections of one image's `n` tokens have in common.

    Attributes
    ----------
    n, a, b, both : int
        Tokens, those that either keeps, and those that both keep.
    iou : float
        ``both / (a + b - both)``; not a number where neither keeps any.
    of_a, of_b : float
        Share of a's tokens that b keeps, and of b's that a keeps.
    chance : float
        Mean of `both` for random selections of these sizes, ``a b / n``.
    chance_iou : float
        Mean of the IoU then.
    z : float
        How many standard deviations (of the hypergeometric distribution) `both` lies above `chance`; not a number where
        chance leaves no choice.
    """

    n: int
    a: int
    b: int
    both: int
    iou: float
    of_a: float
    of_b: float
    chance: float
    chance_iou: float
    z: float


def overlap(first: Mask, second: Mask) -> Overlap:
    """Compare two selections.

    Parameters
    ----------
    first, second : array of bool
        `[n]`, what each keeps of the same tokens.

    Raises
    ------
    ValueError
        If they are not of one length, at least 1.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"selections must be [n] masks of the same tokens, got {first.shape} and {second.shape}")
    n, a, b, both = len(first), int(first.sum()), int(second.sum()), int((first & second).sum())
    nan = float("nan")
    chance = a * b / n
    possible = np.arange(max(0, a + b - n), min(a, b) + 1)
    spread = math.sqrt(a * b * (n - a) * (n - b) / (n * n * (n - 1))) if n > 1 else 0.0
    return Overlap(
        n,
        a,
        b,
        both,
        both / (a + b - both) if a + b else nan,
        both / a if a else nan,
        both / b if b else nan,
        chance,
        float((hypergeom.pmf(possible, n, a, b) * possible / (a + b - possible)).sum()) if a + b else nan,
        (both - chance) / spread if spread else nan,
    )


@dataclass(frozen=True)
class Pair:
    """Two settings over all images; differences from chance are taken image by image.

    Attributes
    ----------
    first, second : int
        Their numbers.
    iou, of_first, of_second : Interval
        Means over the images, with a 95% interval where there are several (bootstrap over images).
    chance_iou, chance_of_first, chance_of_second : float
        The same of random selections.
    gain : Interval
        ``of_first - chance_of_first``, the share above chance.
    z : float
        Of the only image; not a number for several.
    """

    first: int
    second: int
    iou: Interval
    of_first: Interval
    of_second: Interval
    chance_iou: float
    chance_of_first: float
    chance_of_second: float
    gain: Interval
    z: float


@dataclass(frozen=True)
class Comparison:
    """Settings compared over images: what each keeps on average, and every pair of them."""

    names: tuple[str, ...]
    kept: tuple[float, ...]
    tokens: float
    images: int
    pairs: tuple[Pair, ...]


def _mean(values: Sequence[float]) -> Interval:
    """Mean over the images that have a value; the interval is not a number where there is only one."""
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2:
        return Interval(known[0] if known else float("nan"), float("nan"), float("nan"))
    return cluster_bootstrap(known, range(len(known)))


def compare(names: Sequence[str], masks: Sequence[Sequence[Mask]]) -> Comparison:
    """Compare settings.

    Parameters
    ----------
    names : sequence of str
        What the settings are called.
    masks : sequence of sequences of masks
        Per image and setting what is kept of its tokens, `[n]`.

    Raises
    ------
    ValueError
        If there are fewer than two settings, or no image.
    """
    if len(names) < 2 or not masks:
        raise ValueError(f"a comparison needs two settings and an image, got {len(names)} and {len(masks)}")
    pairs = []
    for i, j in itertools.combinations(range(len(names)), 2):
        found = [overlap(image[i], image[j]) for image in masks]
        pairs.append(
            Pair(
                i,
                j,
                _mean([o.iou for o in found]),
                _mean([o.of_a for o in found]),
                _mean([o.of_b for o in found]),
                _mean([o.chance_iou for o in found]).value,
                _mean([o.b / o.n if o.a else math.nan for o in found]).value,
                _mean([o.a / o.n if o.b else math.nan for o in found]).value,
                _mean([o.of_a - o.b / o.n for o in found]),
                found[0].z if len(found) == 1 else math.nan,
            )
        )
    kept = tuple(float(np.mean([image[i].sum() for image in masks])) for i in range(len(names)))
    tokens = float(np.mean([len(image[0]) for image in masks]))
    return Comparison(tuple(names), kept, tokens, len(masks), tuple(pairs))
