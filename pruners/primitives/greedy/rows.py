"""The tokens of one picture: lengths, cosines of those that are asked for, and which are the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..merging import symmetric_products
from ..precision import vector_lengths
from .half_matrix import HalfMatrix

CHUNK = 256  # rows made wide together: they stay in the processor's cache
FEW = 64  # vectors
STRIPS = 6  # that a symmetric product is made in: of each only what lies behind the diagonal
ALIKE = 1 - 1e-6  # a cosine above it is 1: float32 can't tell such tokens apart, and its noise must not choose


def alike(cosine: Tensor) -> Tensor:
    """Cosines of tokens that are equal but for rounding are 1; in place."""
    return cosine.masked_fill_(cosine > ALIKE, 1.0)


class Rows:
    """Cosines between the tokens of one picture on the CPU; of its features there is never a whole copy.

    Parameters
    ----------
    x : Tensor
        `[N, D]`, any float dtype.
    dtype : torch.dtype
        To compute in.
    pictures : int
        How many such pictures are held anyway: so much less matters what one of them takes.

    Attributes
    ----------
    usable : Tensor
        `[N]` bool: the vector's length is finite. Others have the cosine 0 to all.
    """

    def __init__(self, x: Tensor, dtype: torch.dtype, pictures: int = 1):
        self.x, self.dtype = x, dtype
        self.chunk = max(64, min(CHUNK, len(x) * pictures // 6))  # small pictures are not to be held whole, either
        norm = vector_lengths(x, self.chunk)
        self.usable = norm.isfinite()
        self.all_usable = bool(self.usable.all())
        self.length = norm.clamp(min=1e-8).masked_fill_(~self.usable, 1)
        self.buffer = x.new_empty(min(self.chunk, len(x)), x.shape[1], dtype=dtype)
        self._norm = norm

    @cached_property
    def own(self) -> Tensor:
        """`[N]` similarity of each token to itself: 1, but 0 for a vector of zeros or one that is not usable."""
        return (self._norm / self.length).square().masked_fill_(~self.usable, 0)

    @cached_property
    def twin(self) -> Tensor | None:
        """`[N]` int64, for each token the first one whose vector is equal bit by bit, or None where no two are.

        Rounding differs with the place in a product, and twins must tie.
        """
        return twins(self.x, self._norm)

    def scaled(self, index: Tensor) -> Tensor:
        """Unit vectors of some tokens, `[n, D]`."""
        return self._wide(index).div(self.length[index, None])

    def all_scaled(self) -> Tensor:
        """Unit vectors of all tokens, `[N, D]`."""
        unit = self.x.new_empty(self.x.shape, dtype=self.dtype)
        for start in range(0, len(self.x), self.chunk):
            part = slice(start, start + self.chunk)
            torch.div(self._wide(part), self.length[part, None], out=unit[part])
        return unit

    def cosines(self, index: Tensor | slice, unit: Tensor) -> Tensor:
        """Cosines of some tokens to `unit` vectors `[m, D]`, `[n, m]`."""
        if isinstance(index, slice):
            return self._cosines(index, unit)
        return torch.cat([self._cosines(part, unit) for part in index.split(self.chunk)])

    def all_cosines(self, unit: Tensor) -> Tensor:
        """Cosines of every token to `unit` vectors `[m, D]`, `[N, m]`."""
        starts = range(0, len(self.x), self.chunk)
        return torch.cat([self._cosines(slice(s, s + self.chunk), unit) for s in starts])

    def _cosines(self, part: Tensor | slice, unit: Tensor) -> Tensor:
        rows = self._wide(part)
        if len(unit) == 1:  # a matrix of one column takes longer than a vector
            found = (rows @ unit[0])[:, None]
        else:  # and one of few columns longer than one of few rows
            found = (unit @ rows.mT).mT if len(unit) < FEW else rows @ unit.mT
        found.div_(self.length[part, None])
        return alike(found) if bool(found.amax() > ALIKE) else found

    def _wide(self, part: Tensor | slice) -> Tensor:
        """Vectors of some tokens `[n, D]`, perhaps a view; at most ``chunk`` of them only until the next call."""
        if isinstance(part, slice):
            rows = self.x[part]
            if rows.dtype != self.dtype:  # memory of its own would be asked for and cleared anew every time
                fits = len(rows) <= len(self.buffer)
                rows = self.buffer[: len(rows)].copy_(rows) if fits else rows.to(self.dtype)
        elif len(part) > self.chunk:
            rows = self.x.index_select(0, part).to(self.dtype)
        elif self.x.dtype == self.dtype:
            rows = torch.index_select(self.x, 0, part, out=self.buffer[: len(part)])
        else:
            rows = self.buffer[: len(part)].copy_(self.x.index_select(0, part))
        return rows if self.all_usable else rows.masked_fill(~self.usable[part, None], 0)

    def between(self, index: Tensor) -> Tensor:
        """Cosines among some tokens, `[n, n]`; those of twins are the same numbers."""
        if len(index) == len(self.x):
            return self.whole
        place = None
        if self.twin is not None:
            index, place = self.twin[index].unique(return_inverse=True)
        unit = self.scaled(index)
        found = alike(symmetric_products(unit[None])[0])
        found.diagonal().copy_(self.own[index])
        return found if place is None else found[place[:, None], place]

    @cached_property
    def whole(self) -> Tensor:
        """All cosines, `[N, N]`, symmetric; those of twins are the same numbers."""
        found = self.own.new_empty(len(self.x), len(self.x))
        for part in torch.arange(len(self.x)).split(max(64, min(self.chunk, len(self.x) // STRIPS))):
            start, stop = int(part[0]), int(part[-1]) + 1
            unit = self.scaled(part)
            step = len(self.x) if self.x.dtype == self.dtype else 2 * self.chunk  # wide ones are views
            for other in range(start, len(self.x), step):
                block = self.cosines(slice(other, other + step), unit)
                found[other : other + step, start:stop] = block
                found[start:stop, other : other + step] = block.mT
            among = found[start:stop, start:stop]
            among.copy_(torch.maximum(among, among.mT))  # rounding differs with the order of the two
        found.diagonal().copy_(self.own)
        return found if self.twin is None else found[self.twin[:, None], self.twin]


def twins(x: Tensor, norm: Tensor) -> Tensor | None:
    """``Rows.twin``: vectors of one length and one sum of their first entries are compared entry by entry."""
    mark = norm.double() + x[:, :64].double().sum(-1) / 3
    order = mark.argsort(stable=True)
    same = mark[order].diff() == 0
    if not bool(same.any()):
        return None
    # of each run of equal marks the first: the lowest index, for the sort is stable
    starts = torch.cat([torch.ones(1, dtype=torch.bool), ~same])
    first = order[starts][starts.cumsum(0) - 1]
    twin = torch.arange(len(x))
    for start in range(0, len(x), CHUNK):
        mine, other = order[start : start + CHUNK], first[start : start + CHUNK]
        differ = mine != other
        mine, other = mine[differ], other[differ]
        twin[mine] = torch.where((x[mine] == x[other]).all(-1), other, mine)
    return twin


def twins_among(x: Tensor, usable: Tensor) -> Tensor | None:
    """``twins`` of the `usable [N]` ones of the vectors `x [N, D]`; each other one is its own, and nobody's twin."""
    here = usable.nonzero()[:, 0]
    some = x[here]
    found = twins(some, vector_lengths(some))
    if found is None:
        return None
    twin = torch.arange(len(x))
    twin[here] = here[found]
    return twin


