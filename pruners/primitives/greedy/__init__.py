"""Greedy choices of one token a step: max-min, max-sum, marginal relevance, determinants, coverage.

In float32 at least, on cosine similarities. On a device every function is one loop of `k` steps over the whole batch,
without a host sync; on the CPU pictures are taken one by one and what can't be next is not computed (both choose the
same). Common to all:

- `x` is `[B, N, D]` and `valid` `[B, N]` bool (None: all). The result is `[B, k]` int64 columns in the order chosen.
  The first entries are what a smaller `k` gives, so a row of a ragged batch reads as many as its budget says; entries
  beyond the number of its valid tokens mean nothing.
- No column is chosen twice, duplicated features or not. Ties go to the lowest index.
- A token whose vector has an entry that is not finite (or whose norm overflows float32) comes last, before padding, by
  index, and repels nobody; so does one whose weight or importance is not finite.

In: features and scores of a batch.
Out: columns in the order chosen.
Uses: pruners.primitives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import decides_on_host, held_together, wide
from . import coverage, host, steps
from .coverage import Coverage
from .half_matrix import HalfMatrix, is_large
from .loop import LAST


def finite_range(score: Tensor, valid: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """Scores `[B, N]` scaled to [0, 1] by the least and largest finite valid one of their row; the others are NaN.

    ``(s - min) / (max - min + epsilon)`` in float32.
    """
    score = wide(score)
    use = score.isfinite() if valid is None else score.isfinite() & valid
    low = torch.where(use, score, float("inf")).amin(-1, keepdim=True)
    high = torch.where(use, score, float("-inf")).amax(-1, keepdim=True)
    return torch.where(use, (score - low) / (high - low + epsilon), float("nan"))


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
    if decides_on_host(x):
        return host.farthest_point(x, k, valid, weight, start)
    return steps.farthest_point(x, k, valid, weight, start)


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
    if decides_on_host(x):
        return host.max_sum(x, k, start, valid)
    return steps.max_sum(x, k, start, valid)


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
    if decides_on_host(x) and parallel == 1:
        return host.mmr(x, importance, k, lam, valid)
    return steps.mmr(x, importance, k, lam, valid, parallel)


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
    token: such a step changes nothing, and the choice goes on by what the others have left, and at last by index.
    """
    if decides_on_host(x):
        return host.dpp_map(x, k, valid, weight)
    return steps.dpp_map(x, k, valid, weight)


@torch.no_grad()
def facility_location(x: Tensor, k: int, valid: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Facility location: each step takes the token that raises the coverage of all tokens most.

    ``argmax_i w_i sum_u max(0, cos(x_u, x_i) - c_u)`` with ``c_u`` the largest cosine of u to a chosen token, at first
    0.

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
    O(N^2 D) for the cosines, which are held: `[B, N, N]`, on the CPU of one picture at a time, and of many tokens
    (``is_large``) half of them; see ``cover`` for the rest.
    """
    bar = barred(x, valid)
    weight = torch.ones_like(bar) if weight is None else weight
    sets = held_together(x, bar, weight)
    if is_large(x.shape[1]):
        return torch.cat([cover_in_rows([half_cosines(some, b == 0)], k, b, w) for some, b, w in sets])
    return torch.cat([cover(all_cosines(some, b == 0), k, b, w) for some, b, w in sets])


@torch.no_grad()
def all_cosines(x: Tensor, usable: Tensor, above: int = 0) -> Tensor:
    """Cosines of the `usable [B, N]` tokens of `x [B, N, D]` with one another; those of others are 0.

    In float32 at least, symmetric, and on the CPU equal for equal vectors: the last N rows of `[B, above + N, N]`, the
    others zeros. Beside them some tokens are held widened, never all.
    """
    return coverage.all_cosines(x, usable, above)


@torch.no_grad()
def half_cosines(x: Tensor, usable: Tensor) -> HalfMatrix:
    """``all_cosines``, the same numbers in half of the memory; on the CPU of one picture, `B` 1."""
    return coverage.half_cosines(x, usable)


def barred(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """`[B, N]` to be added to scores: 0, a large negative number for what is not finite, -inf for padding."""
    # some at a time: a norm of half precision in float32 widens all it is given
    finite = torch.cat([torch.linalg.vector_norm(wide(part), dim=-1) for part in x.split(256, 1)], 1).isfinite()
    bar = torch.zeros_like(finite, dtype=torch.float32).masked_fill_(~finite, LAST)
    return bar if valid is None else bar.masked_fill_(~valid, float("-inf"))


@torch.no_grad()
def cover(covers: Tensor, k: int, bar: Tensor, weight: Tensor | None = None) -> Tensor:
    """Facility location of anything: each step takes the candidate that raises the sum of what is covered most.

    ``argmax_i w_i sum_u max(0, S_ui - c_u)`` with ``c_u = max_{j chosen} S_uj``, at first 0.

    Parameters
    ----------
    covers : Tensor
        `[B, R, N]` S: how well each candidate covers each of R things. Rows of zeros count for nothing.
    k : int
        How many.
    bar : Tensor
        `[B, N]`, see ``barred``.
    weight : Tensor, optional
        `[B, N]` w >= 0 (default 1).

    Returns
    -------
    Tensor
        `[B, k]` int64.

    Notes
    -----
    O(k R N), and on the CPU only those rows are looked at again that the last choice covers better than all before it:
    about O(R N log k).
    """
    return coverage.cover(covers, k, bar, weight)


@torch.no_grad()
def cover_in_rows(sets: Sequence[Coverage], k: int, bar: Tensor, weight: Tensor | None = None) -> Tensor:
    """``cover`` of things whose rows are made when they are asked for; `bar` and `weight` as there.

    Parameters
    ----------
    sets : sequence of Coverage
        What would stand below one another in ``cover``'s matrix. On the CPU of one picture, `B` 1.
    k : int
        How many.

    Returns
    -------
    Tensor
        `[B, k]` int64.
    """
    return coverage.cover_in_rows(sets, k, bar, weight)
