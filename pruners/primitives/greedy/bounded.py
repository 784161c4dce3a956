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
    above : ndarray
        `[N, N]` float32, how much a cosine is above the expected one, as rounded; ``OUT`` for a token with itself or
        with what is not compared.
    """

    def __init__(self, rows: Rows, use: Tensor):
        self.rows = rows
        count = len(rows.x)
        some, others = (torch.arange(0, count, max(1, count // n)) for n in SAMPLE)
        found = rows.cosines(others, rows.scaled(some)).masked_fill_(others[:, None] == some, -1)
        self.expected = float(found.amax(0).median())
        self.slack = SLACK
        above = self._products()
        scale = 1 / rows.length
        above.mul_(scale).mul_(scale[:, None]).fill_diagonal_(OUT)
        if not bool(use.all()):
            above.masked_fill_(~use, OUT)
        self.above = above.numpy()

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

    def between(self, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest cosine that `above` may stand for, less the expected one."""
        off = np.abs(above) * np.float32(HALF_STEP) + np.float32(self.slack)
        return above - off, above + off

    def exact(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Cosines of some tokens with some others, one to one, in float32; the same for equal vectors in any order."""
        a, b = torch.from_numpy(one), torch.from_numpy(other)
        x, length, made = self.rows.x, self.rows.length, []
        for i, j in zip(a.split(GROUP), b.split(GROUP), strict=True):
            made.append((x.index_select(0, i).float() * x.index_select(0, j).float()).sum(1))
        return alike(torch.cat(made).div_(length[a] * length[b])).numpy()

    def closest(self, some: np.ndarray, others: np.ndarray, least: np.ndarray, forget: bool = False) -> np.ndarray:
        """Largest cosine of `some` tokens with `others`, -inf where none may be above `least [some]`."""
        above = self.above[np.ix_(some, others)]
        i, j = np.nonzero(self.between(above)[1] + self.expected >= least[:, None])
        made = np.full(len(some), -np.inf, dtype=np.float32)
        if len(i):
            np.maximum.at(made, i, self.exact(some[i], others[j]))
            if forget:
                self.above[some[i], others[j]] = OUT
        return made

    def most_isolated(self, use: Tensor) -> int:
        """Column of the token whose largest cosine to another one is least, the lowest on ties."""
        low, high = self.between(self.above.max(1))
        used = use.numpy()
        may = np.nonzero(used & (low <= high[used].min()))[0]
        if len(may) == 1:
            return int(may[0])
        near = self.closest(may, np.arange(len(used)), low[may] + self.expected)
        return int(may[near.argmin()])


def choose_by_bounds(bounds: Bounds, share: Tensor, bar: Tensor, first: int, k: int) -> Tensor:
    """Columns of `k` tokens in the order chosen, ``share * (1 - largest cosine to a chosen one)``: see ``choose``."""
    ready, weight, expected = bar.numpy().copy(), share.numpy(), np.float32(bounds.expected)
    order = [first]
    low = np.full(len(weight), -1, dtype=np.float32)
    high = low.copy()
    while len(order) < k:
        ready[order[-1]] = -np.inf
        new = bounds.between(bounds.above[order[-1]])
        np.maximum(low, new[0] + expected, out=low)
        np.maximum(high, new[1] + expected, out=high)
        most, least = ready + weight * (1 - low), ready + weight * (1 - high)
        best = least.max()
        if best <= LAST / 2:
            order += np.nonzero(ready > -np.inf)[0][: k - len(order)].tolist()
            break
        may = np.nonzero(most >= best)[0]
        if len(may) > 1:
            unsure = may[most[may] != least[may]]
            if len(unsure):
                near = bounds.closest(unsure, np.array(order), low[unsure], forget=True)
                low[unsure] = high[unsure] = np.maximum(near, low[unsure])
            place = int((ready[may] + weight[may] * (1 - low[may])).argmax())
        else:
            place = 0
        order.append(int(may[place]))
    return torch.tensor(order + [0] * (k - len(order)))
