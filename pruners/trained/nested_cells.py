"""Cells of three sizes, one in the other, over the grids of a span, and which of them are tokens of their own."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.layout import Layout
from vtc.pruners.primitives.best_per_part import best, budgets_of
from vtc.pruners.visual_tokens import VisualTokens

from .windows import present_grids, tokens_of

WINDOW = 4  # patches along a window
SCALES = 3  # a window as one token, as its quarters, and as the quarters of these


class NestedCells(NamedTuple):
    """Where each token of a batch of spans is; padding is in a cell of its own, the last.

    Attributes
    ----------
    cell : Tensor
        `[3, B, N]` int64: its window, the quarter of that, and the quarter of that.
    anchor : Tensor
        `[3, B, N]` int64: the column of the token in the middle of each, which stands for it. That of a window is one
        of those of its quarters as well, and so on.
    number : tuple of int
        Cells of the row with the most, padding's not among them.
    """

    cell: Tensor
    anchor: Tensor
    number: tuple[int, ...]


def side_for(layout: Layout, k: int) -> tuple[Layout, int]:
    """The smallest windows, of 4, 8, 16 ... patches along a side, that are no more than `k`.

    The layout is a line where there are more grids than `k`.
    """
    layout = layout if len(layout.grids) <= k else Layout.line(layout.content)
    side = WINDOW
    while tokens_of(layout, side) > k:
        side *= 2
    return layout, side


@lru_cache(maxsize=64)
def nested_cells(layout: Layout, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells and anchors of a layout's content tokens, `[3, n]` each; windows of `side` patches."""
    place = layout.array[layout.array[:, 2] >= 0]
    n = len(place)
    cells, anchors = np.zeros((SCALES, n), dtype=np.int64), np.zeros((SCALES, n), dtype=np.int64)
    chosen = np.zeros(n, dtype=bool)
    for scale in range(SCALES):
        size = side >> scale
        grid_and_cell = np.column_stack([place[:, 0], place[:, 1:] // size])
        cells[scale] = np.unique(grid_and_cell, axis=0, return_inverse=True)[1].reshape(-1)
        members = np.bincount(cells[scale])
        middle = [np.bincount(cells[scale], weights=x) / members for x in place[:, 1:].T]
        distance = sum(np.square(x - m[cells[scale]]) for x, m in zip(place[:, 1:].T, middle, strict=True))
        # what stands for a larger cell stands for this one too
        order = np.lexsort((np.arange(n), np.round(distance, 6), ~chosen, cells[scale]))
        first = order[np.searchsorted(cells[scale][order], np.arange(len(members)))]
        anchors[scale] = first[cells[scale]]
        chosen[first] = True
    return cells, anchors


def cells_of(tokens: VisualTokens) -> NestedCells:
    """The cells of all spans, of windows as large as their budgets ask."""
    rows = [nested_cells(*side_for(present_grids(tokens, i), k)) for i, k in enumerate(tokens.budgets)]
    count = tuple(int(max(cell[scale].max() for cell, _ in rows)) + 1 for scale in range(SCALES))
    found = np.zeros((2, SCALES, *tokens.ids.shape), dtype=np.int64)
    found[0] = np.array(count)[:, None, None]
    found[1] = np.arange(tokens.ids.shape[1])
    for i, (cell, anchor) in enumerate(rows):
        found[0, :, i, : cell.shape[1]], found[1, :, i, : cell.shape[1]] = cell, anchor
    cell, anchor = torch.from_numpy(found).to(tokens.ids.device)
    return NestedCells(cell, anchor, count)


def spread(tokens: VisualTokens, cells: NestedCells, price: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are kept, exactly as many as asked: the middles of the cells that are worth most.

    Parameters
    ----------
    tokens : VisualTokens
        The spans; every window is one token at least.
    cells : NestedCells
        Their cells.
    price : Tensor
        `[2, B, N]`: what one token more is worth, of those that its window's quarters would be, and of those that the
        quarters of these would be; the second is not above the first.

    Returns
    -------
    kept : Tensor
        `[B, N]` bool.
    owner : Tensor
        `[B, N]` int64: the column of the kept token that each one belongs to, that of its smallest cell whose middle is
        kept.
    last : Tensor
        `[B]`: what the cheapest of them was worth, or the best that there is where windows have taken all.
    """
    column = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    of_window, of_quarter, of_cell = ((anchor == column) & tokens.valid for anchor in cells.anchor)
    worth = torch.where(of_quarter, price[0], price[1])
    candidates = of_cell & ~of_window
    more = best(worth, budgets_of(tokens) - of_window.sum(1, keepdim=True), candidates)
    kept = of_window | more
    owner = cells.anchor[0]
    for anchor in cells.anchor[1:]:
        owner = torch.where(kept.gather(1, anchor), anchor, owner)
    dearest = worth.masked_fill(~candidates, -torch.inf).amax(1)
    cheapest = worth.masked_fill(~more, torch.inf).amin(1)
    return kept, owner, torch.where(more.any(1), cheapest, dearest)
