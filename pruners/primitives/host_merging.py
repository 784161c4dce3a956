"""The engine of ``merge_rounds`` on the CPU: float32 first, float64 where float32 can't tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .merging import channel_blocks
from .precision import settled

BLOCK = 256  # tokens of A at a time
ENTRIES = 2**20  # of an exact matrix at a time
ROUNDING = 2e-6  # more than a float32 product of unit vectors is off by (seen: below 5e-7 at 4,096 channels)
MOST_CANCELLED = 30.0  # times a merged vector may be shorter than its parts; beyond it float32 has no use
LONGEST = 1e15  # a token whose products stay far from overflowing
SHORTEST = 1e-5  # length of a token as a share of the longest one (or of 1): below it squares may vanish


class Products(Protocol):
    """Inner products of merged tokens, in float32."""

    def lengths(self) -> Tensor:
        """`[M]`."""

    def of(self, rows: slice | Tensor) -> Tensor:
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

    def lengths(self) -> Tensor:
        """As ``Products`` says."""
        return self.table.diagonal()[: self.count].clamp(min=0).sqrt()

    def of(self, rows: slice | Tensor) -> Tensor:
        """As ``Products`` says."""
        return self.table[rows, 1 : self.count : 2]

    def merge(self, source: Tensor, target: Tensor, left: Tensor) -> None:
        """As ``Products`` says."""
        table = self.table[: self.count, : self.count]
        table.index_add_(0, target, table[source])
        self.count = len(left)
        for i in range(0, len(left), BLOCK):  # in place as in ``Sums``
            row = table[left[i : i + BLOCK]]
            row.index_add_(1, target, row[:, source])
            table[i : i + len(row), : len(left)] = row[:, left]


class Sums:
    """The merged vectors themselves, `[M, D]`: one product a round."""

    def __init__(self, x: Tensor, weight: Tensor):
        plain = bool((weight == 1).all())
        self.table, self.given = (x if plain else x * weight[:, None]), plain

    def lengths(self) -> Tensor:
        """As ``Products`` says."""
        return torch.linalg.vector_norm(self.table, dim=-1, dtype=torch.float32)

    def of(self, rows: slice | Tensor) -> Tensor:
        """As ``Products`` says."""
        return self.table[rows].float() @ self.table[1::2].float().T

    def merge(self, source: Tensor, target: Tensor, left: Tensor) -> None:
        """As ``Products`` says."""
        count = len(left)
        if self.given:
            place = torch.empty(len(self.table), dtype=torch.int64).scatter_(0, left, torch.arange(count))
            made = self.table[left].float()
            self.table, self.given = made.index_add_(0, place[target], self.table[source].float()), False
            return
        self.table.index_add_(0, target, self.table[source])
        for i in range(0, count, BLOCK):  # rows only move up, so what is overwritten was read
            self.table[i : min(i + BLOCK, count)] = self.table[left[i : i + BLOCK]]
        self.table = self.table[:count]


def choose_on_host(x: Tensor, weight: Tensor, rounds: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """``merge_rounds`` of one row `x [n, D]` with `weight [n]`: column and owner; None where float32 has no use."""
    length = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    whole = length.isfinite()
    if not whole.all():
        if x[~whole].isfinite().all(-1).any():
            return None
        x = x.nan_to_num(0, 0, 0)
        length = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    longest, shortest = length.max().item(), torch.where(length > 0, length, float("inf")).min().item()
    if not (longest < LONGEST and shortest > SHORTEST * max(1.0, longest)):
        return None
    n, length = len(x), length * weight
    products: Products = Gram(x, weight) if _all_at_once(x, rounds) else Sums(x, weight)
    column = owner = torch.arange(n)
    for turn, r in enumerate(rounds, 1):
        merged = products.lengths()
        cancelled = torch.where(length > 0, length / merged, 1.0)
        if not cancelled.max() < MOST_CANCELLED:
            return None
        error = 2 * ROUNDING * max(1.0, cancelled.max().item()) ** 2
        scale = torch.where(length > 0, 1 / merged, 0.0)
        source, target = _pairs(products, scale, whole[column], error, r, (x, owner, weight))
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


def _pairs(
    products: Products, scale: Tensor, usable: Tensor, error: float, r: int, origin: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The tokens of A that merge and those of B that they merge into, as places in reading order."""
    even, odd = usable[::2], usable[1::2]
    score, second, best = torch.empty(3, len(even), dtype=torch.float64)
    best = best.long()
    for start in range(0, len(even), BLOCK):
        rows = slice(start, min(start + BLOCK, len(even)))
        found = _cosines(products, slice(2 * rows.start, 2 * rows.stop - 1, 2), scale, odd)
        score[rows], best[rows] = found.max(1)
        found.scatter_(1, best[rows, None], -2.0)
        second[rows] = found.amax(1)
    # a token that is not finite is as near to the first as to any other
    score, second, best = score.where(even, -1.0), second.where(even, -2.0), best.where(even, 0)
    least = score.sort(descending=True).values[r - 1]
    close = (score - least).abs() <= 2 * error
    unsure = even & (score >= least - 2 * error) & (score - second <= 2 * error)
    if close.sum() > 1:
        unsure |= close & even
    if unsure.any() and odd.any():
        unsure_rows = unsure.nonzero()[:, 0]
        score[unsure_rows], best[unsure_rows] = _settled(products, scale, usable, unsure_rows, 2 * error, origin)
    chosen = score.sort(descending=True, stable=True).indices[:r]
    return 2 * chosen, 2 * best[chosen] + 1


