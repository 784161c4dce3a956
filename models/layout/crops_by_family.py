"""Crops of one picture, told by each family's prompt or pixels: the functions that ``families`` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from vtc.pruners.layout import Grid, Layout

SMALL = 32  # side to which crops are averaged to compare them
Crops = tuple[list[int], tuple[int, int]]  # spans, the thumbnail first, and rows and columns of the crops
UNLIKE = 0.5  # of the thumbnail's variance: farther from it no mosaic is its picture


@dataclass
class Sample:
    """The spans of one row of the batch, in sequence order.

    Attributes
    ----------
    spans : list of int
        Their index in the batch.
    starts, ends : list of int
        First column of each, and the one behind its last.
    ids : list of int or None
        Token ids of the row; None where the model was given embeddings.
    small : callable
        Some spans as small pictures `[n, C, s, s]` on the CPU; None if unknown.
    """

    spans: list[int]
    starts: list[int]
    ends: list[int]
    ids: list[int] | None
    small: Callable[[Sequence[int]], Tensor | None]


@dataclass
class Picture:
    """One picture: its spans, the thumbnail first and then the crops in reading order, and the layout of them all.

    ``ids[j]`` are the ids of span j's tokens in that layout; ``owner`` and ``own`` lead back: to j, and to the token's
    id in that span.
    """

    spans: list[int]
    layout: Layout
    ids: np.ndarray
    owner: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, spans: list[int], grid: Grid, down: int, across: int) -> Picture:
        """A thumbnail of `grid` and ``down x across`` crops of the same size."""
        a, b = grid.rows, grid.cols
        cuts = tuple(range(a, down * a, a)), tuple(range(b, across * b, b))
        layout = Layout((Grid(a, b, "base"), Grid(down * a, across * b, "mosaic", cuts=cuts)))
        mosaic = a * b + np.arange(down * across * a * b).reshape(down, a, across, b)
        ids = np.concatenate([np.arange(a * b)[None], mosaic.transpose(0, 2, 1, 3).reshape(-1, a * b)])
        back = ids.reshape(-1).argsort()
        return cls(spans, layout, ids, back // (a * b), back % (a * b))


def touching(sample: Sample) -> list[Crops]:
    """InternVL: the tiles of a picture stand side by side, the thumbnail last; their grid is that of the pixels."""
    found: list[Crops] = []
    for run in _runs(sample, [b == a for a, b in zip(sample.ends, sample.starts[1:], strict=False)]):
        small = sample.small(run) if len(run) > 2 else None
        grid = None if small is None else tile_grid(small)
        if grid is not None:
            found.append(([run[-1], *run[:-1]], grid))
    return found


def _runs(sample: Sample, joined: list[bool]) -> list[list[int]]:
    """The spans in runs; ``joined[i]`` says whether those at i and i + 1 belong together."""
    runs = [sample.spans[:1]]
    for span, one in zip(sample.spans[1:], joined, strict=True):
        if one:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


def tile_grid(small: Tensor) -> tuple[int, int] | None:
    """Rows and columns in which tiles look like the thumbnail behind them, `[n + 1, C, s, s]`; None if none do."""
    *_, thumbnail = small
    tiles, n = small[:-1], len(small) - 1
    shapes = [(r, n // r) for r in range(1, n + 1) if n % r == 0]
    errors = []
    for down, across in shapes:
        mosaic = tiles.unflatten(0, (down, across)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        errors.append(float((avg_pool2d(mosaic, (down, across)) - thumbnail).square().mean()))
    best = int(np.argmin(errors))
    spread = float((thumbnail - thumbnail.mean((1, 2), keepdim=True)).square().mean())
    return shapes[best] if errors[best] <= UNLIKE * spread else None


def marked(sample: Sample) -> list[Crops]:
    r"""Idefics3, SmolVLM: a mark before each crop, a line break behind each row, the thumbnail last, the mark again.

    ``<mark><row_1_col_1>..<mark><row_1_col_2>..\n<mark><row_2_col_1>.. \n\n<mark><global-img>..<mark>``; which token
    the mark is, tells the one behind the sample's last picture.
    """
    ids = sample.ids
    if ids is None or sample.ends[-1] >= len(ids):
        return []
    mark, found = ids[sample.ends[-1]], []
    gaps = [ids[a:b] for a, b in zip(sample.ends, sample.starts[1:], strict=False)]
    breaks = dict(zip(sample.spans[1:], (gap[:1] != [mark] for gap in gaps), strict=True))
    for run in _runs(sample, [gap.count(mark) == 1 for gap in gaps]):
        rows = [1]
        for span in run[1:]:
            if breaks[span]:
                rows.append(0)
            rows[-1] += 1
        *crops, last = rows
        if len(set(crops)) == 1 == last:
            found.append(([run[-1], *run[:-1]], (len(crops), crops[0])))
    return found


def small_crops(pixels: Any) -> Tensor | None:
    """A model's `pixel_values [n, C, H, W]`, averaged to `[n, C, s, s]`; None for anything else."""
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        return None
    return adaptive_avg_pool2d(pixels.float(), (min(SMALL, pixels.shape[2]), min(SMALL, pixels.shape[3])))


def join_small(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Small crops of several calls, in order; None if any is unknown or of another size."""
    known = [p for p in parts if p is not None]
    same = len(known) == len(parts) and len({p.shape[1:] for p in known}) == 1
    return torch.cat(known) if same else None
