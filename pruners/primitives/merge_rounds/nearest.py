"""The most similar token of each, on the CPU: by float32, or by products in bfloat16 first where they are quicker."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import multiplies_bfloat16
from .products import BLOCK, GROUP, Products, Sums

HALF_STEP = 2.0**-8  # of bfloat16, as a share of a number
WORTH_ROUNDING = 2**26  # multiplications from which products in bfloat16 pay, where the CPU has them

SAMPLE = 8, 64  # tokens of A and of B that tell what to expect


class Nearest(NamedTuple):
    """Of each token of A.

    Attributes
    ----------
    score, second : Tensor
        `[A]` float64: its largest cosine with a token of B, and the next one or less if that is surely not close.
    best : Tensor
        `[A]` int64: where in B the largest is, the lowest of equal ones.
    """

    score: Tensor
    second: Tensor
    best: Tensor


def nearest(products: Products, odd: Tensor, error: float, ranked: bool) -> Nearest:
    """As float32 tells it; of `odd [B]` bool those that are False have the cosine -1."""
    count = len(products.scale) - len(odd)
    score, second = torch.empty(2, count, dtype=torch.float64)
    made = Nearest(score, second, torch.empty(count, dtype=torch.int64))
    rounded = Rounded(products, odd) if isinstance(products, Sums) and worth_rounding(products.table) else None
    for start in range(0, count, 2 * BLOCK):
        rows = slice(start, min(start + 2 * BLOCK, count))
        if rounded is not None:
            found = rounded.nearest(rows, error, ranked)
        else:
            best, largest, next_one = two_largest(cosines(products, slice(2 * rows.start, 2 * rows.stop - 1, 2), odd))
            found = Nearest(largest, next_one, best)
        for into, part in zip(made, found, strict=True):
            into[rows] = part
    return made


def worth_rounding(x: Tensor) -> bool:
    """Whether candidates by products in bfloat16 are the quicker way; other vectors must be rounded first."""
    work = len(x) * x.numel() // 4
    return multiplies_bfloat16() and work > (1 if x.dtype == torch.bfloat16 else 2) * WORTH_ROUNDING


def cosines(products: Products, rows: slice | Tensor, odd: Tensor) -> Tensor:
    """Cosines of some tokens with those at odd places; -1 with what is not finite."""
    found = products.cosines(rows)
    return found if odd.all() else found.masked_fill_(~odd, -1.0)


def two_largest(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the largest of each row is, it, and the next; `found` is changed."""
    best = torch.from_numpy(found.numpy().argmax(1))  # torch's takes ten times as long
    score = found.gather(1, best[:, None])[:, 0]
    return best, score, found.scatter_(1, best[:, None], -2.0).amax(1)


class Rounded:
    """Products in bfloat16, which CPUs with instructions for it make in half of the time: a token's candidates.

    Which of them is the most similar is told in float32, of a group of tokens at a time and all of their candidates.
    Products are summed up in float32, and what is rounded in the end is not the cosine but how much it is above or
    below the expected one, which is small where it matters: further channels of the vectors take that off.
    """

    def __init__(self, sums: Sums, odd: Tensor):
        self.sums, self.usable, self.all_usable = sums, odd, bool(odd.all())
        scale = sums.scale[1::2]
        self.scale = torch.where(scale > 0, scale, 1.0)
        near, off = self._rounded(slice(1, None, 2))
        self.off = (off * scale).max()
        self.odd = torch.cat([near, _in_parts(1 / self.scale)], 1)
        # cosine of a token with its most similar one: some with some, until the first ones are known
        count = len(sums.scale) // 2
        rows, columns = (torch.arange(0, count, max(1, count // n)) for n in SAMPLE)
        self.expected = float(sums.among(2 * rows, 2 * columns + 1).amax(1).median())

    def _rounded(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Some of the vectors, and how far that moves each."""
        x = self.sums.table[rows]
        near = x.bfloat16()
        if near.dtype == x.dtype:
            return near, torch.zeros(len(x))
        both = zip(near.split(BLOCK), x.split(BLOCK), strict=True)
        return near, torch.cat([torch.linalg.vector_norm(a.float().sub_(b), dim=-1) for a, b in both])

    def above_expected(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines of some tokens of A with B less a number of each row, `[rows, B]`; that number; and rounding of A."""
        scale = self.sums.scale[2 * rows.start : 2 * rows.stop - 1 : 2]
        even, off = self._rounded(slice(2 * rows.start, 2 * rows.stop - 1, 2))
        less = torch.where(scale > 0, self.expected / scale, 0.0).bfloat16()
        even = torch.cat([even, -less[:, None].expand(-1, self.odd.shape[1] - even.shape[1])], 1)
        found = (even @ self.odd.T).float().mul_(self.scale).mul_(scale[:, None])
        return found, less.float() * scale, off * scale

    def nearest(self, rows: slice, error: float, ranked: bool) -> Nearest:
        """Of some tokens of A; scores are those of float32 only if they are to be ``ranked``."""
        at = 2 * torch.arange(rows.start, rows.stop)
        found, less, off = self.above_expected(rows)
        if not self.all_usable:
            found = torch.where(self.usable, found, (-1 - less)[:, None])
        best = torch.from_numpy(found.numpy().argmax(1))
        top = found.gather(1, best[:, None])[:, 0]
        # how far a product may be off: either vector's rounding, and the product's own
        off = off * (1 + HALF_STEP) + self.off
        off += HALF_STEP * (top.abs() + off) * (1 + 2 * HALF_STEP) + 2 * error
        least = (top - 2 * off)[:, None]
        others = found.scatter_(1, best[:, None], -5.0).amax(1)
        found.scatter_(1, best[:, None], top[:, None])
        score, second = top + less, torch.full_like(top, -2.0)
        self.expected = float(score.median())
        unsure = (others >= least[:, 0]).nonzero()[:, 0]
        if ranked:
            score = torch.where(self.usable[best], self.sums.pairs(at, 2 * best + 1), -1.0)
        for some in unsure.split(GROUP) if len(unsure) else ():
            above = found.index_select(0, some).sub_(least[some])
            columns = (above.amax(0) >= 0).nonzero()[:, 0]
            near = self.sums.among(at[some], 2 * columns + 1)
            near.masked_fill_(~self.usable[columns], -1.0).masked_fill_(above.index_select(1, columns) < 0, -2.0)
            place, score[some], second[some] = two_largest(near)
            best[some] = columns[place]
        return Nearest(score, second, best)


def _in_parts(x: Tensor) -> Tensor:
    """`x [n]` float32 as a sum of three numbers in bfloat16, `[n, 3]`."""
    parts = []
    for _ in range(3):
        parts.append(x.bfloat16())
        x = x - parts[-1].float()
    return torch.stack(parts, 1)
