"""Selection primitives: batched, deterministic, without a host sync. Ties go to the lowest index everywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import wide


def rankable(score: Tensor, valid: Tensor | None = None) -> Tensor:
    """Float32 scores that sort as documented: NaN and Inf below every finite score, what is not `valid` below them."""
    score = wide(score)
    low = torch.finfo(score.dtype).min
    if valid is None:  # a caller's own -inf stays the lowest
        return score.nan_to_num(low, low, float("-inf"))
    return score.nan_to_num(low, low, low).masked_fill(~valid, float("-inf"))


def top_k(score: Tensor, k: int, valid: Tensor | None = None) -> Tensor:
    """Columns of the `k` largest scores, best first.

    Parameters
    ----------
    score : Tensor
        `[B, N]`, any float dtype.
    k : int
        How many.
    valid : Tensor, optional
        `[B, N]` bool; the others come last.

    Returns
    -------
    Tensor
        `[B, k]` int64. Scores that are not finite come behind all others.

    Notes
    -----
    A stable sort and not ``torch.topk``, whose choice among equal scores is not defined.
    """
    return rankable(score, valid).sort(dim=-1, descending=True, stable=True).indices[:, :k]


def masked_arg_top(score: Tensor, valid: Tensor) -> Tensor:
    """Column of the largest score of each row among the valid ones, the lowest on ties: `[B]` int64."""
    # argmax of the boolean is the first True on every backend
    score = rankable(score, valid)
    return (score == score.amax(-1, keepdim=True)).to(torch.int8).argmax(-1)
