"""HiRED: a budget for every crop, from what the class token looks at in the whole picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    at_least_one,
    best,
    budgets_of,
    by_id,
    columns_of,
    part_sizes,
    part_sums,
    parts_of,
    per_token,
    rank_in_part,
)
from vtc.pruners.primitives.precision import wide

from .base import Pruner
from .layout import Layout
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens


def _crops(layout: Layout) -> tuple[int, int]:
    """Crops of the picture along its height and width; (0, 0) where there is no whole picture with crops behind it."""
    if len(layout.grids) != 2 or layout.grids[0].kind != "base":
        return 0, 0
    cuts = layout.grids[1].cuts
    return len(cuts[0]) + 1, len(cuts[1]) + 1


def _aims(layout: Layout, contiguous: bool) -> np.ndarray:
    """Which crop (as a part, from 1) each token of the whole picture speaks for, `[n]`; 0 for the others."""
    found = np.zeros(layout.tokens, dtype=np.int64)
    down, across = _crops(layout)
    if not down:
        return found
    base, mosaic = layout.grids
    token = np.arange(base.rows * base.cols)
    if contiguous:
        found[token] = 1 + token * (down * across) // len(token)
        return found
    row, col = token // base.cols, token % base.cols
    row = np.searchsorted(mosaic.cuts[0], (row + 0.5) * mosaic.rows / base.rows, "right")
    col = np.searchsorted(mosaic.cuts[1], (col + 0.5) * mosaic.cols / base.cols, "right")
    found[token] = 1 + row * across + col
    return found


@register_pruner("hired")
@dataclass(kw_only=True)
class HiRED(Pruner):
    """HiRED (Arif et al., AAAI 2025, arXiv 2408.10945): high-resolution early dropping.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly (all crops together). The paper's budgets are 20% and 40%.
    alpha : float
        The share of the budget that the whole picture gets. The authors report 0.5; their code's default is 1.
    shallow : int
        Encoder layer that says how the crops share the rest. The authors' is 0, the first.
    official : bool
        As the authors' code: see below; keeps fewer tokens than asked where the rounding loses some.

    Notes
    -----
    Stage: input. For spans of a whole picture of `N0` tokens and its crops (LLaVA-NeXT, OneVision), budget `B`:
    the whole picture keeps ``B0 = min(int(alpha B), N0)``. Of its tokens the ``int((1 - alpha) N0)`` that the class
    token attends to most in `shallow` are marked; crop j gets ``(marks in its area / all marks) (B - B0)``. Each part
    keeps those of its tokens with the largest ``sum_h A[h, i]``, A the class token's attention `[H, N]` in the layer
    that the projector reads. Fractions of a token go by the largest remainder, and what a crop is too small for to the
    others, so the count is exact. Spans without crops keep the top ``B`` by attention. O(N log N).

    The authors cut the flat list of marks into as many CONTIGUOUS runs as there are crops (row bands, whatever the
    crops' places) and round every crop's budget down: ``official=True``. By default a mark counts for the crop that
    lies there. They choose before padding is cut off; here padding never has candidates. Towers without a class token:
    mean attention received. Idefics3 and SmolVLM feed every crop as a span of its own: there each keeps its top.
    """

    alpha: float = 0.5
    shallow: int = 0
    official: bool = False

    paper: ClassVar[str] = "arXiv 2408.10945"
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"hired.alpha={self.alpha} is out of range: it must be in [0, 1]")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Attention of the first layer and of the one that the projector reads."""
        return EncoderAttention(layer=self.shallow), EncoderAttention()

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Columns in ascending order."""
        shallow, deep = (wide(tokens.read(s)).sum(1) for s in self.signals)
        device, budget = tokens.ids.device, budgets_of(tokens)
        part, count = parts_of(tokens)
        tiled = [bool(_crops(layout)[0]) for layout in tokens.layouts]
        part = torch.where(torch.tensor(tiled, device=device)[:, None] | ~tokens.valid, part, 0)
        rank, sizes = rank_in_part(deep, part, count), part_sizes(part, count)

        whole = [lay.grids[0].rows * lay.grids[0].cols for lay in tokens.layouts]
        share = [int(b * self.alpha) if t else b for b, t in zip(tokens.budgets, tiled, strict=True)]
        first = torch.minimum(torch.tensor(share, device=device)[:, None], sizes[:, :1])
        crops = sizes[:, 1:].sum(1, keepdim=True)
        if not self.official:
            first = torch.maximum(first, budget - crops)  # thin crops may not hold their share
        marks = torch.tensor([[int(n * (1 - self.alpha))] for n in whole], device=device)
        marked = (part == 0) & (rank_in_part(shallow, part, count) < marks)
        aim = by_id(tokens, [_aims(layout, self.official) for layout in tokens.layouts])
        votes = part_sums(marked.long(), torch.where(marked, aim, count), count).float()
        quota = votes / votes.sum(1, keepdim=True).clamp(min=1) * (budget - first)
        if self.official:
            quota = torch.minimum(quota.long(), sizes)
        quota = torch.cat([first.to(quota.dtype), quota[:, 1:]], 1)
        if self.official:
            chosen = at_least_one((rank < per_token(quota, part)) & tokens.valid, deep, tokens.valid)
            return columns_of(chosen, part.shape[1], exact=False)
        key = per_token(quota, part) - rank
        key = torch.where(part == 0, torch.where(rank < first, part.shape[1], -2 * part.shape[1]), key)
        return columns_of(best(key, budget, tokens.valid), k)
