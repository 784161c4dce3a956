"""The rows of a table that are nearest to vectors by cosine, and whether some of a class of rows is among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from .precision import decides_on_host, wide_dtype

LEAST_CHUNK = 256  # rows of the table compared at a time
FIRST_CHUNKS = 8  # chunks that may leave vectors out
MARGIN = 1e-4  # more than a float32 cosine is off by
ALIKE, ALIKE_SAMPLE = 8, 128  # directions of vectors that are alike, and how many vectors show them
MOST_ROWS = 32  # of classes that take part in a bound
TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def nearest_ids(x: Tensor, table: Tensor, k: int) -> Tensor:
    """The `k` rows of `table` that are nearest to each vector by cosine.

    Parameters
    ----------
    x : Tensor
        `[..., D]`, any float dtype. A vector that is not finite, or zero, is as near to one row as to another.
    table : Tensor
        `[V, D]`, `V >= k`, any float dtype and device.
    k : int
        How many.

    Returns
    -------
    Tensor
        `[..., k]` int64 on the device of `x`, nearest first; of equally near rows the lowest comes first.

    Notes
    -----
    O(T V D) in float32, over parts of the table, so that neither the similarities `[T, V]` nor a normalised table ever
    exist. A row's norm is taken along the way, which costs 1/T of its products; nothing can get stale.
    """
    flat = x.reshape(-1, x.shape[-1])
    unit, norm = _unit(flat)
    unit.masked_fill_(~norm.isfinite(), 0)
    best = unit.new_full((len(unit), 0), 0)
    ids = torch.zeros_like(best, dtype=torch.int64)
    size = max(LEAST_CHUNK, unit.shape[-1] // 4)
    for start in range(0, table.shape[0], size):
        rows = table[start : start + size].to(unit.device, unit.dtype)
        similar = (unit @ rows.T).div_(vector_norm(rows, dim=-1).clamp(min=TINY)).nan_to_num_(nan=-2.0)
        for _ in range(min(k, similar.shape[1])):
            place = similar.argmax(-1, keepdim=True)  # the first of equal ones, by its documentation
            best, ids = torch.cat([best, similar.gather(1, place)], 1), torch.cat([ids, place + start], 1)
            similar.scatter_(1, place, float("-inf"))
        order = best.sort(dim=-1, descending=True, stable=True).indices[:, :k]  # earlier rows stand first
        best, ids = best.gather(1, order), ids.gather(1, order)
    return ids.view(*x.shape[:-1], ids.shape[-1])


@torch.no_grad()
def among_nearest(x: Tensor, table: Tensor, k: int, classes: Sequence[Tensor]) -> list[Tensor]:
    """Whether some of a class of rows is among the `k` nearest of each vector.

    Parameters
    ----------
    x, table, k
        As for ``nearest_ids``.
    classes : sequence of Tensor
        `[C]` int64 each, ids of rows.

    Returns
    -------
    list of Tensor
        `[...]` bool for each class.

    Notes
    -----
    As ``nearest_ids`` tells. On the CPU most products are not made: a vector is done with once `k` rows are nearer than
    the classes by more than rounding can be wrong, mostly within the first rows, and of a vector that is in a class
    the only rows compared are those that could be nearer by a bound of cosines in few dimensions.
    """
    if not (decides_on_host(x) and decides_on_host(table)):
        return _inside(nearest_ids(x, table, k), classes)
    flat = x.reshape(-1, x.shape[-1])
    found = [torch.zeros(len(flat), dtype=torch.bool) for _ in classes]
    filled = [j for j, ids in enumerate(classes) if len(ids)]
    if filled and len(flat):
        ids = [classes[j] for j in filled]
        # half precision is widened in two halves, which costs the table's widening once more
        size = -(-len(flat) // 2) if x.dtype.itemsize < 4 else len(flat)
        for start in range(0, len(flat), size):
            part = slice(start, start + size)
            for j, mine in zip(filled, _members(flat[part], table, k, ids), strict=True):
                found[j][part] = mine
    return [mine.view(x.shape[:-1]) for mine in found]


def _members(x: Tensor, table: Tensor, k: int, classes: Sequence[Tensor]) -> list[Tensor]:
    """``among_nearest`` on the CPU, of `x` `[T, D]` and classes that have rows."""
    member, undecided = _Scan(x, table, k, classes).members()
    exact = _inside(nearest_ids(x[undecided], table, k), classes)
    return [mine.masked_scatter(undecided, some) for mine, some in zip(member, exact, strict=True)]


def _inside(near: Tensor, classes: Sequence[Tensor]) -> list[Tensor]:
    return [(near[..., None] == ids.to(near.device)).any(-1).any(-1) for ids in classes]


class _Scan:
    """For each vector and class, how many other rows of the table are nearer than the class's nearest.

    ``surely`` and ``maybe`` count them with a margin for rounding, either way: `k` sure ones say that the class is not
    among the `k` nearest, less than `k` possible ones that it is.
    """

    def __init__(self, x: Tensor, table: Tensor, k: int, classes: Sequence[Tensor]):
        self.table, self.k, self.classes = table, k, classes
        self.unit, norm = _unit(x)
        self.nearest = torch.stack([_cosines(self.unit, table[ids]).amax(-1) for ids in classes])
        self.surely = torch.zeros_like(self.nearest, dtype=torch.int64)
        self.maybe = torch.zeros_like(self.surely)
        # zeros and what is not finite are as near to all rows: left to the whole comparison
        self.usable = self.nearest.isfinite().all(0) & (norm[:, 0] > 0)
        self.basis: Tensor | None = None

    def members(self) -> tuple[list[Tensor], Tensor]:
        """Per class `[T]` bool, and `[T]` bool where rounding could decide."""
        left, size = self.usable.nonzero()[:, 0], max(LEAST_CHUNK, self.unit.shape[1] // 8)
        start = 0
        while start < len(self.table) and len(left):
            if start >= FIRST_CHUNKS * size and self.basis is None:
                self.basis, size = self._directions(left), 2 * size
            self._count(left, slice(start, start + size))
            left = left[(self.surely[:, left] < self.k).any(0)]
            start += size
        member = self.maybe < self.k
        undecided = ((self.surely < self.k) & ~member).any(0) | ~self.usable
        return list(member), undecided

    def _directions(self, left: Tensor) -> Tensor:
        """Orthonormal rows `[q, D]` in whose span the classes lie, and most of what vectors that are alike share."""
        some = self.unit[left[:: max(1, len(left) // ALIKE_SAMPLE)]]
        leading = torch.linalg.svd(some, full_matrices=False).Vh[:ALIKE]
        rows = self.table[torch.cat(list(self.classes))[:MOST_ROWS]].to(some.dtype)
        found = torch.linalg.qr(torch.cat([leading, rows / vector_norm(rows, dim=-1, keepdim=True).clamp(min=TINY)]).mT)
        return found.Q.mT.contiguous()

    def _count(self, left: Tensor, part: slice) -> None:
        """Take in some rows of the table, for the vectors `left`."""
        rows = self.table[part].to(self.unit.dtype)
        length = vector_norm(rows, dim=-1).clamp(min=TINY)
        numbers = torch.arange(part.start, part.start + len(rows))
        if self.basis is not None:
            could = self._could_be_nearer(left, rows, length)
            left, pick = left[could.any(1)], could.any(0)
            rows, length, numbers = rows[pick], length[pick], numbers[pick]
        if not len(left) or not len(rows):
            return
        similar = self._products(left, rows).div_(length)
        for j, ids in enumerate(self.classes):
            own = torch.isin(numbers, ids)
            others = similar.masked_fill(own, -2.0) if bool(own.any()) else similar
            bar = self.nearest[j, left, None]
            # a row that is not finite is near to nobody: NaN is not larger
            self.surely[j, left] += (others > bar + MARGIN).sum(-1)
            self.maybe[j, left] += (others > bar - MARGIN).sum(-1)

    def _products(self, left: Tensor, rows: Tensor) -> Tensor:
        """Of the vectors `left` with some rows; no copy of all vectors."""
        if len(left) == len(self.unit):
            return self.unit @ rows.T
        return torch.cat([self.unit[some] @ rows.T for some in left.split(LEAST_CHUNK)])

    def _could_be_nearer(self, left: Tensor, rows: Tensor, length: Tensor) -> Tensor:
        """`[T, rows]` bool, False where a cosine is surely below what matters: within the basis it is known, outside
        it is at most the product of what either has left there."""
        assert self.basis is not None
        bound = (
            _with_rest(self._products(left, self.basis)) @ _with_rest((rows @ self.basis.mT).div_(length[:, None])).mT
        )
        open_ = self.surely[:, left] < self.k
        bar = torch.where(open_, self.nearest[:, left], float("inf")).amin(0) - 2 * MARGIN
        return ~(bound < bar[:, None])


def _with_rest(inside: Tensor) -> Tensor:
    """Unit vectors' coordinates in a basis `[n, q]`, and the length of what lies outside: `[n, q + 1]`."""
    return torch.cat([inside, (1 - inside.square().sum(-1, keepdim=True)).clamp_(min=0).sqrt_()], -1)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors over their lengths, `[T, D]`, and these, `[T, 1]`; some at a time, or half precision is widened twice."""
    unit, norms = x.new_empty(x.shape, dtype=wide_dtype(x)), []
    for start in range(0, len(x), LEAST_CHUNK):
        part = x[start : start + LEAST_CHUNK].to(unit.dtype)
        norms.append(vector_norm(part, dim=-1, keepdim=True))
        unit[start : start + LEAST_CHUNK] = part / norms[-1].clamp(min=TINY)
    return unit, torch.cat(norms) if norms else unit[:, :1]


def _cosines(unit: Tensor, rows: Tensor) -> Tensor:
    rows = rows.to(unit.dtype)
    return (unit @ rows.T).div_(vector_norm(rows, dim=-1).clamp(min=TINY))
