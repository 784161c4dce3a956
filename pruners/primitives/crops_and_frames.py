"""The pictures of a span: its crops and frames, to choose inside each by itself, and a video's frames, to compare them.

A grid of kind ``"frame"`` is a frame of a video (Qwen-VL: one temporal patch of two pictures). For methods that compare
frames (``frames_of``) a span without any, an image with or without crops, is ONE frame of all its tokens; where the
model takes each frame of a video as a picture of its own (InternVL), each is a span, and so one frame.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.layout import Layout
from vtc.pruners.visual_tokens import VisualTokens

from .merging import channel_blocks, take
from .precision import exact_dtype, settled

BLOCK = 1024  # tokens of a video at a time in float32


def equal_shares(total: int, sizes: Sequence[int]) -> list[int]:
    """Split `total` equally, none above its size; what is left over goes to the first ones."""
    shares = [0] * len(sizes)
    while total > 0 and any(s < n for s, n in zip(shares, sizes, strict=True)):
        open_ = [i for i, n in enumerate(sizes) if shares[i] < n]
        each = max(1, total // len(open_))
        for i in open_:
            given = min(each, sizes[i] - shares[i], total)
            shares[i] += given
            total -= given
    return shares


Choice = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def choose_in_frames(tokens: VisualTokens, k: int, score: Tensor, choose: Choice) -> Tensor:
    """Run a choice inside every crop or frame of every span at once, each with an equal share of the span's budget.

    Parameters
    ----------
    tokens : VisualTokens
        The candidates.
    k : int
        ``max(tokens.budgets)``.
    score : Tensor
        `[B, N]`, cut up like the features.
    choose : callable
        Takes features `[F, n, D]`, scores `[F, n]`, valid `[F, n]` and a count, gives columns `[F, count]`.

    Returns
    -------
    Tensor
        `[B, k]` columns of `tokens`, one frame after another. Where the budget is no multiple of their number the first
        ones get one more; one that is smaller than its share leaves the rest to the others. A span into which an
        earlier step pruned holes is one frame.
    """
    parts: list[tuple[int, np.ndarray, int]] = []  # row, its columns, its share
    for row, (n, budget) in enumerate(zip(tokens.counts, tokens.budgets, strict=True)):
        layout = tokens.layouts[row]
        whole = n == layout.content
        frame = layout.parts()[layout.array[:, 2] >= 0] if whole else np.zeros(n, dtype=np.int64)
        inside = [np.flatnonzero(frame == f) for f in np.unique(frame)]
        shares = equal_shares(budget, [len(c) for c in inside])
        parts += [(row, c, share) for c, share in zip(inside, shares, strict=True) if share]
    if all(len(mine) == tokens.counts[row] for row, mine, _ in parts):
        return choose(tokens.features, score, tokens.valid, k)
    width, most = max(len(c) for _, c, _ in parts), max(share for *_, share in parts)
    columns = np.full((len(parts), width), -1)
    order = np.zeros((len(tokens.counts), k), dtype=np.int64)
    filled = [0] * len(tokens.counts)
    for i, (row, mine, share) in enumerate(parts):
        columns[i, : len(mine)] = mine
        order[row, filled[row] : filled[row] + share] = i * most + np.arange(share)
        filled[row] += share
    device = tokens.ids.device
    table = torch.from_numpy(columns).to(device)
    rows = torch.tensor([row for row, *_ in parts], device=device)[:, None]
    index = table.clamp(min=0)
    chosen = choose(tokens.features[rows, index], score[rows, index], table >= 0, most)
    return index.gather(1, chosen).view(-1)[torch.from_numpy(order).to(device)]


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
def _tables(layout: Layout, grids: bool) -> tuple[np.ndarray, int, int]:
    """Frame, place and turn of each token `[n, 3]` (newlines hold anything), frames, places of the largest frame."""
    grid, row, col = layout.array.T
    found = np.zeros((len(grid), 3), dtype=np.int64)
    content = col >= 0
    if grids or is_video(layout):
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
        return take(x, self.column.flatten(1)).unflatten(1, self.column.shape[1:])

    def collect(self, y: Tensor) -> Tensor:
        """`[B, T, P]` to `[B, N]`: the value at each token's place; padding holds anything."""
        slot = self.frame * self.column.shape[2] + self.place
        return y.flatten(1).gather(1, slot.clamp(max=y.shape[1] * y.shape[2] - 1))


def frames_of(tokens: VisualTokens, grids: bool = False) -> Frames:
    """The frames of `tokens`, without a host sync; with `grids` thumbnail and mosaic are frames of their own."""
    device, valid = tokens.ids.device, tokens.valid
    found = [_tables(layout, grids) for layout in tokens.layouts]
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


def similarity(x: Tensor, reference: Sequence[int], frames: Frames) -> Tensor:
    """Cosine of each place of frame `t` and the same place of frame ``reference[t]``.

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`, any dtype.
    reference : sequence of int
        `T` frames; a frame with itself stands for no comparison.
    frames : Frames
        Where the tokens are.

    Returns
    -------
    Tensor
        `[B, T, P]` float64 without its rounding, so that frames that repeat are equal; -1 (nothing in common) where
        either token is missing or nothing is compared.
    """
    compared = [t for t, r in enumerate(reference) if r != t]
    dtype = exact_dtype(x.device)
    there, column = frames.there, frames.column
    found = x.new_full(there.shape, -1.0, dtype=dtype)
    some = max(1, BLOCK // (len(x) * there.shape[2]))  # frames at a time: no copy of the whole video
    for start in range(0, len(compared), some):
        here = torch.tensor(compared[start : start + some], device=x.device)
        other = torch.tensor([reference[t] for t in compared[start : start + some]], device=x.device)
        here_x, other_x = (take(x.detach(), column[:, at].flatten(1)) for at in (here, other))
        product = left = right = x.new_zeros((), dtype=dtype)
        for c in channel_blocks(x.shape[-1], dtype):
            a, b = here_x[..., c].to(dtype), other_x[..., c].to(dtype)
            product = product + (a * b).sum(-1)
            left, right = left + a.square().sum(-1), right + b.square().sum(-1)
        cosine = settled(product / (left.sqrt() * right.sqrt()).clamp(min=1e-12)).unflatten(1, (-1, there.shape[2]))
        both = there.index_select(1, here) & there.index_select(1, other)
        found.index_copy_(1, here, torch.where(both, cosine, -1.0))
    return found
