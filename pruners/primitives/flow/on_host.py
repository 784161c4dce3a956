"""The same of rows without parts, in numpy: at a tower's sizes a call into torch takes longer than what it does."""

from __future__ import annotations

import math

import numpy as np

from .importance import Flow

TINY = np.finfo(np.float32).tiny


def flows_on_host(flow: Flow, score: np.ndarray | None, history: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Importance behind all layers of `flow` and the attention's shares at the last one, `[B, N]` float64 each.

    `score` is the importance so far, which weighs `history` in each layer's. None where something is not finite.
    """
    share = np.empty((len(flow.rows), *flow.rows[0].shape))
    for row, given in zip(share, flow.rows, strict=True):
        row[:] = given.numpy()
    layers = len(flow.density)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is seen below
        share /= np.maximum(share.sum(-1, keepdims=True), TINY)
        for i, density in enumerate(flow.density):
            now = share[i] + share[layers + i] if len(share) > layers else share[i]
            now = now * density.numpy()
            score = now if score is None else history * score + (1 - history) * now
    assert score is not None
    return (score, share[layers - 1]) if math.isfinite(score.sum()) else None


def kept_on_host(share: np.ndarray, target: float, left: int) -> int:
    """``kept_counts`` of one row whose attention's `share` is `[N]`."""
    if left == 0:
        return int(target)
    n = len(share)
    entropy = share @ np.log(np.maximum(share, np.finfo(np.float64).tiny)) / math.log(max(2, n))
    return int(max(n - round((n - target) / left**0.5 * (1 - entropy * entropy)), target))


def best_columns(score: np.ndarray, k: int) -> np.ndarray:
    """The `k` largest of `score` `[N]`, ascending; of equal ones the lowest."""
    least = np.partition(score, len(score) - k)[len(score) - k]
    columns = np.flatnonzero(score >= least)
    if len(columns) > k:
        equal = np.flatnonzero(score[columns] == least)
        columns = np.delete(columns, equal[k - len(columns) :])
    return columns
