"""Max-min on the CPU by products in bfloat16, some tokens at a time, which are bounds: float32 where they can't tell.

For pictures too large for ``bounded``. As in ``loop``, scores only fall, so an old upper bound is one, and only tokens
that may be next are compared with those chosen since. What comes out of a product in bfloat16 is rounded, and so it is
made to be how much closer than known a token is.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..precision import multiplies_bfloat16
from .loop import LAST
from .products import ROUNDED, SLACK, bears_products, exact_cosines, left_channels, right_channels
from .rows import Rows

LEAST = 1024, 512  # tokens above and width from: what is held beside the features is little of them
FEW = 192  # tokens that are compared together at least, and chosen of at most
PRODUCTS = 2**26  # of two numbers, made at a time where that is more, but for one in so many of the tokens at most
PART = 4
AHEAD = 12  # tokens made exact together: those that come next will be asked for soon
BY_INDEX = 2.0**-50  # off a score, so that of equal ones the first are taken
NONE = -2.0  # below every cosine


def lazily_bounded(rows: Rows, share: Tensor, bar: Tensor, first: int, k: int) -> Tensor | None:
    """Columns of `k` tokens in the order chosen, ``share * (1 - largest cosine to a chosen one)``: see ``loop.choose``.

    None where this is no safe or no quicker way, or holds more than the features.
    """
    (count, width), (above, least) = rows.x.shape, LEAST
    if rows.x.dtype != torch.bfloat16 or count <= above or width < least or 2 * k > width:
        return None
    if not (multiplies_bfloat16() and bears_products(rows)):
        return None
    choice = _Choice(rows, share, bar, first, k)
    while len(choice.order) < k and choice.advance():
        pass
    return torch.tensor(choice.order + [0] * (k - len(choice.order)))


class _Choice:
    """A choice under way.

    Attributes
    ----------
    seen : ndarray
        `[N]`, how many of the chosen tokens a token has been compared with.
    low : Tensor
        `[N]`, what its largest cosine to one of those is at least.
    high : ndarray
        `[k, N]`, what its cosine to each of those is at most; ``NONE`` where that has been made in float32.
    known : ndarray
        `[N]`, the largest cosine that has been made in float32.
    """

    def __init__(self, rows: Rows, share: Tensor, bar: Tensor, first: int, k: int):
        self.rows, self.share, self.bar, self.k = rows, share.numpy(), bar.numpy(), k
        self.order: list[int] = []
        self._take(first)
        self.seen = np.ones(len(bar), dtype=np.int64)
        self.low = rows.all_cosines(rows.scaled(torch.tensor(self.order)))[:, 0]
        self.known = self.low.clone().numpy()
        self.high = np.empty((k, len(bar)), dtype=np.float32)
        self.high[0] = NONE

    def _take(self, column: int) -> None:
        self.order.append(column)
        self.bar[column] = -np.inf

    def advance(self) -> bool:
        """Compare some tokens with what was chosen, or choose what is certain; False when there is nothing left."""
        score, count = self.share * (1 - self.low.numpy()) + self.bar, len(self.order)
        best = int(score.argmax())
        if score[best] <= LAST / 2:
            self.order += (score > -np.inf).nonzero()[0][: self.k - count].tolist()
            return False
        stale = self.seen < count
        if stale[best]:
            most = min(len(score) // PART, PRODUCTS // (count * self.rows.x.shape[1]))
            top = _first(score, best, max(FEW, most))
            self._compare(top[stale[top]])
            return True
        pool = _first(np.where(stale, -np.inf, score), best, FEW)
        outside = score.copy()
        outside[pool] = -np.inf
        rival = int(outside.argmax())
        self._choose(np.sort(pool[score[pool] >= outside[rival]]), float(outside[rival]), rival)
        return True

    def _compare(self, tokens: np.ndarray) -> None:
        start, count = int(self.seen[tokens].min()), len(self.order)
        chosen, high = self._right(np.array(self.order[start:])), torch.from_numpy(self.high[start:count])
        for part in torch.from_numpy(tokens).split(self.rows.chunk):
            least, most = self._between(part, *chosen)
            high.index_copy_(1, part, most)
            self.low[part] = torch.maximum(self.low[part], least.amax(0))
        self.seen[tokens] = count

    def _right(self, tokens: np.ndarray) -> tuple[Tensor, Tensor]:
        """What ``_between`` needs of the other tokens `[m]`: their vectors and lengths."""
        some, length = torch.from_numpy(tokens), self.rows.length
        return torch.cat([self.rows.x.index_select(0, some), right_channels(length[some])], 1), length[some, None]

    def _between(self, some: Tensor, right: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the most that cosines of `some` tokens `[n]` to others may be, each `[m, n]`."""
        mine, low = self.rows.length[some], self.low[some]
        left = torch.cat([self.rows.x.index_select(0, some), left_channels(-low * mine)], 1)
        made = (right @ left.mT).float().div_(length).div_(mine)  # above `low`
        off = made.abs().mul_(ROUNDED).add_(SLACK)
        made.add_(low)
        return made - off, off.add_(made).clamp_(max=1)  # nor are cosines of 1 looked at again

    def _choose(self, pool: np.ndarray, bound: float, rival: int) -> None:
        """Choose of the `pool` (ascending, compared with all) while its best beats the `bound`, which `rival` has."""
        count, some = len(self.order), torch.from_numpy(pool)
        low, high = self.low[some].numpy(), np.maximum(self.known[pool], self.high[:count, pool].max(0))
        least, most = (bounds.numpy() for bounds in self._between(some, *self._right(pool)))
        share, bar, ahead = self.share[pool], self.bar[pool], min(AHEAD, len(pool))
        while len(self.order) < self.k:
            score = share * (1 - low) + bar
            place = int(score.argmax())
            if score[place] < bound or score[place] <= LAST / 2:
                break
            certain = share[place] * (1 - high[place])
            may = score >= certain
            together = np.count_nonzero(may)
            if certain <= bound or together > 1:
                if together < ahead:
                    may = score >= np.partition(score, len(pool) - ahead)[-ahead]
                unsure = (may & (high > low) & (bar > LAST / 2)).nonzero()[0]
                if len(unsure):
                    low[unsure] = high[unsure] = self._exact(pool[unsure], low[unsure])
                    score = share * (1 - low) + bar
                    place = int(score.argmax())
                if score[place] < bound or (score[place] == bound and pool[place] > rival):
                    break
            self.high[len(self.order), pool] = most[place]
            self._take(int(pool[place]))
            bar[place] = -np.inf
            np.maximum(low, least[place], out=low)
            np.maximum(high, most[place], out=high)
        self.low[some] = torch.from_numpy(low)
        self.seen[pool] = len(self.order)

    def _exact(self, tokens: np.ndarray, low: np.ndarray) -> np.ndarray:
        """The largest cosine of each of `tokens` to one chosen, which is `low` at least, in float32."""
        chosen = np.array(self.order)
        which, of = (self.high[: len(chosen), tokens] >= low).nonzero()
        found = np.full((len(chosen), len(tokens)), NONE, dtype=np.float32)
        found[which, of] = exact_cosines(self.rows, tokens[of], chosen[which])
        self.high[which, tokens[of]] = NONE
        self.known[tokens] = np.maximum(self.known[tokens], found.max(0))
        return self.known[tokens]


def _first(score: np.ndarray, best: int, count: int) -> np.ndarray:
    """Places of the `count` largest scores, of which `best` is one, in any order; those that are -inf left out."""
    fine = score - BY_INDEX * np.arange(len(score))
    fine[best] = np.inf  # whatever rounding did
    top = np.argpartition(fine, len(fine) - count)[-count:] if count < len(fine) else np.arange(len(fine))
    return top[fine[top] > -np.inf]
