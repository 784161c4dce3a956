"""Bipartite merging in rounds (ToMe): which tokens become one. Two engines, one choice: in float64 where it is close.

Everywhere: all rows at once, without a host sync, cosines in float64. On the CPU row by row, cosines in float32; where
two differ by less than float32 can tell, and only there, those of the candidates are computed again in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import decides_on_host
from .matching import merged_match
from .on_host import choose_on_host


class Merging(NamedTuple):
    """What rounds of merging left.

    Attributes
    ----------
    column : Tensor
        `[B, M]` int64: the token at whose place each merged token stands, ascending.
    owner : Tensor
        `[B, N]` int64: which of these each token belongs to; padding holds anything.
    """

    column: Tensor
    owner: Tensor


@torch.no_grad()
def merge_rounds(
    x: Tensor, weight: Tensor, valid: Tensor, counts: Sequence[int], rounds: Sequence[Sequence[int]]
) -> Merging:
    """Merge the most alike pairs of tokens at even and odd places, again and again.

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`: what is compared. A token that is not finite resembles nobody.
    weight : Tensor
        `[B, N]`: how many tokens each one stands for; 0 for padding.
    valid : Tensor
        `[B, N]` bool; padding is on the right.
    counts : sequence of int
        Tokens of each row.
    rounds : sequence of sequence of int
        Of each round, how many tokens each row loses; at most half of those that are left.

    Returns
    -------
    Merging
        Of as many tokens as the row that keeps most.
    """
    if decides_on_host(x) and x.dtype != torch.float64:
        done = [
            choose_on_host(row[:n], w[:n], [r[i] for r in rounds if r[i]])
            for i, (row, w, n) in enumerate(zip(x, weight, counts, strict=True))
        ]
        if all(found is not None for found in done):
            return _together([found for found in done if found is not None], valid.shape[1])
    return _anywhere(x, weight, valid, counts, rounds)


def _anywhere(
    x: Tensor, weight: Tensor, valid: Tensor, counts: Sequence[int], rounds: Sequence[Sequence[int]]
) -> Merging:
    """``merge_rounds`` without a host sync."""
    whole, left_of = x.isfinite().all(-1), list(counts)
    column = owner = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    for r in rounds:
        left_of = [n - less for n, less in zip(left_of, r, strict=True)]
        match = merged_match(x, owner, whole.gather(1, column), weight, r, valid)
        gone = ~valid
        gone[:, ::2] |= match.merged
        place = (~gone).cumsum(1) - 1
        odd = (2 * match.best + 1).clamp(max=place.shape[1] - 1)
        place[:, ::2] = torch.where(match.merged, place.gather(1, odd), place[:, ::2])
        left = gone.to(torch.int8).sort(dim=1, stable=True).indices[:, : max(left_of)]
        owner = place.gather(1, owner)
        column, valid = column.gather(1, left), (~gone).gather(1, left)
    return Merging(column, owner)


def _together(rows: Sequence[tuple[Tensor, Tensor]], width: int) -> Merging:
    """Rows of different lengths, padded."""
    most = max(len(column) for column, _ in rows)
    made = Merging(torch.zeros(len(rows), most, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64))
    for i, (column, owner) in enumerate(rows):
        made.column[i, : len(column)], made.owner[i, : len(owner)] = column, owner
    return made
