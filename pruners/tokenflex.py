"""TokenFLEX: pools the picture to any number of tokens, through a projector that was trained on all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from vtc.pruners.primitives.grid_cells import grid_cells
from vtc.pruners.primitives.precision import wide
from vtc.pruners.trained.compressor import TrainedCompressor

from .base import Merged
from .layout import Grid, Layout
from .registry import register_pruner
from .signals import PreProjector, Signal
from .visual_tokens import VisualTokens


class FlexProjector(nn.Module):
    """SwiGLU on pooled patches, `[..., source]` to `[..., width]`: ``W_o(SiLU(W_g x) * W_u x)`` behind a LayerNorm.

    ``W_o`` begins at zero, so that a new one adds nothing.
    """

    def __init__(self, source: int, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(source)
        self.gate = nn.Linear(source, hidden, bias=False)
        self.up = nn.Linear(source, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.norm(x)
        found: Tensor = self.out(silu(self.gate(x)) * self.up(x))
        return found


def windows(grid: Grid, k: int) -> np.ndarray | None:
    """Adaptive average pooling of a grid to `k` tokens of the grid's own shape, as weights `[k, rows * cols]`.

    Window `i` of `s` takes rows ``floor(i R / s)`` to ``ceil((i + 1) R / s)``, so that windows overlap where `s` does
    not divide the grid, as ``torch.nn.AdaptiveAvgPool2d``. None where no `k` tokens have the grid's shape.
    """
    across = math.isqrt(k * grid.cols // grid.rows)
    if not across or k % across or (k // across) * grid.cols != across * grid.rows or k > grid.rows * grid.cols:
        return None
    down = k // across

    def along(n: int, s: int) -> np.ndarray:
        i, at = np.arange(s)[:, None], np.arange(n)
        inside = ((at >= i * n // s) & (at < -(-(i + 1) * n // s))).astype(float)
        return inside / inside.sum(1, keepdims=True)

    found = np.einsum("ia,jb->ijab", along(grid.rows, down), along(grid.cols, across))
    return found.reshape(k, grid.rows * grid.cols)


def pooling(layout: Layout, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[k, n]` that pool a span's `n` tokens to `k`, and the token nearest to the centre of each window `[k]`.

    The cells of ``pool`` where the span is no one grid, or `k` has not its shape; a line where tokens are missing.
    """
    whole = n == layout.content
    found = windows(layout.grids[0], k) if whole and len(layout.grids) == 1 else None
    if found is None:
        cells, centres = grid_cells(layout if whole else Layout.line(n), k)
        found = (cells == np.arange(k)[:, None]).astype(float)
        return found / found.sum(1, keepdims=True), centres
    place = layout.array[layout.array[:, 2] >= 0][:, 1:].astype(float)
    distance = np.square(found @ place - place[:, None]).sum(-1).round(9)  # [n, k]
    return found, np.array(distance.argmin(0))


@register_pruner("tokenflex")
@dataclass(kw_only=True)
class TokenFLEX(TrainedCompressor):
    """TokenFLEX (arXiv 2504.03154): average pooling before a projector that has seen many token counts in training.

    Parameters
    ----------
    keep : int or float
        Tokens per span, exactly. What the method was trained for are counts of the grid's own shape: squares on a
        square grid.
    weights : str, optional
        See ``TrainedCompressor``; ``"untrained"`` is the pooled output of the stock projector.

    Notes
    -----
    Stage: input; merges. With x the patches that the projector reads and P the adaptive average pooling of their grid::

        tokens = P stock(x) + W_o(SiLU(W_g LN(P x)) * W_u LN(P x))

    In training the count is drawn for every batch from {64, 144, 256} with probabilities 0.2, 0.3, 0.5 (``vtc train
    tokenflex``). O(n k D) for the pooling.

    No code was released, and this is from second-hand notes of the paper. OURS are: the term with the stock projector
    (the paper trains a SwiGLU from scratch in its place; this starts where the stock model is), LayerNorm, no biases,
    a hidden width of the language model's, one count for a batch. Tokens keep the position of the patch nearest to
    their window's centre; renumbered positions cost much where places matter. A count that is not of the grid's shape
    takes the cells of ``pool``, and several grids (crops, frames) share the budget.
    """

    paper: ClassVar[str] = "arXiv 2504.03154"
    signals: ClassVar[tuple[Signal, ...]] = (PreProjector(),)
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    training_counts: ClassVar[tuple[tuple[int, float], ...]] = ((64, 0.2), (144, 0.3), (256, 0.5))

    def sizes_for(self, tokens: VisualTokens) -> dict[str, Any]:
        """Widths of what is read and of the language model."""
        source, width = tokens.read(self.signals[0]).flatten(2).shape[-1], tokens.features.shape[-1]
        return {"source": source, "width": width, "hidden": width}

    @classmethod
    def build(cls, sizes: Mapping[str, Any]) -> nn.Module:
        """A ``FlexProjector``."""
        return FlexProjector(sizes["source"], sizes["width"], sizes["hidden"])

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Pooled tokens, at their windows' centres."""
        rows, n = tokens.ids.shape
        weights, centres = np.zeros((rows, k, n)), np.zeros((rows, k), dtype=np.int64)
        for i, (count, budget) in enumerate(zip(tokens.counts, tokens.budgets, strict=True)):
            weights[i, :budget, :count], centres[i, :budget] = pooling(tokens.layouts[i], count, budget)
        features = wide(tokens.features)
        pool = torch.from_numpy(weights).to(features)
        patches = wide(tokens.read(self.signals[0])).flatten(2).to(features)
        found = pool @ features + self.run(tokens, pool @ patches)
        return Merged(torch.from_numpy(centres).to(tokens.ids.device), found.to(tokens.features.dtype))
