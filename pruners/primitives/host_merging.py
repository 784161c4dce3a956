"""The engine of ``merge_rounds`` on the CPU: float32 first, float64 where float32 can't tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .merging import channel_blocks
from .precision import multiplies_bfloat16, settled, vector_lengths

BLOCK = 256  # tokens of A at a time
GROUP = 64  # of those that are looked at again: near tokens of a picture have their candidates in common
ENTRIES = 2**20  # of an exact matrix at a time
ROUNDING = 2e-6  # more than a float32 product of unit vectors is off by (seen: below 5e-7 at 4,096 channels)
HALF_STEP = 2.0**-8  # of bfloat16, as a share of a number
WORTH_ROUNDING = 2**26  # multiplications from which products in bfloat16 pay, where the CPU has them
MOST_CANCELLED = 30.0  # times a merged vector may be shorter than its parts; beyond it float32 has no use
LONGEST = 1e15  # a token whose products stay far from overflowing
SHORTEST = 1e-5  # length of a token as a share of the longest one (or of 1): below it squares may vanish


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


def choose_on_host(x: Tensor, weight: Tensor, rounds: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """``merge_rounds`` of one row `x [n, D]` with `weight [n]`: column and owner; None where float32 has no use."""
    length = vector_lengths(x)
    whole = length.isfinite()
    if not whole.all():
        if x[~whole].isfinite().all(-1).any():
            return None
        x = x.nan_to_num(0, 0, 0)
        length = vector_lengths(x)
    longest, shortest = length.max().item(), torch.where(length > 0, length, float("inf")).min().item()
    if not (longest < LONGEST and shortest > SHORTEST * max(1.0, longest)):
        return None
    n, length = len(x), length * weight
    products: Products = Gram(x, weight) if _all_at_once(x, rounds) else Sums(x, weight)
    column = owner = torch.arange(n)
    for turn, r in enumerate(rounds, 1):
        merged = products.lengths() if turn > 1 else length
        cancelled = torch.where(length > 0, length / merged, 1.0)
        if not cancelled.max() < MOST_CANCELLED:
            return None
        error = 2 * ROUNDING * max(1.0, cancelled.max().item()) ** 2
        scale = torch.where(length > 0, 1 / merged, 0.0)
        products.scale_by(scale)
        source, target = _pairs(products, whole[column], error, r, (x, owner, weight))
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
    products: Products, usable: Tensor, error: float, r: int, origin: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The tokens of A that merge and those of B that they merge into, as places in reading order."""
    even, odd = usable[::2], usable[1::2]
    score, second, best = _nearest(products, odd, error, ranked=r < len(even))
    # a token that is not finite is as near to the first as to any other
    score, second, best = score.where(even, -1.0), second.where(even, -2.0), best.where(even, 0)
    least = score.sort(descending=True).values[r - 1]
    unsure = even & (score >= least - 2 * error) & (score - second <= 2 * error)
    if r < len(even):  # or all of them merge
        close = (score - least).abs() <= 2 * error
        if close.sum() > 1:
            unsure |= close & even
    if unsure.any() and odd.any():
        unsure_rows = unsure.nonzero()[:, 0]
        score[unsure_rows], best[unsure_rows] = _settled(products, usable, unsure_rows, 2 * error, origin)
    chosen = score.sort(descending=True, stable=True).indices[:r]
    return 2 * chosen, 2 * best[chosen] + 1


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


def _nearest(products: Products, odd: Tensor, error: float, ranked: bool) -> Nearest:
    """As float32 tells it."""
    count = len(products.scale) - len(odd)
    score, second = torch.empty(2, count, dtype=torch.float64)
    made = Nearest(score, second, torch.empty(count, dtype=torch.int64))
    rounded = Rounded(products) if isinstance(products, Sums) and _worth_rounding(products.table) else None
    for start in range(0, count, 2 * BLOCK):
        rows = slice(start, min(start + 2 * BLOCK, count))
        if rounded is not None:
            for into, found in zip(made, rounded.nearest(rows, odd, error, ranked), strict=True):
                into[rows] = found
            continue
        found = _cosines(products, slice(2 * rows.start, 2 * rows.stop - 1, 2), odd)
        made.best[rows], made.score[rows], made.second[rows] = _two_largest(found)
    return made


