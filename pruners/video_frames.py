"""Frames of a video span: which frame and which place in it each token has, and how tokens of two frames meet.

A grid of kind ``"frame"`` is a frame (Qwen-VL: one temporal patch of two pictures). A span without any, an image with
or without crops, is ONE frame of all its tokens. Where the model takes each frame as a picture of its own (InternVL),
each is a span, so one frame.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .base import VisualTokens
from .layout import Layout


def spread_order(rows: int, cols: int) -> np.ndarray:
    """`[rows * cols]` int64: the turn of each place of a grid in an order whose every beginning is spread evenly.

    That of an ordered dither (Bayer): the quadrants take turns, and so do the quadrants of each quadrant.
    """
    y, x = np.divmod(np.arange(rows * cols), cols)
    turn = np.zeros(rows * cols, dtype=np.int64)
    for bit in range(max(rows, cols, 2).bit_length()):
        turn = turn * 4 + (x >> bit & 1 ^ y >> bit & 1) * 2 + (y >> bit & 1)
    return turn.argsort(kind="stable").argsort(kind="stable")


def is_video(layout: Layout) -> bool:
    """Whether the span has frames."""
    return any(grid.kind == "frame" for grid in layout.grids)


@functools.lru_cache(maxsize=256)
def _tables(layout: Layout) -> tuple[np.ndarray, int, int]:
    """Frame, place and turn of each token `[n, 3]` (newlines hold anything), frames, places of the largest frame."""
    grid, row, col = layout.array.T
    found = np.zeros((len(grid), 3), dtype=np.int64)
    content = col >= 0
    if is_video(layout):
        widths = np.array([g.cols for g in layout.grids])
        found[:, 0], found[:, 1] = grid, row * widths[grid] + col
        turns = [spread_order(g.rows, g.cols) for g in layout.grids]
        found[content, 2] = np.concatenate(turns)
        return found, len(layout.grids), max(g.rows * g.cols for g in layout.grids)
    found[content, 1] = np.arange(layout.content)
    # the pictures of a span (whole image, mosaic) take turns in proportion to their size
    parts = [(spread_order(g.rows, g.cols) + 0.5) / (g.rows * g.cols) for g in layout.grids]
    found[content, 2] = np.concatenate(parts).argsort(kind="stable").argsort(kind="stable")
    return found, 1, layout.content


@dataclass(frozen=True)
class Frames:
    """Frames of all rows, padded to `T` frames of `P` places.

    Attributes
    ----------
    frame, place, turn : Tensor
        `[B, N]` int64 of each token: its frame, its place there in reading order, and its turn in ``spread_order``.
        Padding holds frame `T`.
    column : Tensor
        `[B, T, P]` int64: the token at each place; 0 where there is none.
    there : Tensor
        `[B, T, P]` bool: whether there is one.
    sizes : sequence of int
        Frames of each row.
    places : sequence of int
        Places of each row's largest frame.
    """

    frame: Tensor
    place: Tensor
    turn: Tensor
    column: Tensor
    there: Tensor
    sizes: Sequence[int]
    places: Sequence[int]

    def spread(self, x: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, T, P, D]`; places without a token hold a copy of the row's first."""
        index = self.column.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, index).unflatten(1, self.column.shape[1:])

    def collect(self, y: Tensor) -> Tensor:
        """`[B, T, P]` to `[B, N]`: the value at each token's place; padding holds anything."""
        slot = self.frame * self.column.shape[2] + self.place
        return y.flatten(1).gather(1, slot.clamp(max=y.shape[1] * y.shape[2] - 1))


def frames_of(tokens: VisualTokens) -> Frames:
    """The frames of `tokens`, without a host sync."""
    device, valid = tokens.ids.device, tokens.valid
    found = [_tables(layout) for layout in tokens.layouts]
    sizes, places = [f[1] for f in found], [f[2] for f in found]
    count, size = max(sizes), max(places)
    table = np.zeros((len(found), max(len(f[0]) for f in found), 3), dtype=np.int64)
    for i, (rows, _, _) in enumerate(found):
        table[i, : len(rows)] = rows
    ids = tokens.ids.clamp(min=0)[..., None].expand(-1, -1, 3)
    frame, place, turn = torch.from_numpy(table).to(device).gather(1, ids).unbind(-1)
    frame = frame.masked_fill(~valid, count)
    slot = torch.where(valid, frame * size + place, count * size)
    column = torch.zeros(len(found), count * size + 1, dtype=torch.long, device=device)
    column = column.scatter(1, slot, torch.arange(ids.shape[1], device=device).expand_as(slot))
    there = torch.zeros_like(column, dtype=torch.bool).scatter(1, slot, True)
    shape = (len(found), count, size)
    # a padded slot is the last one and cut off; what no token reached holds column 0
    return Frames(frame, place, turn, column[:, :-1].view(shape), there[:, :-1].view(shape), sizes, places)


def similarity(x: Tensor, reference: Sequence[int], there: Tensor) -> Tensor:
    """Cosine of each place of frame `t` and the same place of frame ``reference[t]``.

    Parameters
    ----------
    x : Tensor
        `[B, T, P, D]`, any dtype.
    reference : sequence of int
        `T` frames; a frame with itself stands for no comparison.
    there : Tensor
        `[B, T, P]` bool.

    Returns
    -------
    Tensor
        `[B, T, P]` float32; -1 (nothing in common) where either token is missing or nothing is compared.
    """
    found = []
    for t, r in enumerate(reference):  # frame by frame: no float32 copy of the whole video
        if r == t:
            found.append(x.new_full(x.shape[:1] + x.shape[2:3], -1.0, dtype=torch.float32))
            continue
        a, b = x[:, t].float(), x[:, r].float()
        cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-12)
        found.append(torch.where(there[:, t] & there[:, r], cosine, -1.0))
    return torch.stack(found, 1)
