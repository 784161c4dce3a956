"""Lazy greedy in blocks: scores only fall, so an old score is an upper bound, and few need to be brought up to date."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Rows
from .rules import Closest, Determinant

LAST = -1e30  # the bar of tokens that come last, by index
POOL = 64, 192  # tokens whose cosines among one another are made at once: from and to, a twelfth of the picture's
MOST = 512  # tokens brought up to date together, where most scores stay as they are
MANY = 0.75  # of the tokens, of which it is quicker to bring all up to date in their order
# one part in so many of a pool that is chosen: with less, more tokens are brought up to date together, with more, fewer
FRUITFUL = 8, 6


def choose(rows: Rows, rule: Closest | Determinant, bar: Tensor, first: int, k: int, whole: bool = False) -> Tensor:
    """Columns of `k` tokens in the order chosen, `[k]` int64; 0 where no valid ones are left.

    Parameters
    ----------
    rows : Rows
        The tokens.
    rule : Closest or Determinant
        Their scores.
    bar : Tensor
        `[N]` to be added to scores: 0, ``LAST``, or -inf for padding. It is changed.
    first : int
        Column of the first one.
    k : int
        How many.
    whole : bool
        Make all cosines and keep every score up to date: quicker for small ones.
    """
    lazy = _Lazy(rows, rule, bar, k)
    lazy.begin(first, whole)
    if whole and len(lazy.order) < k:
        lazy.pool(torch.arange(len(bar)), float("-inf"), len(bar))
    while len(lazy.order) < k and lazy.advance():
        pass
    return lazy.columns()


class _Lazy:
    """A choice under way."""

    def __init__(self, rows: Rows, rule: Closest | Determinant, bar: Tensor, k: int):
        self.rows, self.rule, self.bar, self.k = rows, rule, bar, k
        self.order: list[int] = []
        self.unit = rows.own.new_empty(k, rows.x.shape[1])  # of the chosen tokens
        self.seen = torch.zeros(len(bar), dtype=torch.int64)  # chosen tokens that a token's score knows of
        # so that of equal scores the first are taken: above float64's rounding of a score, far below float32's
        self.by_index = torch.arange(len(bar), dtype=torch.float64) * 2.0**-50
        self.few = max(POOL[0], min(POOL[1], len(bar) // 12))
        self.block = self.few  # tokens brought up to date together

    def begin(self, first: int, whole: bool) -> None:
        """The first token; all others look at it in one pass."""
        self.pool(torch.tensor([first]), float("-inf"), first)
        if self.order and len(self.order) < self.k:
            cosine = self.rows.whole[first][:, None] if whole else self.rows.all_cosines(self.unit[:1])
            self.rule.refresh(slice(None), cosine, 0)
            self.seen.fill_(1)

    def advance(self) -> bool:
        """Bring a block of scores up to date, or choose what is certain; False when there is nothing left."""
        score = self.bar + self.rule.bounds()
        best = int(score.argmax())
        if float(score[best]) <= LAST / 2:
            rest = (score > float("-inf")).nonzero()[:, 0][: self.k - len(self.order)]
            self.order += rest.tolist()
            return False
        fine = score.double() - self.by_index
        fine[best] = float("inf")  # whatever rounding did
        count = len(self.order)
        stale = int(self.seen[self._source(best)]) < count
        top = fine.topk(min(self.block if stale else self.few, len(score)), sorted=False).indices
        if stale:
            self._refresh(top, count)
            if not self.rule.all_fall:
                self.block = min(2 * self.block, max(self.few, min(MOST, len(score) // 8)))
            return True
        top = top[self.seen[self._sources(top)] == count].sort().values
        outside = score.index_fill(0, top, float("-inf"))
        rival = int(outside.argmax())
        self.pool(top, float(outside[rival]), rival)
        taken = len(self.order) - count
        if not self.rule.all_fall:
            self.block = self.few
        elif taken * FRUITFUL[0] < self.few:
            self.block = min(2 * self.block, len(score))
        elif taken * FRUITFUL[1] > self.few:
            self.block = max(self.block // 2, self.few)
        return True

    def columns(self) -> Tensor:
        """What was chosen."""
        return torch.tensor(self.order + [0] * (self.k - len(self.order)))

    def _refresh(self, top: Tensor, count: int) -> None:
        source = self._sources(top).unique()
        source = source[self.seen[source] < count]
        start = int(self.seen[source].min())
        unit = self.unit[start:count]
        if len(source) > MANY * len(self.seen):
            self.rule.refresh(slice(None), self.rows.all_cosines(unit), start)
            self.seen.fill_(count)
        else:
            self.rule.refresh(source, self.rows.cosines(source, unit), start)
            self.seen[source] = count

    def pool(self, pool: Tensor, bound: float, rival: int) -> None:
        """Choose of the `pool` (ascending, up to date) while its best beats the `bound`, which `rival` has."""
        source, columns, start = self._sources(pool), pool.tolist(), len(self.order)
        self.rule.gather(pool, source, self.rows.between(pool))
        bar = self.bar[pool].numpy()
        while len(self.order) < self.k:
            score = bar + self.rule.pooled()
            place = int(score.argmax())
            best = float(score[place])
            if best < bound or best <= LAST / 2 or (best == bound and columns[place] > rival):
                break
            self.order.append(columns[place])
            bar[place] = float("-inf")
            self.rule.take(place)
        if len(self.order) == self.k:
            return
        taken = torch.tensor(self.order[start:], dtype=torch.int64)
        self.bar[taken] = float("-inf")
        self.unit[start : len(self.order)] = self.rows.scaled(taken)
        self.rule.store()
        self.seen[source] = len(self.order)

    def _source(self, column: int) -> int:
        return column if self.rows.twin is None else int(self.rows.twin[column])

    def _sources(self, columns: Tensor) -> Tensor:
        return columns if self.rows.twin is None else self.rows.twin[columns]