def _worth_rounding(x: Tensor) -> bool:
    """Whether candidates by products in bfloat16 are the quicker way; other vectors must be rounded first."""
    work = len(x) * x.numel() // 4
    return multiplies_bfloat16() and work > (1 if x.dtype == torch.bfloat16 else 2) * WORTH_ROUNDING


def _two_largest(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the largest of each row is, it, and the next; `found` is changed."""
    best = torch.from_numpy(found.numpy().argmax(1))  # torch's takes ten times as long
    score = found.gather(1, best[:, None])[:, 0]
    return best, score, found.scatter_(1, best[:, None], -2.0).amax(1)


class Rounded:
    """Products in bfloat16, which CPUs with instructions for it make in half of the time: a token's candidates.

    Which of them is the most similar is told in float32, of a group of tokens at a time and all of their candidates.
    """

    def __init__(self, sums: Sums):
        self.sums = sums
        self.odd, off = self._rounded(slice(1, None, 2))
        self.off = (off * sums.scale[1::2]).max()

    def _rounded(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Some of the vectors, and how far that moves each."""
        x = self.sums.table[rows]
        near = x.bfloat16()
        if near.dtype == x.dtype:
            return near, torch.zeros(len(x))
        both = zip(near.split(BLOCK), x.split(BLOCK), strict=True)
        return near, torch.cat([torch.linalg.vector_norm(a.float().sub_(b), dim=-1) for a, b in both])

    def nearest(self, rows: slice, odd: Tensor, error: float, ranked: bool) -> Nearest:
        """Of some tokens of A; scores are those of float32 only if they are to be ``ranked``."""
        scale, at = self.sums.scale, 2 * torch.arange(rows.start, rows.stop)
        even, off = self._rounded(slice(2 * rows.start, 2 * rows.stop - 1, 2))
        found = (even @ self.odd.T).float().mul_(scale[1::2]).mul_(scale[at, None])
        if not odd.all():
            found.masked_fill_(~odd, -1.0)
        best = torch.from_numpy(found.numpy().argmax(1))
        top = found.gather(1, best[:, None])[:, 0]
        # how far a product may be off: either vector's rounding, and the product's own
        off = off * scale[at] * (1 + HALF_STEP) + self.off
        off += HALF_STEP * (top.abs() + off) * (1 + 2 * HALF_STEP) + 2 * error
        least = (top - 2 * off)[:, None]
        others = found.scatter_(1, best[:, None], -3.0).amax(1)
        found.scatter_(1, best[:, None], top[:, None])
        score, second = top, torch.full_like(top, -2.0)
        unsure = (others >= least[:, 0]).nonzero()[:, 0]
        if ranked:
            score = torch.where(odd[best], self.sums.pairs(at, 2 * best + 1), -1.0)
        for some in unsure.split(GROUP) if len(unsure) else ():
            above = found.index_select(0, some).sub_(least[some])
            columns = (above.amax(0) >= 0).nonzero()[:, 0]
            near = self.sums.among(at[some], 2 * columns + 1)
            near.masked_fill_(~odd[columns], -1.0).masked_fill_(above.index_select(1, columns) < 0, -2.0)
            place, score[some], second[some] = _two_largest(near)
            best[some] = columns[place]
        return Nearest(score, second, best)


def _cosines(products: Products, rows: slice | Tensor, odd: Tensor) -> Tensor:
    """Cosines of some tokens with those at odd places; -1 with what is not finite."""
    found = products.cosines(rows)
    return found if odd.all() else found.masked_fill_(~odd, -1.0)


def _settled(
    products: Products, usable: Tensor, rows: Tensor, error: float, origin: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Score and best of the `rows` of A, exactly: of the columns within `error` of the largest."""
    scores, bests = [], []
    for some in rows.split(max(1, ENTRIES // max(1, len(usable) // 2))):
        near = _cosines(products, 2 * some, usable[1::2])
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
    few = len(member) * x.shape[-1] <= ENTRIES // 2
    for c in [slice(None)] if few else channel_blocks(x.shape[-1], torch.float64):
        part = x[:, c]
        sums = part.new_zeros(len(needed), part.shape[1], dtype=torch.float64)
        sums.index_add_(0, mine, part.index_select(0, member).double().mul_(share))
        a, b = sums[: len(rows)], sums[len(rows) :]
        found = found + a @ b.T
        left, right = left + a.square().sum(1), right + b.square().sum(1)
    found = settled(found / (left.sqrt()[:, None] * right.sqrt()).clamp_(min=1e-12))
    return found.masked_fill_(~usable[columns], -1.0)