def _cosines(products: Products, rows: slice | Tensor, scale: Tensor, odd: Tensor) -> Tensor:
    """Cosines of some tokens with those at odd places; -1 with what is not finite."""
    found = products.of(rows) * scale[1::2]
    found *= scale[rows, None]
    return found if odd.all() else found.masked_fill_(~odd, -1.0)


def _settled(
    products: Products, scale: Tensor, usable: Tensor, rows: Tensor, error: float, origin: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Score and best of the `rows` of A, exactly: of the columns within `error` of the largest."""
    scores, bests = [], []
    for some in rows.split(max(1, ENTRIES // max(1, len(usable) // 2))):
        near = _cosines(products, 2 * some, scale, usable[1::2])
        may = near >= near.amax(1, keepdim=True) - error
        columns = may.any(0).nonzero()[:, 0]
        exact = _exact_cosines(2 * some, 2 * columns + 1, usable, *origin).masked_fill_(~may[:, columns], -2.0)
        scores.append(exact.amax(1))
        bests.append(columns[(exact == scores[-1][:, None]).to(torch.int8).argmax(1)])
    return torch.cat(scores), torch.cat(bests)


def _exact_cosines(rows: Tensor, columns: Tensor, usable: Tensor, x: Tensor, owner: Tensor, weight: Tensor) -> Tensor:
    """Cosines of merged tokens in float64 without rounding, `[rows, columns]`; -1 with what is not finite."""
    needed = torch.cat([rows, columns])
    slot = torch.full((len(usable),), -1)
    slot[needed] = torch.arange(len(needed))
    member = (slot[owner] >= 0).nonzero()[:, 0]
    mine, share = slot[owner[member]], weight[member, None].double()
    found = left = right = torch.zeros((), dtype=torch.float64)
    for c in channel_blocks(x.shape[-1], torch.float64):
        sums = torch.zeros(len(needed), c.stop - c.start, dtype=torch.float64)[:, : x[:1, c].shape[1]]
        sums = sums.index_add(0, mine, x[member, c].double() * share)
        a, b = sums[: len(rows)], sums[len(rows) :]
        found = found + a @ b.T
        left, right = left + a.square().sum(1), right + b.square().sum(1)
    found = settled(found / (left.sqrt()[:, None] * right.sqrt()).clamp_(min=1e-12))
    return found.masked_fill_(~usable[columns], -1.0)
