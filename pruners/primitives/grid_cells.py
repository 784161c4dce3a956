"""Divides a span's picture into exactly `k` cells of nearly equal size: what grid sampling and pooling share."""

from __future__ import annotations

import functools
import math

import numpy as np

from vtc.pruners.layout import Grid, Layout


def _share(k: int, sizes: list[int]) -> list[int]:
    """Split `k` over parts in proportion to `sizes`, none above its size (largest remainder, lowest index first)."""
    total = sum(sizes)
    exact = [k * s / total for s in sizes]
    shares = [min(s, int(e)) for s, e in zip(sizes, exact, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    while sum(shares) < k:
        for i in by_remainder:
            if sum(shares) < k and shares[i] < sizes[i]:
                shares[i] += 1
    return shares


def _grid_cells(grid: Grid, k: int) -> np.ndarray:
    """Cell of each token of a `rows x cols` grid divided into `k` cells, `[rows * cols]` int64.

    Bands of rows, as square as the aspect ratio allows, and the bands' cells as even as `k` allows.
    """
    rows, cols = grid.rows, grid.cols
    bands = min(rows, max(math.ceil(k / cols), round(math.sqrt(k * rows / cols)), 1), k)
    edges = np.arange(bands + 1) * k // bands  # cells before each band
    band = np.arange(rows) * bands // rows
    inside = np.arange(cols) * np.diff(edges)[band][:, None] // cols
    return (edges[band][:, None] + inside).reshape(-1)


@functools.lru_cache(maxsize=256)
def grid_cells(layout: Layout, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the content of a span into exactly `k` cells.

    Parameters
    ----------
    layout : Layout
        The span's grids; each gets cells in proportion to its size.
    k : int
        Number of cells, at most the number of content tokens.

    Returns
    -------
    cells : ndarray
        `[content]` int64, the cell of each content token in reading order.
    centres : ndarray
        `[k]` int64, the content token nearest to each cell's centre of mass (the first on ties).
    """
    shares = _share(k, [g.rows * g.cols for g in layout.grids])
    parts, first = [], 0
    for grid, share in zip(layout.grids, shares, strict=True):
        # more grids than cells: a grid without a cell of its own goes to the one before it
        parts.append(first + _grid_cells(grid, share) if share else np.full(grid.rows * grid.cols, max(first - 1, 0)))
        first += share
    cells = np.concatenate(parts)
    place = layout.array[layout.array[:, 2] >= 0].astype(float)
    count = np.bincount(cells, minlength=k)
    centre = np.stack([np.bincount(cells, place[:, j], k) for j in range(3)], 1) / count[:, None]
    distance = np.square(place - centre[cells]).sum(1).round(9)
    order = np.lexsort((np.arange(len(cells)), distance, cells))
    return cells, order[np.concatenate([[0], count.cumsum()[:-1]])]
