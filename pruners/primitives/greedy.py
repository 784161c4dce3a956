"""Greedy choices of one token a step: max-min, max-sum, marginal relevance, determinants.

Every function is one loop of `k` steps over the whole batch, without a host sync, in float32, on cosine similarities.
Common to all:

- `x` is `[B, N, D]` and `valid` `[B, N]` bool (None: all). The result is `[B, k]` int64 columns in the order chosen.
  The first entries are what a smaller `k` gives, so a row of a ragged batch reads as many as its budget says; entries
  beyond the number of its valid tokens mean nothing.
- No column is chosen twice, duplicated features or not. Ties go to the lowest index.
- A token whose vector has an entry that is not finite (or whose norm overflows float32) comes last, before padding, by
  index, and repels nobody; so does one whose weight or importance is not finite.
- Similarities are computed a column a step, O(N D), unless ``Similarities`` finds the N x N matrix cheaper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import wide, wide_dtype
from .ranking import top_k

LAST = -1e30  # far below every score, and finite: tokens that come last still have an order
BLOCK = 256  # rows of the N x N matrix looked at together
ALIKE = 1 - 1e-6  # a cosine above it is 1: float32 can't tell such tokens apart, and its noise must not choose
WHOLE_FROM = 8  # a matrix product does this many times the work of a matrix-vector product in the same time


def finite_range(score: Tensor, valid: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """Scores `[B, N]` scaled to [0, 1] by the least and largest finite valid one of their row; the others are NaN.

    ``(s - min) / (max - min + epsilon)`` in float32.
    """
    score = wide(score)
    use = score.isfinite() if valid is None else score.isfinite() & valid
    low = torch.where(use, score, float("inf")).amin(-1, keepdim=True)
    high = torch.where(use, score, float("-inf")).amax(-1, keepdim=True)
    return torch.where(use, (score - low) / (high - low + epsilon), float("nan"))


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
    asked for and it is not larger than the features (N <= D).
    """

    def __init__(self, x: Tensor, valid: Tensor | None, steps: int):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_dtype(x))
        self.usable = norm.isfinite()[..., 0]
        length = norm.clamp(min=1e-8)
        unit = (x / length).masked_fill_(~self.usable[..., None], 0)
        self.own = (norm / length)[..., 0].square().masked_fill_(~self.usable, 0)
        self.bar = torch.zeros_like(norm[..., 0]).masked_fill_(~self.usable, LAST)
        if valid is not None:
            self.bar.masked_fill_(~valid, float("-inf"))
            self.usable = self.usable & valid
        rows, width = x.shape[1:]
        self.is_matrix = rows <= width and steps * WHOLE_FROM >= rows
        self.table: Tensor = unit @ unit.mT if self.is_matrix else unit

    def column(self, chosen: Tensor) -> Tensor:
        """Similarity of every token to the token `chosen` `[B]` of its row: `[B, N]`."""
        return self.columns(chosen[:, None])[:, 0]

    def columns(self, chosen: Tensor) -> Tensor:
        """Similarity of every token to the tokens `chosen` `[B, p]` of its row: `[B, p, N]`."""
        found = self.table.gather(1, chosen[..., None].expand(-1, -1, self.table.shape[-1]))
        return _alike(found if self.is_matrix else found @ self.table.mT)

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
        return _alike(torch.maximum(torch.cat(rows, 1), columns))


def _alike(cosine: Tensor) -> Tensor:
    """Cosines of tokens that are equal but for rounding are 1; in place."""
    return cosine.masked_fill_(cosine > ALIKE, 1.0)


