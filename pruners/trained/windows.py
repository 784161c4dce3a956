"""Square windows over the grids of a span, for networks that look at one after the other."""

from __future__ import annotations

import numpy as np

from vtc.pruners.layout import Layout
from vtc.pruners.visual_tokens import VisualTokens


def present_grids(tokens: VisualTokens, row: int) -> Layout:
    """A span's grids; a line where tokens are gone."""
    layout, count = tokens.layouts[row], tokens.counts[row]
    return layout if layout.content == count else Layout.line(count)


def tokens_of(layout: Layout, kernel: int) -> int:
    """How many windows of this size cover the grids of a span."""
    return sum(-(-g.rows // kernel) * -(-g.cols // kernel) for g in layout.grids)


def windows(layout: Layout, kernel: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of each window, row by row, `[k, kernel^2]`, -1 where the grid has ended; and the middle ones `[k]`."""
    found, centres, start = [], [], 0
    for grid in layout.grids:
        down, across = (-(-n // kernel) for n in (grid.rows, grid.cols))
        place = np.full((down * kernel, across * kernel), -1)
        place[: grid.rows, : grid.cols] = start + np.arange(grid.rows * grid.cols).reshape(grid.rows, grid.cols)
        found.append(place.reshape(down, kernel, across, kernel).swapaxes(1, 2).reshape(-1, kernel**2))
        ends = ((np.minimum((np.arange(m) + 1) * kernel, n)) for m, n in ((down, grid.rows), (across, grid.cols)))
        row, col = ((np.arange(len(end)) * kernel + end - 1) // 2 for end in ends)
        centres.append(place[row[:, None], col].reshape(-1))
        start += grid.rows * grid.cols
    return np.concatenate(found), np.concatenate(centres)
