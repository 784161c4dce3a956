"""Grid sampling and grid pooling: what every method must beat, "just use fewer pixels"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.primitives.grid_cells import grid_cells
from vtc.pruners.primitives.precision import wide, wide_dtype

from .base import Merged, Pruner
from .registry import register_pruner
from .visual_tokens import VisualTokens


def _line_cells(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` tokens in a row divided into `k` cells: the cell of each, and each cell's middle."""
    cells = np.arange(n) * k // n
    starts = np.searchsorted(cells, np.arange(k + 1))
    return cells, (starts[:-1] + starts[1:] - 1) // 2


def _cells(tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor]:
    """Per row the cell of each candidate `[B, N]` (`k` for padding) and the column of each cell's centre `[B, k]`.

    Tokens already pruned leave holes; then the candidates are taken as a line in reading order.
    """
    rows, width = tokens.ids.shape
    cells, centres = np.full((rows, width), k), np.zeros((rows, k), dtype=np.int64)
    for i, (n, budget) in enumerate(zip(tokens.counts, tokens.budgets, strict=True)):
        layout = tokens.layouts[i]
        found = grid_cells(layout, budget) if n == layout.content else _line_cells(n, budget)
        cells[i, :n], centres[i, :budget] = found
    device = tokens.ids.device
    return torch.from_numpy(cells).to(device), torch.from_numpy(centres).to(device)


@register_pruner("uniform")
@dataclass(kw_only=True)
class Uniform(Pruner):
    """Uniform sampling on the grid: the token nearest to the centre of each of `k` nearly equal cells.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    layer : int, optional
        None prunes before the language model, `k` before decoder layer `k`.

    Notes
    -----
    Stage: input or decoder. Needs nothing but the grid; spans of several pictures (crops, frames) share the budget in
    proportion to their size. Where the grid is unknown, or holes were pruned into it, tokens are a line in reading
    order. O(n). Baseline, no paper.
    """

    layer: int | None = None

    paper: ClassVar[str] = "baseline: grid sampling"
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    @property
    def stage(self) -> str:  # type: ignore[override]
        """``decoder`` with a layer, else ``input``."""
        return "input" if self.layer is None else "decoder"

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Centres of `k` cells."""
        return _cells(tokens, k)[1]


@register_pruner("pool")
@dataclass(kw_only=True)
class Pool(Uniform):
    """Average pooling on the grid: each of `k` nearly equal cells becomes the mean of its tokens, at its centre.

    Parameters
    ----------
    keep : int or float
        Cells per span, exactly.
    layer : int, optional
        None pools before the language model, `k` before decoder layer `k`.

    Notes
    -----
    Stage: input or decoder; merges. For k = n / 4 on an even grid this is 2x2 average pooling, the "just use fewer
    pixels" baseline; cells are generalised so that every `k` is met exactly. The merged token keeps the position of its
    cell's centre token. Means are taken in float32. O(n D). Baseline, no paper.
    """

    paper: ClassVar[str] = "baseline: average pooling"
    merges: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, k: int) -> Merged:  # type: ignore[override]
        """Centres of `k` cells with the cells' means."""
        cells, centres = _cells(tokens, k)
        rows, _, width = tokens.features.shape
        total = tokens.features.new_zeros(rows, k + 1, width, dtype=wide_dtype(tokens.features))
        total = total.scatter_add(1, cells[..., None].expand(-1, -1, width), wide(tokens.features))
        ones = torch.ones_like(cells, dtype=torch.float32)
        count = torch.zeros(rows, k + 1, device=cells.device).scatter_add(1, cells, ones)
        means = total / count.clamp(min=1)[..., None]
        return Merged(centres, means[:, :k].to(tokens.features.dtype), count[:, :k])
