"""The greedy primitives in steps of the whole batch that never wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import wide, wide_dtype
from ..ranking import top_k
from .loop import LAST
from .rows import alike
from .rules import SPANNED

BLOCK = 256  # rows of the N x N matrix looked at together
CHUNK = 1024  # tokens widened together
WHOLE_FROM = 8  # a matrix product does this many times the work of a matrix-vector product in the same time


class Similarities:
    """Cosine similarities between the tokens of each row.

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`.
    valid : Tensor, optional
        `[B, N]` bool.
    steps : int
        How many columns will be asked for.

    Attributes
    ----------
    bar : Tensor
        `[B, N]` to be added to scores: 0, ``LAST`` for vectors that are not finite, -inf for padding.
    own : Tensor
        `[B, N]` similarity of each token to itself: 1, but 0 for a vector of zeros or one that is not finite.

    Notes
    -----
    A column is one pass over the unit vectors, O(N D). The N x N matrix costs N such passes, but as a matrix product,
    which runs many times faster: it is made, in place of the unit vectors, when at least N / ``WHOLE_FROM`` columns are
    asked for and it is not larger than the features.
    """

    def __init__(self, x: Tensor, valid: Tensor | None, steps: int):
        rows, width, dtype = *x.shape[1:], wide_dtype(x)
        unit, norms = x.new_empty(x.shape, dtype=dtype), []
        for start in range(0, rows, CHUNK):  # or half precision would be held widened once more
            part = unit[:, start : start + CHUNK].copy_(x[:, start : start + CHUNK])
            norms.append(torch.linalg.vector_norm(part, dim=-1, keepdim=True))
            part.div_(norms[-1].clamp(min=1e-8))
        norm = torch.cat(norms, 1)
        length = norm.clamp(min=1e-8)
        self.usable = norm.isfinite()[..., 0]
        unit.masked_fill_(~self.usable[..., None], 0)
        self.own = (norm / length)[..., 0].square().masked_fill_(~self.usable, 0)
        self.bar = torch.zeros_like(norm[..., 0]).masked_fill_(~self.usable, LAST)
        if valid is not None:
            self.bar.masked_fill_(~valid, float("-inf"))
            self.usable = self.usable & valid
        self.is_matrix = rows * dtype.itemsize <= width * x.element_size() and steps * WHOLE_FROM >= rows
        self.table: Tensor = unit @ unit.mT if self.is_matrix else unit

    def column(self, chosen: Tensor) -> Tensor:
        """Similarity of every token to the token `chosen` `[B]` of its row: `[B, N]`."""
        return self.columns(chosen[:, None])[:, 0]

    def columns(self, chosen: Tensor) -> Tensor:
        """Similarity of every token to the tokens `chosen` `[B, p]` of its row: `[B, p, N]`."""
        found = self.table.gather(1, chosen[..., None].expand(-1, -1, self.table.shape[-1]))
        return alike(found if self.is_matrix else found @ self.table.mT)

    def nearest(self) -> Tensor:
        """Similarity of each token to the most similar other one, `[B, N]`; -2 where there is none."""
        width = self.table.shape[1]
        rows, columns = [], torch.full_like(self.bar, -2.0)
        for start in range(0, width, BLOCK):
            stop = min(start + BLOCK, width)
            block = self.table[:, start:stop]
            block = block.clone() if self.is_matrix else block @ self.table.mT
            block.masked_fill_(~self.usable[:, None], -2.0).masked_fill_(~self.usable[:, start:stop, None], -2.0)
            block.diagonal(start, 1, 2).fill_(-2.0)
            rows.append(block.amax(-1))
            columns = torch.maximum(columns, block.amax(1))
        # a product of matrices is symmetric up to rounding only, and two tokens nearest to each other are a true tie
        return alike(torch.maximum(torch.cat(rows, 1), columns))


def finite(bar: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """`bar` with tokens of a score that is not finite put last, and the scores with 0 for theirs."""
    usable = score.isfinite()
    return bar.masked_fill((bar == 0) & ~usable, LAST), torch.where(usable, wide(score), 0)


def best_of(bar: Tensor, score: Tensor) -> Tensor:
    """Column of each row's largest score, `[B]`; argmax gives the first of equal ones, by its documentation."""
    bar, score = finite(bar, score)
    return (bar + score).argmax(-1)


def _take(bar: Tensor, chosen: Tensor) -> None:
    """Put `chosen` `[B, p]` out of reach."""
    bar.scatter_(1, chosen, float("-inf"))


def farthest_point(x: Tensor, k: int, valid: Tensor | None, weight: Tensor | None, start: Tensor | None) -> Tensor:
    """See ``greedy.farthest_point``."""
    similar = Similarities(x, valid, x.shape[1] if start is None else k)
    bar = similar.bar
    if weight is not None:
        bar, weight = finite(bar, weight)
    order = [best_of(bar, -similar.nearest() if start is None else start)]
    distance = torch.full_like(bar, 2.0)
    while len(order) < k:
        _take(bar, order[-1][:, None])
        distance = torch.minimum(distance, 1 - similar.column(order[-1]))
        order.append((bar + (distance if weight is None else weight * distance)).argmax(-1))
    return torch.stack(order, 1)


def max_sum(x: Tensor, k: int, start: Tensor, valid: Tensor | None) -> Tensor:
    """See ``greedy.max_sum``."""
    similar = Similarities(x, valid, k)
    order = [best_of(similar.bar, start)]
    total = torch.zeros_like(similar.bar)
    while len(order) < k:
        _take(similar.bar, order[-1][:, None])
        total = total + similar.column(order[-1])
        order.append((similar.bar - total).argmax(-1))
    return torch.stack(order, 1)


def mmr(x: Tensor, importance: Tensor, k: int, lam: float, valid: Tensor | None, parallel: int) -> Tensor:
    """See ``greedy.mmr``."""
    similar = Similarities(x, valid, k)
    bar, importance = finite(similar.bar, importance)
    score, closest, order = importance, None, []
    for taken in range(0, k, parallel):
        size = min(parallel, k - taken)
        best = (bar + score).argmax(-1, keepdim=True) if size == 1 else top_k(bar + score, size)
        order.append(best)
        if taken + size < k:
            _take(bar, best)
            near = similar.columns(best).amax(1)
            closest = near if closest is None else torch.maximum(closest, near)
            score = lam * importance - (1 - lam) * closest
    return torch.cat(order, 1)


def dpp_map(x: Tensor, k: int, valid: Tensor | None, weight: Tensor | None) -> Tensor:
    """See ``greedy.dpp_map``."""
    similar = Similarities(x, valid, k)
    bar, weight = finite(similar.bar, torch.ones_like(similar.bar) if weight is None else weight)
    weight = torch.where(bar == 0, weight, 0)
    # as shares of the largest, whose squares can't overflow
    weight = (weight / weight.amax(-1, keepdim=True).clamp(min=1e-30)).square()
    left, order = similar.own, []
    factor = x.new_zeros(x.shape[0], k - 1, x.shape[1], dtype=left.dtype)
    for step in range(k):
        best = (bar + weight * torch.where(left > SPANNED, left, 0)).argmax(-1, keepdim=True)
        order.append(best)
        if step + 1 == k:
            break
        _take(bar, best)
        before = factor[:, :step]
        known = before.gather(2, best[:, None].expand(-1, step, -1))
        row = similar.column(best[:, 0]) - (known.mT @ before)[:, 0]
        mine = left.gather(1, best)
        factor[:, step] = torch.where(mine <= SPANNED, 0, row * mine.clamp(min=1e-30).rsqrt())
        left = left - factor[:, step].square()
    return torch.cat(order, 1)
