"""Where the items of one vision call are in a tower that nothing was pruned in.

Positions are flat: patch `p` of row `r` of a dense tower `[R, T, D]` is `r * T + p` (prefix tokens included), in a
packed tower `[T, D]` it is the row's own index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vtc.models.layout.family import Family
from vtc.models.layout.layouts_by_family import VisionCall
from vtc.pruners.layout import Layout


@dataclass
class TowerGeometry:
    """The positions of one vision call.

    Attributes
    ----------
    prefix, cut, depth, last : int
        Special tokens in front of a row (CLS), how many of them the model cuts off before the projector, tower layers,
        the one that the projector reads.
    shape : tuple of int
        Of the rows that the tower runs, `(R, T)` or `(T,)`; set by its first layer.
    """

    call: VisionCall
    family: Family
    tower: Any
    prefix: int
    cut: int
    depth: int = 0
    last: int = 0
    shape: tuple[int, ...] = ()
    _index: list[Tensor] = field(default_factory=list)
    _rows: list[range] = field(default_factory=list)
    _layouts: list[Layout] | None = None

    @property
    def total(self) -> int:
        """Positions of the unpruned tower."""
        return self.shape[0] * self.shape[1] if len(self.shape) == 2 else self.shape[0]

    def index(self, device: torch.device) -> list[Tensor]:
        """Per item `[n, U]`: the positions of each token's patches, -1 at newlines."""
        if not self._index:
            place = torch.arange(1, self.total + 1, device=device).view(*self.shape, 1)
            found = self.family.align(self.call, place[:, self.cut :] if len(self.shape) == 2 else place)  # type: ignore[misc]
            self._index = [f[..., 0] - 1 for f in found]
            self.call.lengths = self.call.lengths or [len(f) for f in found]
        return self._index

    def layouts(self) -> list[Layout]:
        """One layout per item."""
        if self._layouts is None:
            self._layouts = self.family.layouts_of(self.call)
        return self._layouts

    def rows(self, item: int) -> range:
        """The rows of a dense tower that an item takes; its tokens' places must have been asked for before."""
        if not self._rows:
            counts = self.family.rows(self.call) if self.family.rows else [1] * len(self._index)
            starts = [sum(counts[:i]) for i in range(len(counts))]
            self._rows = [range(s, s + n) for s, n in zip(starts, counts, strict=True)]
        return self._rows[item]

    def first_row(self, item: int) -> int:
        """An item's first row in a dense tower; 0 in a packed one, which has no rows of its own."""
        return self.rows(item).start if len(self.shape) == 2 else 0

    def special(self, item: int) -> Tensor:
        """`[R, prefix]`: the positions of the special tokens in front of each of an item's rows."""
        device = self._index[item].device
        if not self.prefix:
            return torch.zeros(1, 0, dtype=torch.long, device=device)
        rows = self.rows(item)
        starts = torch.arange(rows.start, rows.stop, device=device)[:, None] * self.shape[1]
        return starts + torch.arange(self.prefix, device=device)