def _finite(bar: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """`bar` with tokens of a score that is not finite put last, and the scores with 0 for theirs."""
    finite = score.isfinite()
    return bar.masked_fill((bar == 0) & ~finite, LAST), torch.where(finite, wide(score), 0)


def _best(bar: Tensor, score: Tensor) -> Tensor:
    """Column of each row's largest score, `[B]`; argmax gives the first of equal ones, by its documentation."""
    bar, score = _finite(bar, score)
    return (bar + score).argmax(-1)


def _take(bar: Tensor, chosen: Tensor) -> None:
    """Put `chosen` `[B, p]` out of reach."""
    bar.scatter_(1, chosen, float("-inf"))


@torch.no_grad()
def farthest_point(
    x: Tensor, k: int, valid: Tensor | None = None, weight: Tensor | None = None, start: Tensor | None = None
) -> Tensor:
    """Max-min diversity (k-center): each step takes the token farthest from what is chosen.

    ``argmax_i w_i min_{j chosen} (1 - cos(x_i, x_j))``.

    Parameters
    ----------
    x, k, valid
        See the module.
    weight : Tensor, optional
        `[B, N]` factors >= 0 (default 1).
    start : Tensor, optional
        `[B, N]`, the first token is the one with the largest. Default: the weights, or without them the isolation: how
        unlike a token its most similar other token is.

    Returns
    -------
    Tensor
        `[B, k]` int64.
    """
    start = weight if start is None else start
    similar = Similarities(x, valid, k if start is not None else x.shape[1])
    bar = similar.bar
    if weight is not None:
        bar, weight = _finite(bar, weight)
    order = [_best(bar, -similar.nearest() if start is None else start)]
    distance = torch.full_like(bar, 2.0)
    while len(order) < k:
        _take(bar, order[-1][:, None])
        distance = torch.minimum(distance, 1 - similar.column(order[-1]))
        order.append((bar + (distance if weight is None else weight * distance)).argmax(-1))
    return torch.stack(order, 1)


@torch.no_grad()
def max_sum(x: Tensor, k: int, start: Tensor, valid: Tensor | None = None) -> Tensor:
    """Max-sum diversity: each step takes the token with the least summed similarity to what is chosen.

    ``argmin_i sum_{j chosen} cos(x_i, x_j)``; unlike ``farthest_point`` it may take near-duplicates of one far cluster.

    Parameters
    ----------
    x, k, valid
        See the module.
    start : Tensor
        `[B, N]`, the first token is the one with the largest.

    Returns
    -------
    Tensor
        `[B, k]` int64.
    """
    similar = Similarities(x, valid, k)
    order = [_best(similar.bar, start)]
    total = torch.zeros_like(similar.bar)
    while len(order) < k:
        _take(similar.bar, order[-1][:, None])
        total = total + similar.column(order[-1])
        order.append((similar.bar - total).argmax(-1))
    return torch.stack(order, 1)


@torch.no_grad()
def mmr(
    x: Tensor, importance: Tensor, k: int, lam: float = 0.5, valid: Tensor | None = None, parallel: int = 1
) -> Tensor:
    """Maximal marginal relevance: each round takes what is important and unlike what is chosen.

    ``argmax_i lam importance_i - (1 - lam) max_{j chosen} cos(x_i, x_j)``; the first round goes by importance alone.

    Parameters
    ----------
    x, k, valid
        See the module.
    importance : Tensor
        `[B, N]`, as it is; scale it first, see ``finite_range``.
    lam : float
        Weight of the importance, in [0, 1].
    parallel : int
        Tokens taken in a round, best first; those of one round do not repel one another.

    Returns
    -------
    Tensor
        `[B, k]` int64.
    """
    similar = Similarities(x, valid, k)
    bar, importance = _finite(similar.bar, importance)
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


@torch.no_grad()
def dpp_map(x: Tensor, k: int, valid: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Greedy MAP of a determinantal point process with kernel ``L_ij = w_i cos(x_i, x_j) w_j``.

    Each step takes the token that raises ``det L`` of the chosen set most, by the incremental Cholesky factor. With
    ``d_i = cos(x_i, x_i)`` at first: ``j = argmax w_i^2 d_i``, ``e_i = (cos(x_i, x_j) - sum_t c_ti c_tj) / sqrt(d_j)``,
    ``d -= e^2``, and e is the next c.

    Parameters
    ----------
    x, k, valid
        See the module.
    weight : Tensor, optional
        `[B, N]` w >= 0 (default 1).

    Returns
    -------
    Tensor
        `[B, k]` int64.

    Notes
    -----
    O(k N (D + k)) and `[B, k, N]` memory. The weights stay outside the factor, whose rows and columns they only scale:
    neither large nor small ones cost precision. Where `d_j` is below 1e-6, which is rounding, the chosen set spans the
    token: such a step changes nothing, and the choice goes on by what the others have left.
    """
    similar = Similarities(x, valid, k)
    bar, weight = _finite(similar.bar, torch.ones_like(similar.bar) if weight is None else weight)
    weight = torch.where(bar == 0, weight, 0)
    # as shares of the largest, whose squares can't overflow
    weight = (weight / weight.amax(-1, keepdim=True).clamp(min=1e-30)).square()
    left, order = similar.own, []
    factor = x.new_zeros(x.shape[0], k - 1, x.shape[1], dtype=left.dtype)
    for step in range(k):
        best = (bar + weight * left).argmax(-1, keepdim=True)
        order.append(best)
        if step + 1 == k:
            break
        _take(bar, best)
        before = factor[:, :step]
        known = before.gather(2, best[:, None].expand(-1, step, -1))
        row = similar.column(best[:, 0]) - (known.mT @ before)[:, 0]
        mine = left.gather(1, best)
        factor[:, step] = torch.where(mine <= 1e-6, 0, row * mine.clamp(min=1e-30).rsqrt())
        left = left - factor[:, step].square()
    return torch.cat(order, 1)
