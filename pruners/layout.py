"""Where the tokens of a span sit in the picture: grids in reading order, with their newline tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """One picture of a span (a whole image, a mosaic of crops, one video frame) as `rows x cols` tokens.

    ``newline`` says where the model put separator tokens: ``"none"``, ``"row"`` (one behind every row, as LLaVA-NeXT)
    or ``"end"`` (one behind the whole grid, as LLaVA-OneVision videos). ``cuts`` are the rows and the columns at which
    another crop begins in a mosaic; padding that the model cut off may put them outside the grid.
    """

    rows: int
    cols: int
    kind: str = "image"
    newline: str = "none"
    cuts: tuple[tuple[int, ...], tuple[int, ...]] = field(default=((), ()), compare=False)

    @property
    def tokens(self) -> int:
        """Number of tokens, newlines included."""
        return self.rows * self.cols + {"none": 0, "row": self.rows, "end": 1}[self.newline]


@dataclass(frozen=True)
class Layout:
    """The grids of one span, in the order in which their tokens stand in the sequence."""

    grids: tuple[Grid, ...]

    @classmethod
    def line(cls, n: int) -> Layout:
        """Layout of `n` tokens about which nothing is known: one row."""
        return cls((Grid(1, n, kind="line"),))

    @property
    def tokens(self) -> int:
        """Number of tokens of the span, newlines included."""
        return sum(g.tokens for g in self.grids)

    @cached_property
    def array(self) -> np.ndarray:
        """Grid index, row and column of each token, `[n, 3]` int64; a newline's column is -1."""
        parts = []
        for i, g in enumerate(self.grids):
            width = g.cols + (g.newline == "row")
            row, col = np.divmod(np.arange(g.rows * width), width)
            part = np.stack([np.full_like(row, i), row, np.where(col == g.cols, -1, col)], 1)
            if g.newline == "end":
                part = np.concatenate([part, [[i, g.rows - 1, -1]]])
            parts.append(part)
        return np.concatenate(parts)

    @property
    def is_one_part(self) -> bool:
        """Whether it is one picture that was not cut into crops."""
        return len(self.grids) == 1 and self.grids[0].cuts == ((), ())

    def parts(self) -> np.ndarray:
        """Which crop (or frame, or picture) each token belongs to, `[n]` int64: the grids in order, crops row by row.

        Newline tokens count as the last crop of their row.
        """
        if self.is_one_part:
            return np.zeros(self.tokens, dtype=np.int64)
        grid, row, col = self.array.T
        found, start = np.zeros_like(grid), 0
        for i, g in enumerate(self.grids):
            here = grid == i
            down = np.searchsorted(g.cuts[0], row[here], "right")
            across = np.where(col[here] < 0, len(g.cuts[1]), np.searchsorted(g.cuts[1], col[here], "right"))
            found[here] = start + down * (len(g.cuts[1]) + 1) + across
            start += (len(g.cuts[0]) + 1) * (len(g.cuts[1]) + 1)
        return found

    @property
    def coordinates(self) -> Tensor:
        """``array`` as an int64 tensor on the CPU."""
        from torch import from_numpy

        return from_numpy(self.array)

    @property
    def newline(self) -> Tensor:
        """True where the token is a separator and not image content: `[n]` bool on the CPU."""
        from torch import from_numpy

        return from_numpy(self.array[:, 2] < 0)

    @property
    def newline_ids(self) -> list[int]:
        """Ids of the separator tokens, ascending."""
        return np.flatnonzero(self.array[:, 2] < 0).tolist() if self.has_newlines else []

    @cached_property
    def has_newlines(self) -> bool:
        """Whether any token of the span is a separator."""
        return any(g.newline != "none" for g in self.grids)

    @property
    def content(self) -> int:
        """Number of tokens that are image content."""
        return sum(g.rows * g.cols for g in self.grids)


class LazyLayouts(Sequence[Layout]):
    """Some of the layouts that `get` gives, asked for on first use only: reading grids may read the device."""

    def __init__(self, get: Callable[[], Sequence[Layout]], picked: Sequence[int]):
        self.get, self.picked = get, picked

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        return self.get()[self.picked[i]]

    def __len__(self) -> int:
        return len(self.picked)
