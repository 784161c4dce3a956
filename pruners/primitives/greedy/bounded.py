"""Max-min on the CPU by products in bfloat16, which are bounds of the cosines: float32 only where they can't tell.

For features in bfloat16, whose products CPUs with instructions for it make in half of the time, summed up in float32.
Only what comes out is rounded to bfloat16, and that is not the cosine but how much it is above or below the expected
one, which is small where it matters: further channels of the vectors take that off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..precision import multiplies_bfloat16
from .loop import LAST
from .products import HALF_STEP, ROUNDED, SLACK, bears_products, exact_cosines, left_channels, right_channels
from .rows import Rows

MOST = 1024  # tokens of a picture
STRIP = 64  # tokens multiplied at a time with those from them on
SAMPLE = 8, 32  # tokens that tell, and with how many others, what to expect
STARTED_FROM = 0.2  # expected cosine; where the first token is given and others are less alike, few need be looked at
OUT = 8.0  # above every distance


def bounded(rows: Rows, use: Tensor, started: bool) -> Bounds | None:
    """Bounds of the distances between the tokens `use [N]`; None where they are no safe or no quicker way.

    With a first token (`started`) those that can't be next are left out at less cost where tokens are not alike.
    """
    count = len(rows.x)
    if rows.x.dtype != torch.bfloat16 or not 1 < count <= MOST or not multiplies_bfloat16():
        return None
    if not bears_products(rows):
        return None
    # cosine of a token that is far from others, which is in question, with its nearest one: some with some
    some, others = (torch.arange(0, count, max(1, count // n)) for n in SAMPLE)
    found = (rows.x[some] @ rows.x[others].T).float().div_(rows.length[some, None]).div_(rows.length[others])
    expected = float(found.masked_fill_(some[:, None] == others, -1).amax(1).min())
    if (started and (expected < STARTED_FROM or count > rows.x.shape[1])) or not bool(use.any()):
        return None
    return Bounds(rows, use, expected)


class Bounds:
    """All cosines of a picture's tokens, each known to lie between two numbers.

    Parameters
    ----------
    rows : Rows
        The tokens, as ``bounded`` asks for them.
    use : Tensor
        `[N]` bool, those that are compared.
    expected : float
        A cosine near to those in question.

    Attributes
    ----------
    far : ndarray
        `[N, N]` float32, the most that distances, 1 - cosine, may be; ``OUT`` for a token from itself and, as columns,
        from what is not compared.
    """

    def __init__(self, rows: Rows, use: Tensor, expected: float):
        self.rows, self.expected = rows, expected
        self.middle = 1 - self.expected + SLACK  # what a distance that is as expected may be
        above = self._products()
        scale = 1 / rows.length
        above.mul_(scale).mul_(scale[:, None])
        far = above.abs().mul_(HALF_STEP).sub_(above).add_(self.middle).fill_diagonal_(OUT)
        if not bool(use.all()):
            far.masked_fill_(~use, OUT)
        self.far = far.numpy()

    def _products(self) -> Tensor:
        """`[N, N]`, of the vectors less what is expected of their lengths."""
        x = self.rows.x
        right = torch.cat([x, right_channels(self.rows.length)], 1)
        less = left_channels(-self.expected * self.rows.length)
        made = torch.empty(len(x), len(x))
        for start in range(0, len(x), STRIP):
            stop = min(start + STRIP, len(x))
            left = torch.cat([x[start:stop], less[start:stop]], 1)
            block = right[start:] @ left.mT
            made[start:, start:stop] = block
            made[start:stop, start:] = block.mT
        return made

    def near(self, far: Any) -> Any:
        """The least that distances may be of which the most is `far`; also of the least of some distances."""
        return far - 2 * (abs(far - self.middle) * ROUNDED + SLACK)

    def exact(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Distances of some tokens from some others, one to one, in float32; the same in either order."""
        return 1 - exact_cosines(self.rows, one, other)

    def nearest(self, some: np.ndarray, others: np.ndarray, least: np.ndarray) -> np.ndarray:
        """Least distance of `some` tokens from `others`, in float32, if it may be up to `least`; else ``OUT``."""
        off = 2 * (abs(least - self.middle) * ROUNDED + SLACK) / (1 - 2 * ROUNDED)  # ``near`` the other way round
        i, j = (self.far[some[:, None], others] <= (least + off)[:, None]).nonzero()
        found = np.full((len(some), len(others)), OUT, dtype=np.float32)
        if len(i):
            found[i, j] = self.exact(some[i], others[j])
        return found.min(1)

    def most_isolated(self, use: Tensor) -> int:
        """Column of the token whose least distance from another one is largest, the lowest on ties."""
        used, far = use.numpy().nonzero()[0], self.far.min(1)
        may = used[far[used] >= self.near(far[used]).max()]
        if len(may) == 1:
            return int(may[0])
        return int(may[self.nearest(may, used, far[may]).argmax()])


def choose_by_bounds(bounds: Bounds, share: Tensor, bar: Tensor, first: int, k: int) -> Tensor:
    """Columns of `k` tokens in the order chosen, ``share * (1 - largest cosine to a chosen one)``: see ``choose``."""
    order, ready, weight = [first], bar.numpy(), share.numpy()
    known = np.full(len(weight), 2, dtype=np.float32)  # distance from the chosen tokens, of those looked at again
    far = known.copy()  # the most it may be
    most = np.empty_like(far)
    while len(order) < k:
        ready[order[-1]] = -np.inf
        np.minimum(far, bounds.far[order[-1]], out=far)
        np.multiply(far, weight, out=most)
        np.add(most, ready, out=most)
        best = int(most.argmax())
        if most[best] <= LAST / 2:
            order += (ready > -np.inf).nonzero()[0][: k - len(order)].tolist()
            break
        may = (most >= weight[best] * bounds.near(far[best])).nonzero()[0]
        if len(may) > 1:
            chosen = np.array(order)
            rest = bounds.far[may[:, None], chosen].min(1)  # the most that it may be to what was not looked at
            least = weight[may] * np.minimum(known[may], bounds.near(rest))
            unsure = may[(most[may] >= least.max()) & (most[may] > least)]
            if len(unsure) > 0:
                found = bounds.nearest(unsure, chosen, far[unsure])
                far[unsure] = known[unsure] = np.minimum(known[unsure], found)
                bounds.far[unsure[:, None], chosen] = OUT
            best = int((ready[may] + weight[may] * far[may]).argmax())
            best = int(may[best])
        order.append(best)
    return torch.tensor(order + [0] * (k - len(order)))
