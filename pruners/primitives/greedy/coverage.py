"""Facility location: each step takes the candidate that raises most how well everything is covered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..precision import decides_on_host, exact_dtype, settled, wide_dtype
from .half_matrix import HalfMatrix
from .rows import alike, copy_twins, fill_pairs, twins_among
from .steps import finite

BLOCK = 96  # tokens whose cosines are made together: wide copies of more would count beside the matrix
STRIP = 2**16  # entries of the matrix that are looked at together on the CPU
STRIPS = 4  # that it is looked at in elsewhere
ROWS, ROWS_ELSEWHERE = 64, 1024  # that are put together at a time where there is no whole matrix


class Coverage(Protocol):
    """How well each of N candidates covers each of R things, in rows that are made when they are asked for."""

    def __len__(self) -> int:
        """R."""

    def rows(self, some: slice | Tensor) -> Tensor:
        """Rows of `some` things, a slice or ascending int64 `[n]`: `[B, n, N]`."""

    def at_most(self, one: int) -> Tensor:
        """`[R]`, no less than the column of the candidate `one`, of one picture; as near to it as can be."""


def all_cosines(x: Tensor, usable: Tensor, above: int = 0) -> Tensor:
    """See ``greedy.all_cosines``."""
    rows, count = x.shape[:2]
    firsts = [twins_among(*one) for one in zip(x, usable, strict=True)] if decides_on_host(x) else []
    whole = x.new_zeros(rows, above + count, count, dtype=wide_dtype(x))
    made = whole[:, above:]
    _fill(made, x, usable, BLOCK if decides_on_host(x) else max(BLOCK, count // STRIPS))
    for row, first in zip(made, firsts, strict=False):
        copy_twins(row, first)
    return whole


def half_cosines(x: Tensor, usable: Tensor) -> HalfMatrix:
    """See ``greedy.half_cosines``."""
    twin = twins_among(x[0], usable[0]) if decides_on_host(x) else None
    size = BLOCK if decides_on_host(x) else ROWS_ELSEWHERE
    made = HalfMatrix(x, len(x), x.shape[1], wide_dtype(x), size)
    _fill(made, x, usable, size)
    made.copy_twins(twin)
    return made


def _fill(made: Tensor | HalfMatrix, x: Tensor, usable: Tensor, size: int) -> None:
    def unit(part: slice) -> Tensor:
        rows = x[:, part].detach().to(wide_dtype(x), copy=True).masked_fill_(~usable[:, part, None], 0)
        return rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_(min=1e-8))

    fill_pairs(made, unit, alike, size)


def cover(covers: Tensor, k: int, bar: Tensor, weight: Tensor | None = None) -> Tensor:
    """See ``greedy.cover``."""
    if weight is None:
        weight = torch.ones_like(bar)
    else:
        bar, weight = finite(bar, weight)
    if decides_on_host(covers):
        found = [_cover_one(*row, k) for row in zip(covers, bar, weight, strict=True)]
        return torch.stack(found)
    return _cover_all(covers, bar.clone(), weight, k)


def _cover_one(covers: Tensor, bar: Tensor, weight: Tensor, k: int) -> Tensor:
    """Of one picture `[R, N]`: gains are kept, and brought up to date by what a choice covers better than before."""
    bar, weight, known = bar.double(), weight.double(), covers.new_zeros(len(covers))
    size = max(1, STRIP // covers.shape[1])
    gain = torch.zeros_like(bar)
    for part in covers.split(size):
        gain += part.double().clamp_(min=0).sum(0)
    scale, order = gain.amax(), []
    for _ in range(k):
        # differences of sums leave rounding where nothing is left to gain, and that must not choose
        order.append(int((bar + weight * settled(gain.clone(), scale)).argmax()))
        bar[order[-1]] = float("-inf")
        new = covers[:, order[-1]]
        for some in (new > known).nonzero()[:, 0].split(size):
            old = known[some, None].double()
            better = covers[some].double().clamp_(old, new[some, None].double())
            gain -= better.sub_(old).sum(0)
        known = torch.maximum(known, new)
    return torch.tensor(order)


def _cover_all(covers: Tensor, bar: Tensor, weight: Tensor, k: int) -> Tensor:
    """Of a batch, in steps that never wait for the device."""
    known = torch.zeros_like(covers[..., 0])
    size, order, dtype = max(1, covers.shape[1] // STRIPS), [], exact_dtype(covers.device)
    weight = weight.to(dtype)
    for _ in range(k):
        gain = torch.zeros_like(weight)
        for start in range(0, covers.shape[1], size):
            part = slice(start, start + size)
            gain += (covers[:, part] - known[:, part, None]).clamp_(min=0).sum(1, dtype=dtype)
        order.append((bar + weight * gain).argmax(-1, keepdim=True))
        bar.scatter_(1, order[-1], float("-inf"))
        new = covers.gather(2, order[-1][:, None].expand(-1, covers.shape[1], -1))
        known = torch.maximum(known, new[..., 0])
    return torch.cat(order, 1)


def cover_in_rows(sets: Sequence[Coverage], k: int, bar: Tensor, weight: Tensor | None = None) -> Tensor:
    """See ``greedy.cover_in_rows``."""
    if weight is None:
        weight = torch.ones_like(bar)
    else:
        bar, weight = finite(bar, weight)
    if decides_on_host(bar):
        return _rows_of_one(sets, bar[0], weight[0], k)[None]
    return _rows_of_all(sets, bar.clone(), weight, k)


def _rows_of_one(sets: Sequence[Coverage], bar: Tensor, weight: Tensor, k: int) -> Tensor:
    """As ``_cover_one``, and by the same sums."""
    bar, weight = bar.double(), weight.double()
    size = max(1, STRIP // len(bar))
    together = size * max(1, ROWS // size)
    gain = torch.zeros_like(bar)
    for made in sets:
        for start in range(0, len(made), together):
            for part in made.rows(slice(start, min(start + together, len(made))))[0].split(size):
                gain += part.double().clamp_(min=0).sum(0)
    scale, order = gain.amax(), []
    knowns: list[Tensor] = []
    for _ in range(k):
        order.append(int((bar + weight * settled(gain.clone(), scale)).argmax()))
        bar[order[-1]] = float("-inf")
        for i, made in enumerate(sets):
            above = made.at_most(order[-1])
            if len(knowns) == i:
                knowns.append(torch.zeros_like(above))
            for some in (above > knowns[i]).nonzero()[:, 0].split(together):
                rows, old = made.rows(some)[0], knowns[i][some, None]
                new = torch.maximum(rows[:, order[-1], None], old)
                knowns[i][some] = new[:, 0]
                for part, least, most in zip(rows.split(size), old.split(size), new.split(size), strict=True):
                    least = least.double()
                    gain -= part.double().clamp_(least, most.double()).sub_(least).sum(0)
    return torch.tensor(order)


def _rows_of_all(sets: Sequence[Coverage], bar: Tensor, weight: Tensor, k: int) -> Tensor:
    """As ``_cover_all``; what the last choice covers is read off the rows when they are next made."""
    dtype = exact_dtype(bar.device)
    known = [torch.zeros_like(bar[:, :1]).repeat(1, len(made)) for made in sets]
    weight = weight.to(dtype)
    order: list[Tensor] = []
    for _ in range(k):
        gain = torch.zeros_like(weight)
        for made, best in zip(sets, known, strict=True):
            for start in range(0, len(made), ROWS_ELSEWHERE):
                part = slice(start, min(start + ROWS_ELSEWHERE, len(made)))
                rows = made.rows(part)
                if order:
                    new = rows.gather(2, order[-1][:, None].expand(-1, rows.shape[1], -1))[..., 0]
                    best[:, part] = torch.maximum(best[:, part], new)
                gain += (rows - best[:, part, None]).clamp_(min=0).sum(1, dtype=dtype)
        order.append((bar + weight * gain).argmax(-1, keepdim=True))
        bar.scatter_(1, order[-1], float("-inf"))
    return torch.cat(order, 1)
