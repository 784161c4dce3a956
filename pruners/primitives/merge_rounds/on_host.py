"""The engine of ``merge_rounds`` on the CPU: float32 first, float64 where float32 can't tell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import vector_lengths
from .nearest import cosines, nearest
from .products import ENTRIES, Exact, Gram, Products, Sums

ROUNDING = 2e-6  # more than a float32 product of unit vectors is off by (seen: below 5e-7 at 4,096 channels)
MOST_CANCELLED = 30.0  # times a merged vector may be shorter than its parts; beyond it float32 has no use
LONGEST = 1e15  # a token whose products stay far from overflowing
SHORTEST = 1e-5  # length of a token as a share of the longest one (or of 1): below it squares may vanish


def choose_on_host(x: Tensor, weight: Tensor, rounds: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """``merge_rounds`` of one row `x [n, D]` with `weight [n]`: column and owner; None where float32 has no use."""
    length = vector_lengths(x)
    whole = length.isfinite()
    if not whole.all():
        if x[~whole].isfinite().all(-1).any():
            return None
        x = x.nan_to_num(0, 0, 0)
        length = vector_lengths(x)
    longest, shortest = length.max().item(), torch.where(length > 0, length, float("inf")).min().item()
    if not (longest < LONGEST and shortest > SHORTEST * max(1.0, longest)):
        return None
    n, length = len(x), length * weight
    products: Products = Gram(x, weight) if _all_at_once(x, rounds) else Sums(x, weight)
    column = owner = torch.arange(n)
    for turn, r in enumerate(rounds, 1):
        merged = products.lengths() if turn > 1 else length
        cancelled = torch.where(length > 0, length / merged, 1.0)
        if not cancelled.max() < MOST_CANCELLED:
            return None
        error = 2 * ROUNDING * max(1.0, cancelled.max().item()) ** 2
        scale = torch.where(length > 0, 1 / merged, 0.0)
        products.scale_by(scale)
        source, target = _pairs(products, Exact(x, weight, owner, whole[column]), error, r)
        stays = torch.ones(len(column), dtype=torch.bool)
        stays[source] = False
        place = stays.cumsum(0) - 1
        place[source] = place[target]
        left = stays.nonzero()[:, 0]
        if turn < len(rounds):
            products.merge(source, target, left)
        length = length.index_add(0, target, length[source])[left]
        owner, column = place[owner], column[left]
    return column, owner


def _all_at_once(x: Tensor, rounds: Sequence[int]) -> bool:
    """Whether all products cost less than those of the rounds, and fit into less than three times the features."""
    n, pairs = len(x), 0.0
    for r in rounds:
        pairs, n = pairs + n * n / 4, n - r
    return len(x) ** 2 * 0.6 < pairs and 4 * len(x) ** 2 < 2.4 * x.numel() * x.element_size()


def _pairs(products: Products, exact: Exact, error: float, r: int) -> tuple[Tensor, Tensor]:
    """The tokens of A that merge and those of B that they merge into, as places in reading order."""
    even, odd = exact.usable[::2], exact.usable[1::2]
    score, second, best = nearest(products, odd, error, ranked=r < len(even))
    # a token that is not finite is as near to the first as to any other
    score, second, best = score.where(even, -1.0), second.where(even, -2.0), best.where(even, 0)
    least = score.sort(descending=True).values[r - 1]
    unsure = even & (score >= least - 2 * error) & (score - second <= 2 * error)
    if r < len(even):  # or all of them merge
        close = (score - least).abs() <= 2 * error
        if close.sum() > 1:
            unsure |= close & even
    if unsure.any() and odd.any():
        rows = unsure.nonzero()[:, 0]
        score[rows], best[rows] = _settled(products, exact, rows, 2 * error)
    chosen = score.sort(descending=True, stable=True).indices[:r]
    return 2 * chosen, 2 * best[chosen] + 1


def _settled(products: Products, exact: Exact, rows: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Score and best of the `rows` of A, exactly: of the columns within `error` of the largest."""
    scores, bests, odd = [], [], exact.usable[1::2]
    for some in rows.split(max(1, ENTRIES // max(1, len(odd)))):
        near = cosines(products, 2 * some, odd)
        may = near >= near.amax(1, keepdim=True) - error
        columns = may.any(0).nonzero()[:, 0]
        found = exact.cosines(2 * some, 2 * columns + 1).masked_fill_(~may[:, columns], -2.0)
        scores.append(found.amax(1))
        bests.append(columns[(found == scores[-1][:, None]).to(torch.int8).argmax(1)])
    return torch.cat(scores), torch.cat(bests)
