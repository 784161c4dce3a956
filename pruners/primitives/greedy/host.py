"""The greedy primitives on the CPU: a picture at a time, and what can't be next is not computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..precision import wide_dtype
from .bounded import bounded, choose_by_bounds
from .isolation import most_isolated
from .lazily_bounded import lazily_bounded
from .loop import LAST, choose
from .rows import ALIKE, Rows
from .rules import Closest, Determinant
from .steps import best_of, finite

# up to these sizes all cosines are made
ISOLATION = 1024  # tokens, where the first is the most isolated one
SMALL = 2**20  # entries of the features, for determinants, whose scores take most to bring up to date


def farthest_point(x: Tensor, k: int, valid: Tensor | None, weight: Tensor | None, start: Tensor | None) -> Tensor:
    """See ``greedy.farthest_point``."""

    def one(rows: Rows, bar: Tensor, row: int) -> Tensor:
        share = torch.ones_like(bar)
        whole = start is None and len(bar) <= ISOLATION
        if weight is not None:
            bar, share = finite(bar, weight[row, : len(bar)])
        use = bar == 0
        bounds = bounded(rows, use, start is not None)
        if start is not None:
            first = int(best_of(bar, start[row, : len(bar)]))
        elif bounds is not None:
            first = bounds.most_isolated(use)
        elif bool(use.any()):
            first = most_isolated(rows, use, whole)
        else:
            first = int(bar.argmax())
        if bounds is not None:
            return choose_by_bounds(bounds, share, bar, first, k)
        found = None if whole else lazily_bounded(rows, share, bar, first, k)
        return choose(rows, Closest(rows, share, _distance), bar, first, k, whole) if found is None else found

    return _each(x, k, valid, one)


def _distance(share: Tensor, closest: Tensor) -> Tensor:
    return share * (1 - closest)


def max_sum(x: Tensor, k: int, start: Tensor, valid: Tensor | None) -> Tensor:
    """See ``greedy.max_sum``."""

    def one(rows: Rows, bar: Tensor, row: int) -> Tensor:
        order, unit = [int(best_of(bar, start[row, : len(bar)]))], rows.all_scaled()
        score, place = bar.numpy(), None if rows.twin is None else rows.twin.numpy()
        while len(order) < k:
            column = torch.mv(unit, unit[order[-1]]).numpy()
            column[column > ALIKE] = 1
            score -= column if place is None else column[place]
            score[order[-1]] = float("-inf")
            order.append(int(score.argmax()))
        return torch.tensor(order)

    return _each(x, k, valid, one)


def mmr(x: Tensor, importance: Tensor, k: int, lam: float, valid: Tensor | None) -> Tensor:
    """See ``greedy.mmr``, a token a round."""

    def one(rows: Rows, bar: Tensor, row: int) -> Tensor:
        bar, mine = finite(bar, importance[row, : len(bar)])
        rule = Closest(rows, lam * mine, lambda share, closest: share - (1 - lam) * closest)
        return choose(rows, rule, bar, int((bar + mine).argmax()), k)

    return _each(x, k, valid, one)


def dpp_map(x: Tensor, k: int, valid: Tensor | None, weight: Tensor | None) -> Tensor:
    """See ``greedy.dpp_map``."""

    def one(rows: Rows, bar: Tensor, row: int) -> Tensor:
        share = torch.ones_like(bar)
        if weight is not None:
            bar, share = finite(bar, weight[row, : len(bar)])
        share = torch.where(bar == 0, share, 0)
        share = (share / share.amax().clamp(min=1e-30)).square()
        first = int((bar + share * rows.own).argmax())
        return choose(rows, Determinant(rows, share, k), bar, first, k, rows.x.numel() <= SMALL)

    return _each(x, k, valid, one)


def _each(x: Tensor, k: int, valid: Tensor | None, one: Callable[[Rows, Tensor, int], Tensor]) -> Tensor:
    """`[B, k]`: ``one(rows, bar, row)`` of each picture, whose tokens end with the last valid one."""
    found = torch.zeros(len(x), k, dtype=torch.int64)
    for row, features in enumerate(x):
        mine = None if valid is None else valid[row]
        if mine is not None:
            real = mine.nonzero()[:, 0]
            count = int(real[-1]) + 1 if len(real) else 0
            features, mine = features[:count], mine[:count]
        if len(features):
            rows = Rows(features, wide_dtype(x), len(x))
            bar = torch.zeros_like(rows.length).masked_fill_(~rows.usable, LAST)
            if mine is not None:
                bar.masked_fill_(~mine, float("-inf"))
            found[row] = one(rows, bar, row)
    return found