def fill_pairs(
    made: Tensor | HalfMatrix, unit: Callable[[slice], Tensor], alike_of: Callable[[Tensor], Tensor], size: int
) -> None:
    """Fill `made [..., N, N]` with ``alike_of`` products of the vectors ``unit(part) [..., n, D]``, the same both ways.

    Parameters
    ----------
    size : int
        Vectors at a time; of each pair of parts the product is made once.
    """
    count = made.shape[-1] if isinstance(made, Tensor) else len(made)
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    for i, here in enumerate(parts):
        left = unit(here)
        for there in parts[i:]:
            block = alike_of(left @ (left if there == here else unit(there)).mT)
            if there == here:  # rounding differs with the order of the two
                block = torch.maximum(block, block.mT)
            if isinstance(made, HalfMatrix):
                made.put(here, there, block)
            else:
                made[..., here, there] = block
                made[..., there, here] = block.mT


def copy_twins(matrix: Tensor, twin: Tensor | None) -> None:
    """Give twins the rows and columns of the first one of them, in place, in a matrix of all pairs `[N, N]`."""
    if twin is None:
        return
    copies = (twin != torch.arange(len(twin))).nonzero()[:, 0].split(CHUNK)
    for some in copies:
        matrix[some] = matrix[twin[some]]
    for some in copies:
        matrix[:, some] = matrix[:, twin[some]]
