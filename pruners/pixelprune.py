"""PixelPrune: before the vision encoder, patches go that their neighbours' pixels tell."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Pruner, Stop
from .layout import Grid, Layout
from .primitives.precision import wide
from .primitives.ranking import rankable
from .registry import register_pruner
from .signals import Pixels, Signal
from .visual_tokens import VisualTokens

FIRST = 1e30  # of a token that nothing tells: before all others
PIXELS = Pixels()
METRICS = ("max", "mae", "rmse")


@register_pruner("pixelprune")
@dataclass(kw_only=True)
class PixelPrune(Pruner):
    """PixelPrune (arXiv 2604.00886): what a predictor tells from the pixels kept so far is not encoded at all.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span, exactly: those whose pixels are predicted worst (OURS; the paper keeps by `threshold`
        alone). With a `threshold` the most that are kept.
    threshold : float, optional
        The paper's rule: a token is kept if its error is larger, however many these are; 0 drops exact repetitions.
    metric : {"max", "mae", "rmse"}
        Error over all pixels and channels of a token: largest, mean, or root mean square difference.
    std : float
        By how much the processor divides pixels in [0, 1], so that `threshold` is a share of their range. Qwen3-VL's is
        0.5; Qwen2-VL's about 0.27.

    Notes
    -----
    Stage: vision, before the first layer of the encoder, so that tower and decoder are shorter. The predictor is that
    of LOCO-I (JPEG-LS) over the grid of tokens: of the neighbours A (left), B (above) and C (above left), token X is
    told by B where C is like A and not like B (an edge goes down between them), else by A; in the first row by A, in
    the first column by B. "Like" is an error of at most `threshold` (0 without one). A dropped token stands for its
    prediction from then on, so that errors do not add up along a row: along diagonals all tokens are told at once,
    ``h + w`` steps of O(min(h, w) C) for a grid of C pixels a token. The first token of each grid is always kept.

    A token of several patches (Qwen-VL's 2 x 2) is told as a whole, by all frames that it holds; the authors' code
    looks at the first, which is the same for pictures. What an earlier method dropped tells nothing, and the tokens of
    different grids (thumbnail, frames) do not tell each other.
    """

    threshold: float | None = None
    metric: str = "max"
    std: float = 0.5

    paper: ClassVar[str] = "arXiv 2604.00886"
    stage: ClassVar[str] = "vision"
    signals: ClassVar[tuple[Signal, ...]] = (PIXELS,)
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in METRICS:
            raise ValueError(f"{self.spoken_name}.metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if not self.std > 0:
            raise ValueError(f"{self.spoken_name}.std must be above 0, got {self.std!r}")
        if self.threshold is not None:
            if not 0 <= self.threshold <= 1:
                raise ValueError(f"{self.spoken_name}.threshold must be in [0, 1], got {self.threshold!r}")
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the encoder's first layer."""
        asked = 0.5 if self.threshold is not None and self.keep is None else self.keep
        return (Stop(self.stage, 0, asked),)

    def errors(self, tokens: VisualTokens) -> Tensor:
        """How badly each token is told, in units of `threshold`, `[B, N]` float32; ``FIRST`` where nothing tells it."""
        pixels = tokens.read(PIXELS)
        found = torch.zeros(pixels.shape[:2], dtype=torch.float32, device=pixels.device)
        for row, (n, layout) in enumerate(zip(tokens.counts, tokens.layouts, strict=True)):
            sizes = [grid.rows * grid.cols for grid in layout.grids]
            cells = cells_of(layout).to(pixels.device)[tokens.ids[row, :n].to(pixels.device)]
            # the token of each cell, -1 where it is gone
            token = torch.full((sum(sizes),), -1, device=cells.device)
            token.index_copy_(0, cells, torch.arange(n, device=cells.device))
            parts = zip(layout.grids, token.split(sizes), strict=True)
            told = [self._told(pixels[row].flatten(1), here, grid) for grid, here in parts]
            found[row, :n] = torch.cat(told)[cells]
        return found.to(tokens.ids.device)

    def _told(self, pixels: Tensor, token: Tensor, grid: Grid) -> Tensor:
        """Errors of a grid's cells, whose `token` tells the row of `pixels [N, C]`."""
        limit, error = self.threshold or 0.0, torch.full(token.shape, FIRST, device=token.device)
        shown = token.clone()  # whose pixels stand there
        for cells, *neighbours in diagonals(grid.rows, grid.cols):
            at, *near = (torch.from_numpy(i).to(token.device) for i in (cells, *neighbours))
            left, above, corner = (shown[i] for i in near)
            down = self._alike(pixels, corner, left, limit) & ~self._alike(pixels, corner, above, limit)
            by = torch.where(down, above, left)
            found = self._error(pixels, token[at], by)
            error = error.index_copy(0, at, found)
            shown = shown.index_copy(0, at, torch.where(found > limit, token[at], by))
        return error

    def _alike(self, pixels: Tensor, one: Tensor, other: Tensor, limit: float) -> Tensor:
        return self._error(pixels, one, other) <= limit

    def _error(self, pixels: Tensor, one: Tensor, other: Tensor) -> Tensor:
        gap = (wide(pixels[one]) - wide(pixels[other])).abs_()
        found = (
            gap.amax(1)
            if self.metric == "max"
            else gap.mean(1)
            if self.metric == "mae"
            else gap.square_().mean(1).sqrt()
        )
        return (self.std * found).float().masked_fill((one < 0) | (other < 0), FIRST)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The tokens that are told worst, or all that are told badly (-1 in unused columns)."""
        score = rankable(self.errors(tokens), tokens.valid)
        order = score.sort(dim=1, descending=True, stable=True)
        if self.threshold is None:
            return order.indices[:, :k]
        number = ((score > self.threshold) & tokens.valid).sum(1, keepdim=True)
        if self.keep is not None:
            number = torch.minimum(number, torch.tensor(tokens.budgets, device=number.device)[:, None])
        used = torch.arange(order.indices.shape[1], device=number.device) < number
        return order.indices.masked_fill(~used, -1)


def cells_of(layout: Layout) -> Tensor:
    """The cell of each token of a span, counted over all its grids, `[n]` int64 on the CPU (newlines: any)."""
    number, row, col = layout.array.T
    starts = np.cumsum([0, *(grid.rows * grid.cols for grid in layout.grids)])
    width = np.array([grid.cols for grid in layout.grids])
    return torch.from_numpy(starts[number] + row * width[number] + np.maximum(col, 0))


@functools.lru_cache(maxsize=64)
def diagonals(rows: int, cols: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The cells of each diagonal of a grid but the first, with their neighbours: left, above, above left, all flat.

    In the first row the left one stands for all three, in the first column the one above.
    """
    found = []
    for d in range(1, rows + cols - 1):
        row = np.arange(max(0, d - cols + 1), min(d, rows - 1) + 1)
        col = d - row
        cell = row * cols + col
        left = np.where(col > 0, cell - 1, cell - cols)
        above = np.where(row > 0, cell - cols, left)
        found.append((cell, left, above, np.where((row > 0) & (col > 0), cell - cols - 1, above)))
    return found
