"""The far tail of a permutation test, where drawing at random sees nothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

TIE = 1e-9


def saddlepoint_tail(gain: NDArray[np.float64]) -> float:
    """Probability that a sum of independent choices is at least zero.

    Parameters
    ----------
    gain : array
        `[n, choices]`; of every row one entry is taken, each as likely as the others. Their sum's mean must be below
        zero.

    Notes
    -----
    Lugannani and Rice's formula, with half the smallest step of the entries as a continuity correction; exact where
    nothing can exceed zero. Robinson (1982) for permutation tests; the error is some percent and on the safe side.
    """
    from scipy.optimize import brentq
    from scipy.special import logsumexp
    from scipy.stats import norm

    if gain.max(axis=1).sum() <= TIE:
        return float(np.exp(np.log((gain > -TIE).mean(axis=1)).sum()))
    steps = np.diff(np.sort(gain, axis=1), axis=1)
    step = float(steps[steps > TIE].min())
    at = -step / 2

    def moments(s: float) -> tuple[float, float]:
        weight = np.exp(s * gain - logsumexp(s * gain, axis=1, keepdims=True))
        mean = (weight * gain).sum(axis=1)
        return float(mean.sum()) - at, float(((weight * gain**2).sum(axis=1) - mean**2).sum())

    high = 1 / step
    while moments(high)[0] < 0:
        high *= 2
    s = brentq(lambda s: moments(s)[0], 0.0, high)
    cumulant = float((logsumexp(s * gain, axis=1) - math.log(gain.shape[1])).sum())
    w, u = math.sqrt(2 * (s * at - cumulant)), s * math.sqrt(moments(s)[1])
    return float(min(1.0, norm.sf(w) + norm.pdf(w) * (1 / u - 1 / w)))
