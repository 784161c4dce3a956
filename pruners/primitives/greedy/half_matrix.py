"""A number of each pair of many tokens, held once: half of the bytes of a matrix that is the same both ways."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LARGE = 12_000  # tokens; a whole matrix of more takes over half a GiB in float32
STRIP = 512  # rows at most that are held from the first one's own column on


def is_large(count: int) -> bool:
    """Whether of so many tokens half a matrix is held. Rows of it are put together anew whenever they are read."""
    return count > LARGE


class HalfMatrix:
    """Rows of symmetric matrices `[B, N, N]`, of which little more than the upper half is held.

    Parameters
    ----------
    like : Tensor
        Of the device.
    rows, count : int
        B and N.
    dtype : torch.dtype
        Of the numbers, 0 at first.
    block : int
        Tokens that ``put`` gets at a time.
    """

    def __init__(self, like: Tensor, rows: int, count: int, dtype: torch.dtype, block: int):
        self.count, self.step = count, block * max(1, STRIP // block)
        self.twin: Tensor | None = None
        self.copies: Tensor | None = None
        starts = range(0, count, self.step)
        shapes = [(min(self.step, count - start), count - start) for start in starts]
        sizes = [height * width for height, width in shapes]
        self.held = like.new_zeros(rows, sum(sizes), dtype=dtype)
        self.strips = [x.unflatten(1, shape) for x, shape in zip(self.held.split(sizes, 1), shapes, strict=True)]
        before, firsts = 0, []  # where each row would begin if it were held whole
        for start, (height, width) in zip(starts, shapes, strict=True):
            firsts.append(torch.arange(height, device=like.device) * width + (before - start))
            before += height * width
        self.first = torch.cat(firsts)

    def __len__(self) -> int:
        return self.count

    def put(self, here: slice, there: slice, block: Tensor) -> None:
        """Set the numbers of the tokens `here` with those `there`, which are the same or come later."""
        strip, start = self.strips[here.start // self.step], here.start // self.step * self.step
        rows, columns = (slice(part.start - start, part.stop - start) for part in (here, there))
        strip[:, rows, columns] = block
        if columns.start < strip.shape[1]:
            strip[:, columns, rows] = block.mT

    def copy_twins(self, twin: Tensor | None = None) -> None:
        """See ``rows.copy_twins``, of one picture on the CPU: nothing is written, copies are read as the first one."""
        if twin is None:
            return
        copies = (twin != torch.arange(self.count)).nonzero()[:, 0]
        if len(copies):
            self.twin, self.copies = twin, copies

    def rows(self, some: slice | Tensor) -> Tensor:
        """Rows of `some` tokens, a slice or ascending int64 `[n]`: `[B, n, N]`."""
        made = self._rows(some)
        if self.twin is None:
            return made
        first = self.twin[some]
        copied = (first != torch.arange(self.count)[some]).nonzero()[:, 0]
        if len(copied):
            source, place = first[copied].unique(return_inverse=True)
            made[:, copied] = self._rows(source)[:, place]
        made[..., self.copies] = made[..., self.twin[self.copies]]
        return made

    def _rows(self, some: slice | Tensor) -> Tensor:
        starts = range(0, self.count + self.step, self.step)
        if isinstance(some, slice):
            count = some.stop - some.start
            edges = [min(max(start - some.start, 0), count) for start in starts]
        else:
            count, edges = len(some), torch.searchsorted(some, torch.tensor(starts)).tolist()
        made = self.held.new_empty(len(self.held), count, self.count)
        for start, strip, low, high in zip(starts[:-1], self.strips, edges[:-1], edges[1:], strict=True):
            if low < high:
                made[:, low:high, start:] = _taken(strip, 1, some, low, high, start)
            if high < count:
                made[:, high:, start : start + strip.shape[1]] = _taken(strip, 2, some, high, count, start).mT
        return made

    def in_blocks(self, size: int) -> Iterator[Tensor]:
        """All rows, some at a time, `[B, m, N]`."""
        return (self.rows(slice(s, min(s + size, self.count))) for s in range(0, self.count, size))

    def at_most(self, one: int) -> Tensor:
        """`[N]`, the column of `one` token of one picture."""
        return self.rows(slice(one, one + 1))[0, 0]

    def entries(self, column: Tensor) -> Tensor:
        """The number of each row in its `column [B, N]`, `[B, N]`."""
        row = torch.arange(self.count, device=column.device).expand_as(column)
        if self.twin is not None:
            row, column = self.twin[row], self.twin[column]
        return self.held.gather(1, self.first[torch.minimum(row, column)] + torch.maximum(row, column))


def _taken(strip: Tensor, dim: int, some: slice | Tensor, low: int, high: int, start: int) -> Tensor:
    """Of those of `some` that stand from `low` to `high`, along `dim` of the `strip` that begins with token `start`."""
    if isinstance(some, slice):
        return strip.narrow(dim, some.start + low - start, high - low)
    return strip.index_select(dim, some[low:high] - start)
