"""Max-min on the CPU by products in bfloat16 of some tokens at a time: bounds, and float32 only where they can't tell.

For pictures of which a matrix of all cosines would be too large, or too much work. Scores only fall with what is chosen,
so an old upper bound is one, and only tokens that may be next are compared with what was chosen since. What comes out of
a product in bfloat16 is rounded, and so it is made to be how much closer than known a token is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..precision import multiplies_bfloat16
from .loop import LAST
from .products import ROUNDED, SLACK, bears_products, exact_cosines, left_channels, right_channels
from .rows import Rows

PRODUCTS = 2**25  # multiplications at a time
AHEAD = 12
FEW = 192  # tokens that are brought up to date together at least, and looked at together at most
FRUITFUL = 4  # pairs of a token that it's quicker to make one by one
NONE = -2.0  # below every cosine


def lazily_bounded(rows: Rows, share: Tensor, bar: Tensor, first: int, k: int) -> Tensor | None:
    """Columns of `k` tokens in the order chosen, ``share * (1 - largest cosine to a chosen one)``: see ``loop.choose``.

    None where this is no safe or no quicker way.
    """
    if rows.x.dtype != torch.bfloat16 or 2 * k > rows.x.shape[1] or not multiplies_bfloat16():
        return None
    if not bears_products(rows):
        return None
    choice = _Choice(rows, share, bar, k)
    choice.begin(first)
    while len(choice.order) < k and choice.advance():
        pass
    return torch.tensor(choice.order + [0] * (k - len(choice.order)))


class _Choice:
    """A choice under way.

    Attributes
    ----------
    low : ndarray
        `[N]`, what the largest cosine of a token to those chosen is at least, as far as it has `seen` them.
    known : ndarray
        `[N]`, the largest one of those made in float32.
    high : ndarray
        `[k, N]`, what its cosine to each chosen token is at most; ``NONE`` where that is made in float32.
    """

    def __init__(self, rows: Rows, share: Tensor, bar: Tensor, k: int):
        self.rows, self.share, self.bar, self.k = rows, share.numpy(), bar.numpy(), k
        self.order: list[int] = []
        self.high = np.empty((k, len(bar)), dtype=np.float32)
        self.seen = np.ones(len(bar), dtype=np.int64)

    def begin(self, first: int) -> None:
        """The first token, which all others look at in float32."""
        self._take(first)
        self.low = self.rows.all_cosines(self.rows.scaled(torch.tensor([first])))[:, 0]
        self.known = self.low.clone().numpy()
        self.high[0] = NONE

    def advance(self) -> bool:
        """Bring a block of scores up to date, or choose what is certain; False when there is nothing left."""
        score, count = self.share * (1 - self.low.numpy()) + self.bar, len(self.order)
        best = int(score.argmax())
        if score[best] <= LAST / 2:
            self.order += (score > -np.inf).nonzero()[0][: self.k - count].tolist()
            return False
        stale = self.seen < count
        if stale[best]:
            top = _largest(score, max(FEW, PRODUCTS // (count * self.rows.x.shape[1])))
            self._bring_up(top[stale[top]])
            return True
        pool = _largest(np.where(stale, -np.inf, score), FEW)
        outside = score.copy()
        outside[pool] = -np.inf
        rival = int(outside.argmax())
        self._choose_among(np.sort(pool[score[pool] >= outside[rival]]), outside[rival], rival)
        return True

    def _take(self, column: int) -> None:
        self.order.append(column)
        self.bar[column] = -np.inf

    def _right(self, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        some, length = torch.from_numpy(tokens), self.rows.length
        return torch.cat([self.rows.x.index_select(0, some), right_channels(length[some])], 1), length[some, None]

    def _between(self, some: Tensor, right: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """`[m, n]`: the least and the most that cosines of `some` tokens `[n]` to others, given by ``_right``, may be."""
        mine, low = self.rows.length[some], self.low[some]
        left = torch.cat([self.rows.x.index_select(0, some), left_channels(-low * mine)], 1)
        above = (right @ left.mT).float().div_(length).div_(mine)
        off = above.abs().mul_(ROUNDED).add_(SLACK)
        above.add_(low)
        return above - off, off.add_(above)

    def _bring_up(self, tokens: np.ndarray) -> None:
        """Compare some tokens with all that are chosen."""
        start, count = int(self.seen[tokens].min()), len(self.order)
        right, length = self._right(np.array(self.order[start:]))
        high = torch.from_numpy(self.high[start:count])
        for part in torch.from_numpy(tokens).split(self.rows.chunk):
            least, most = self._between(part, right, length)
            high.index_copy_(1, part, most)
            self.low[part] = torch.maximum(self.low[part], least.amax(0))
        self.seen[tokens] = count

    def _choose_among(self, pool: np.ndarray, bound: float, rival: int) -> None:
        """Choose of the `pool` (ascending, up to date) while its best beats the `bound`, which `rival` has."""
        start, some = len(self.order), torch.from_numpy(pool)
        low, high = self.low[some].numpy(), np.maximum(self.known[pool], self.high[:start, pool].max(0))
        least, most = (part.numpy() for part in self._between(some, *self._right(pool)))
        share, bar = self.share[pool], self.bar[pool]
        ahead = min(AHEAD, len(pool))
        while len(self.order) < self.k:
            upper = share * (1 - low) + bar
            place = int(upper.argmax())
            if upper[place] < bound or upper[place] <= LAST / 2:
                break
            lower = share[place] * (1 - high[place])
            if lower <= bound or np.count_nonzero(upper >= lower) > 1:
                may = upper >= lower
                if np.count_nonzero(may) < ahead:  # others will be asked for soon
                    may = upper >= np.partition(upper, len(pool) - ahead)[-ahead]
                unsure = (may & (high > low) & (bar > LAST / 2)).nonzero()[0]
                if len(unsure):
                    low[unsure] = high[unsure] = self._exact(pool[unsure], low[unsure])
                    upper = share * (1 - low) + bar
                    place = int(upper.argmax())
                if upper[place] < bound or (upper[place] == bound and pool[place] > rival):
                    break
            self.high[len(self.order), pool] = most[place]
            self._take(int(pool[place]))
            bar[place] = -np.inf
            np.maximum(low, least[place], out=low)
            np.maximum(high, most[place], out=high)
        self.low[some] = torch.from_numpy(low)
        self.seen[pool] = len(self.order)

    def _exact(self, tokens: np.ndarray, low: np.ndarray) -> np.ndarray:
        """Largest cosine of `tokens` to those chosen, which is `low` at least, in float32."""
        count, chosen = len(self.order), np.array(self.order)
        which, of = (self.high[:count, tokens] >= low).nonzero()
        found = np.full((count, len(tokens)), NONE, dtype=np.float32)
        if len(which) > FRUITFUL * len(tokens):
            unit = self.rows.scaled(torch.from_numpy(chosen))
            found = self.rows.cosines(torch.from_numpy(tokens), unit).T.numpy()
            self.high[:count, tokens] = NONE
        else:
            found[which, of] = exact_cosines(self.rows, tokens[of], chosen[which])
            self.high[which, tokens[of]] = NONE
        self.known[tokens] = np.maximum(self.known[tokens], found.max(0))
        return self.known[tokens]


def _largest(score: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` largest scores that are not -inf, in any order."""
    if count < len(score):
        top = np.argpartition(score, len(score) - count)[-count:]
    else:
        top = np.arange(len(score))
    return top[score[top] > -np.inf]
