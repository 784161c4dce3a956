"""Max-min on the CPU by products in bfloat16, which are bounds of the cosines: float32 only where they can't tell.

For features in bfloat16, whose products CPUs with instructions for it make in half of the time, summed up in float32.
Only what comes out is rounded to bfloat16, and that is not the cosine but how much it is above or below the expected
one, which is small where it matters: further channels of the vectors take that off.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..precision import multiplies_bfloat16
from .loop import LAST
from .rows import Rows, alike

MOST = 1024  # tokens of a picture
LONGEST = 1e15  # a token whose products stay far from overflowing
SHORTEST = 1e-5  # length of a token as a share of the longest one (or of 1): below it products may vanish
HALF_STEP = 2.0**-8  # of bfloat16, as a share of a number
SLACK = 6e-6  # more than two products in float32 are off by, and what counts as equal
STRIP = 64  # tokens multiplied at a time with those from them on
SAMPLE = 8, 64  # tokens that tell, and with how many others, what to expect
GROUP = 64  # pairs made wide together
OUT = -8.0  # below every cosine and what may be taken off it
PARTS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 0, 1, 0)  # which parts of two lengths are multiplied: all but the tiny products


def has_bounds(rows: Rows) -> bool:
    """Whether cosines are bounded at less cost than they are made at, and safely."""
    if rows.x.dtype != torch.bfloat16 or not 1 < len(rows.x) <= MOST or not multiplies_bfloat16():
        return False
    longest = float(rows.length.max())
    return rows.all_usable and longest < LONGEST and float(rows.length.min()) > SHORTEST * max(1.0, longest)


class Bounds:
    """All cosines of a picture's tokens, each known to lie between two numbers.

    Parameters
    ----------
    rows : Rows
        The tokens, ``has_bounds``.
    use : Tensor
        `[N]` bool, those that are compared.

    Attributes
    ----------
    low, high : ndarray
        `[N, N]` float32, symmetric; ``OUT`` for a token with itself and, as columns, for what is not compared.
    """

    def __init__(self, rows: Rows, use: Tensor):
        self.rows = rows
        count = len(rows.x)
        some, others = (torch.arange(0, count, max(1, count // n)) for n in SAMPLE)
        found = rows.cosines(others, rows.scaled(some)).masked_fill_(others[:, None] == some, -1)
        self.expected = float(found.amax(0).median())
        above = self._products()
        scale = 1 / rows.length
        above.mul_(scale).mul_(scale[:, None])
        off = above.abs().mul_(HALF_STEP).add_(SLACK)
        above.add_(self.expected).fill_diagonal_(OUT)
        if not bool(use.all()):
            above.masked_fill_(~use, OUT)
        self.high = (above + off).numpy()
        self.low = above.sub_(off).numpy()

    def _products(self) -> Tensor:
        """`[N, N]`, of the vectors less what is expected of their lengths."""
        x, width = self.rows.x, self.rows.x.shape[1]
        length = self.rows.length * abs(self.expected) ** 0.5
        parts = []
        for _ in range(3):
            parts.append(length.bfloat16())
            length = length - parts[-1].float()
        taken = torch.stack(parts, 1)
        right = torch.cat([x, taken[:, PARTS[1]]], 1)
        less = taken[:, PARTS[0]] * (-1 if self.expected > 0 else 1)
        made = torch.empty(len(x), len(x))
        for start in range(0, len(x), STRIP):
            stop = min(start + STRIP, len(x))
            left = torch.cat([x[start:stop], less[start:stop]], 1)
            block = right[start:] @ left.mT
            made[start:, start:stop] = block
            made[start:stop, start:] = block.mT
        return made

    def exact(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of some tokens with some others, one to one, in float32; the same for equal vectors in any order."""
        made = []
        for start in range(0, len(one), GROUP):
            part = slice(start, start + GROUP)
            pair = torch.from_numpy(np.concatenate([one[part], other[part]]))
            wide, length = self.rows.x.index_select(0, pair).float(), self.rows.length.index_select(0, pair)
            half = len(pair) // 2
            made.append((wide[:half] * wide[half:]).sum(1).div_(length[:half] * length[half:]))
        return alike(made[0] if len(made) == 1 else torch.cat(made)).numpy()

    def nearest(self, some: np.ndarray, others: np.ndarray, least: np.ndarray) -> np.ndarray:
        """Largest cosine of `some` tokens with `others`, at least `least [some]`, in float32."""
        i, j = np.nonzero(self.high[some[:, None], others] >= least[:, None])
        if len(i):
            np.maximum.at(least, i, self.exact(some[i], others[j]))
        return least

    def most_isolated(self, use: Tensor) -> int:
        """Column of the token whose largest cosine to another one is least, the lowest on ties."""
        used, low = use.numpy().nonzero()[0], self.low.max(1)
        may = used[low[used] <= self.high.max(1)[used].min()]
        if len(may) == 1:
            return int(may[0])
        return int(may[self.nearest(may, used, low[may]).argmin()])


def choose_by_bounds(bounds: Bounds, share: Tensor, bar: Tensor, first: int, k: int) -> Tensor:
    """Columns of `k` tokens in the order chosen, ``share * (1 - largest cosine to a chosen one)``: see ``choose``."""
    order, ready, weight = [first], bar.numpy(), share.numpy()
    low = np.full(len(weight), -1, dtype=np.float32)  # of the largest cosine to a chosen token
    high, most = low.copy(), low.copy()
    while len(order) < k:
        ready[order[-1]] = -np.inf
        np.maximum(low, bounds.low[order[-1]], out=low)
        np.maximum(high, bounds.high[order[-1]], out=high)
        np.subtract(1, low, out=most)
        np.multiply(most, weight, out=most)
        np.add(most, ready, out=most)
        best = int(most.argmax())
        if most[best] <= LAST / 2:
            order += np.nonzero(ready > -np.inf)[0][: k - len(order)].tolist()
            break
        may = (most >= weight[best] * (1 - high[best])).nonzero()[0]
        if len(may) > 1:
            least = weight[may] * (1 - high[may])
            unsure = may[(most[may] >= least.max()) & (most[may] > least)]
            if len(unsure) > 0:
                low[unsure] = high[unsure] = bounds.nearest(unsure, np.array(order), low[unsure])
                bounds.high[unsure[:, None], order] = OUT  # known now
            best = int(may[(weight[may] * (1 - low[may])).argmax()])
        order.append(best)
    return torch.tensor(order + [0] * (k - len(order)))
