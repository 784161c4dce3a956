"""Cosines of merged tokens on the CPU, in float32: of all pairs at once, or a product a round; and without rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..merging import channel_blocks
from ..precision import settled, vector_lengths

BLOCK = 256  # tokens at a time
GROUP = 64  # of those that are looked at again: near tokens of a picture have their candidates in common
ENTRIES = 2**20  # of an exact matrix at a time


class Products(Protocol):
    """Cosines of merged tokens, in float32."""

    scale: Tensor
    """`[M]`, one over their lengths; 0 for a token without one."""

    def scale_by(self, scale: Tensor) -> None:
        """Set ``scale`` for the round."""

    def lengths(self) -> Tensor:
        """`[M]`."""

    def cosines(self, rows: slice | Tensor) -> Tensor:
        """Of some tokens with those at odd places, `[rows, M // 2]`."""

    def merge(self, source: Tensor, target: Tensor, left: Tensor) -> None:
        """Add tokens `source` to `target`; the tokens `left` stay."""


class Gram:
    """All products at once, `[N, N]`: those of merged tokens are sums of rows and columns."""

    def __init__(self, x: Tensor, weight: Tensor):
        n = len(x)
        self.table = table = torch.empty(n, n)
        self.count = n
        size = 2 * BLOCK
        for i in range(0, n, size):
            left = x[i : i + size].float()
            for j in range(i, n, size):
                part = left @ (left if i == j else x[j : j + size].float()).T
                table[i : i + size, j : j + size] = part
                if i != j:
                    table[j : j + size, i : i + size] = part.T
        if (weight != 1).any():
            table.mul_(weight).mul_(weight[:, None])

    def scale_by(self, scale: Tensor) -> None:
        """As ``Products`` says."""
        self.scale = scale

    def lengths(self) -> Tensor:
        """As ``Products`` says."""
        return self.table.diagonal()[: self.count].clamp(min=0).sqrt()

    def cosines(self, rows: slice | Tensor) -> Tensor:
        """As ``Products`` says."""
        return (self.table[rows, 1 : self.count : 2] * self.scale[1::2]).mul_(self.scale[rows, None])

    def merge(self, source: Tensor, target: Tensor, left: Tensor) -> None:
        """As ``Products`` says."""
        table = self.table[: self.count, : self.count]
        table.index_add_(0, target, table.index_select(0, source))
        self.count = len(left)
        for i in range(0, len(left), BLOCK):  # in place as in ``Sums``
            row = table.index_select(0, left[i : i + BLOCK])
            row.index_add_(1, target, row.index_select(1, source))
            table[i : i + len(row), : len(left)] = row.index_select(1, left)


class Sums:
    """The merged vectors themselves, `[M, D]`: one product a round."""

    def __init__(self, x: Tensor, weight: Tensor):
        plain = bool((weight == 1).all())
        self.table, self.given = (x if plain else x * weight[:, None]), plain
        self.odd: Tensor | None = None

    def scale_by(self, scale: Tensor) -> None:
        """As ``Products`` says."""
        self.scale, self.odd = scale, None

    def lengths(self) -> Tensor:
        """As ``Products`` says."""
        return vector_lengths(self.table)

    def cosines(self, rows: slice | Tensor) -> Tensor:
        """As ``Products`` says."""
        if self.odd is None:
            self.odd = self.table[1::2].float()  # a view where it is float32
        return (self._some(rows) @ self.odd.T).mul_(self.scale[1::2]).mul_(self.scale[rows, None])

    def among(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cosines of some tokens with some others, `[rows, columns]`."""
        some = self._some(rows)
        found = torch.cat([some @ self._some(part).T for part in columns.split(BLOCK)], 1)
        return found.mul_(self.scale[columns]).mul_(self.scale[rows, None])

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Cosines of some tokens with some others, one to one."""
        both = zip(rows.split(GROUP), columns.split(GROUP), strict=True)
        found = torch.cat([(self._some(a) * self._some(b)).sum(1) for a, b in both])
        return found.mul_(self.scale[rows]).mul_(self.scale[columns])

    def _some(self, rows: slice | Tensor) -> Tensor:
        found = self.table[rows] if isinstance(rows, slice) else self.table.index_select(0, rows)
        return found.float()

    def merge(self, source: Tensor, target: Tensor, left: Tensor) -> None:
        """As ``Products`` says."""
        count = len(left)
        self.odd = None
        if self.given:
            place = torch.empty(len(self.table), dtype=torch.int64).scatter_(0, left, torch.arange(count))
            made = self.table.index_select(0, left).float()
            for some, into in zip(source.split(BLOCK), place[target].split(BLOCK), strict=True):
                made.index_add_(0, into, self._some(some))
            self.table, self.given = made, False
            return
        self.table.index_add_(0, target, self.table.index_select(0, source))
        for i in range(0, count, BLOCK):  # rows only move up, so what is overwritten was read
            self.table[i : min(i + BLOCK, count)] = self.table.index_select(0, left[i : i + BLOCK])
        self.table = self.table[:count]


@dataclass(frozen=True)
class Exact:
    """Cosines of merged tokens in float64 without rounding, from the tokens themselves.

    Parameters
    ----------
    x, weight : Tensor
        `[N, D]`, finite, and `[N]`: the tokens, and how many each one stands for.
    owner : Tensor
        `[N]` int64: the merged token that each one belongs to.
    usable : Tensor
        `[M]` bool: the merged token resembles others.
    """

    x: Tensor
    weight: Tensor
    owner: Tensor
    usable: Tensor

    def cosines(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Of some merged tokens with others, `[rows, columns]`; -1 with one that is not usable."""
        needed = torch.cat([rows, columns])
        slot = torch.full((len(self.usable),), -1)
        slot[needed] = torch.arange(len(needed))
        member = (slot[self.owner] >= 0).nonzero()[:, 0]
        mine, share = slot[self.owner[member]], self.weight[member, None].double()
        found = left = right = torch.zeros((), dtype=torch.float64)
        width = self.x.shape[-1]
        few = len(member) * width <= ENTRIES // 2
        for c in [slice(None)] if few else channel_blocks(width, torch.float64):
            part = self.x[:, c]
            sums = part.new_zeros(len(needed), part.shape[1], dtype=torch.float64)
            sums.index_add_(0, mine, part.index_select(0, member).double().mul_(share))
            a, b = sums[: len(rows)], sums[len(rows) :]
            found = found + a @ b.T
            left, right = left + a.square().sum(1), right + b.square().sum(1)
        found = settled(found / (left.sqrt()[:, None] * right.sqrt()).clamp_(min=1e-12))
        return found.masked_fill_(~self.usable[columns], -1.0)
