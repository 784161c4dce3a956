"""HiPrune: what a middle layer of the encoder looks at, its neighbours in the picture, and what the last looks at."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import best, budgets_of, columns_of, parts_of, rank_in_part
from vtc.pruners.primitives.precision import wide

from .base import Pruner
from .layout import Layout
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens

MIDDLE = 8 / 24  # layer and depth of CLIP-L


def neighbours(layout: Layout, flat: bool) -> np.ndarray:
    """Ids of the tokens left, right, above and below of each one in its crop or frame, `[n, 4]` int64; -1 is none.

    `flat` takes the crop's tokens for a line, as the authors' code does: the last of a row is left of the next row's
    first, and beyond the ends the ends themselves.
    """
    return _neighbours(layout, tuple(grid.cuts for grid in layout.grids), flat)


@functools.lru_cache(maxsize=256)
def _neighbours(layout: Layout, cuts: object, flat: bool) -> np.ndarray:  # layouts of other cuts are equal
    content, part = layout.array[:, 2] >= 0, layout.parts()
    found = np.full((layout.tokens, 4), -1)
    for p in np.unique(part):
        ids = np.flatnonzero((part == p) & content)
        row, col = (layout.array[ids, i] - layout.array[ids, i].min() for i in (1, 2))
        width, place = int(col.max()) + 1, np.arange(len(ids))
        aim = place[:, None] + np.array([-1, 1, -width, width])
        inside = np.stack([col > 0, col < width - 1, row > 0, row < row.max()], 1)
        found[ids] = np.where(inside | flat, ids[aim.clip(0, len(ids) - 1)], -1)
    return found


@register_pruner("hiprune")
@dataclass(kw_only=True)
class HiPrune(Pruner):
    """HiPrune (Liu et al., ACL 2026, arXiv 2508.00553): anchors, buffers and registers by the encoder's attention.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    alpha : float
        Share of the tokens that are anchors and buffers. The authors' is 0.1.
    shallow : int or float
        Encoder layer that looks at objects, from 0; a float is a share of the depth. The authors' is the 9th of CLIP's
        24, here 8 / 24; for Qwen2.5-VL theirs is ``shallow=15``, the 16th of 32.
    official : bool
        Neighbours as in the authors' code, which adds to an anchor's number (so does eq. 5): at the picture's left side
        it takes the end of the row above, at the right side the beginning of the row below, and beyond the ends the
        ends, which the equation leaves out.

    Notes
    -----
    Stage: input. ``a^l_i = mean_h mean_q A^l[h, q, i]``, A^l `[H, Q, N]` the attention of encoder layer l over all its
    queries, a class token's among them; no class token is needed and no text read. Of T tokens of a picture::

        anchors      the round(alpha T / 5) tokens of largest a^shallow                                     (eq. 4)
        buffers      their up to four neighbours in the grid                                                (eq. 5)
        registers    of the others those of largest a^last, last the layer that the projector reads, up to T  (6, 7)

    O(N log N), and attention that a layer's tokens receive: O(H N^2 d) in two encoder layers. Each crop of an anyres
    picture and each frame of a video is a picture of its own and keeps an equal share of the budget (what one is too
    small for goes to the others). The authors choose in LLaVA-NeXT's crops before padding is cut off, so they keep
    fewer where it held chosen tokens; here padding has no candidates. Where a token is made of several patches its
    attention is their mean. Where anchors and buffers exceed T, anchors stay first, then what the middle layer sees
    most. In windowed layers (Qwen2.5-VL) queries are those of the window; the authors compute attention across
    windows, but for the two layers named, which have none. HiPrune++, which reads the question, is not implemented.
    Ties go to the lowest index, and what is not finite comes last.
    """

    alpha: float = 0.1
    shallow: int | float = MIDDLE
    official: bool = False

    paper: ClassVar[str] = "arXiv 2508.00553"
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"hiprune.alpha={self.alpha} is out of range: it must be in [0, 1]")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Attention that tokens receive in the middle layer, and in the one that the projector reads."""
        return EncoderAttention(layer=self.shallow, queries="received"), EncoderAttention(queries="received")

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Columns in ascending order."""
        device, valid, n = tokens.ids.device, tokens.valid, tokens.ids.shape[1]
        middle, last = (wide(tokens.read(signal).to(device)).mean(1) for signal in self.signals)
        part, count = parts_of(tokens)
        pictures = [int(layout.parts().max()) + 1 for layout in tokens.layouts]
        shares = [b / p for b, p in zip(tokens.budgets, pictures, strict=True)]
        anchors = torch.tensor([[round(int(s) * self.alpha / 5)] for s in shares], device=device)
        rank = rank_in_part(middle, part, count)
        anchor = (rank < anchors) & valid
        # best first: anchors, then buffers, then the others by the last layer
        later = torch.where(self._beside(tokens, anchor), n + rank, 2 * n + rank_in_part(last, part, count))
        turn = rank_in_part(-torch.where(anchor, rank, later).to(middle.dtype), part, count)
        quota = torch.tensor([[s] for s in shares], device=device, dtype=middle.dtype)
        return columns_of(best(quota - turn, budgets_of(tokens), valid), k)

    def _beside(self, tokens: VisualTokens, anchor: Tensor) -> Tensor:
        """Which tokens are next to an anchor, `[B, N]` bool."""
        tables = [neighbours(layout, self.official) for layout in tokens.layouts]
        width = max(map(len, tables))
        table = np.full((len(tables), width, 4), -1)
        for i, mine in enumerate(tables):
            table[i, : len(mine)] = mine
        ids = tokens.ids.clamp(min=0)
        aims = torch.from_numpy(table).to(ids.device).gather(1, ids[..., None].expand(-1, -1, 4))
        aims = torch.where(anchor[..., None] & (aims >= 0), aims, width).flatten(1)
        marked = torch.zeros(len(ids), width + 1, dtype=torch.bool, device=ids.device).scatter(1, aims, True)
        return marked.gather(1, ids)
