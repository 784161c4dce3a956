"""Budgets for the parts of a picture (crops, frames, windows, bands) and the best tokens of each, without a host sync.

A partition is `part [B, N]` int64, the part of each token; padding belongs to one further part of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.layout import Layout
from vtc.pruners.visual_tokens import VisualTokens

from .ranking import rankable


def parts_of(tokens: VisualTokens, parts: Callable[[Layout], np.ndarray] = Layout.parts) -> tuple[Tensor, int]:
    """Part of each token and the largest number of parts: by default crops and frames.

    Parameters
    ----------
    tokens : VisualTokens
        The candidates.
    parts : callable
        A span's layout to the part of each of its tokens, `[n]` int; newlines may hold anything.

    Returns
    -------
    part : Tensor
        `[B, N]` int64 on the tokens' device; padding holds `count`.
    count : int
        How many parts the row with the most has.
    """
    rows = [parts(layout) for layout in tokens.layouts]
    count = int(max(row.max() for row in rows)) + 1
    return by_id(tokens, rows).masked_fill(~tokens.valid, count), count


def _line(place: np.ndarray, cuts: tuple[int, ...], side: int) -> np.ndarray:
    """Window of each place along one axis, from 0; windows begin anew at every crop."""
    crop = np.searchsorted(cuts, place, "right")
    start = np.maximum(np.array([0, *cuts]), 0)[crop]
    return np.unique(crop * (place.max() + 1) + (place - start) // side, return_inverse=True)[1]


def windows(layout: Layout, side: int) -> np.ndarray:
    """Window of `side x side` tokens (smaller at borders) of each token, `[n]` int64; newlines may be in any."""
    grid, row, col = layout.array.T
    found, start = np.zeros_like(grid), 0
    for i, g in enumerate(layout.grids):
        here = grid == i
        down, across = _line(row[here], g.cuts[0], side), _line(np.maximum(col[here], 0), g.cuts[1], side)
        found[here] = start + down * (across.max() + 1) + across
        start = int(found[here].max()) + 1
    return found


def by_id(tokens: VisualTokens, rows: list[np.ndarray]) -> Tensor:
    """Host numbers of each span's tokens `[n]` at the candidates, `[B, N]` int64."""
    table = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return torch.from_numpy(table).to(tokens.ids.device).gather(1, tokens.ids.clamp(min=0))


def part_sums(x: Tensor, part: Tensor, count: int) -> Tensor:
    """Sum of `x [..., B, N]` over each part, `[..., B, count]`; padding is left out. Of ints `[B, N]` alone."""
    if not x.is_floating_point():
        return x.new_zeros(x.shape[0], count + 1).scatter_add(1, part, x)[:, :count]
    # a matrix product: a GPU's scatter_add of floats differs from run to run
    inside = (part[:, None] == torch.arange(count, device=part.device)[:, None]).to(x)
    return (inside @ x[..., None])[..., 0]


def part_sizes(part: Tensor, count: int) -> Tensor:
    """Tokens of each part, `[B, count]` int64."""
    return part_sums(torch.ones_like(part), part, count)


def per_token(values: Tensor, part: Tensor) -> Tensor:
    """The value `[..., B, count]` of each token's part, `[..., B, N]`; 0 for padding."""
    return torch.nn.functional.pad(values, (0, 1)).gather(-1, part.expand(*values.shape[:-1], -1))


def rank_in_part(score: Tensor, part: Tensor, count: int) -> Tensor:
    """Place of each token in its part by falling `score [B, N]`, from 0: `[B, N]` int64, ties by the lowest index."""
    best = rankable(score).sort(dim=1, descending=True, stable=True).indices
    order = best.gather(1, part.gather(1, best).sort(dim=1, stable=True).indices)  # part by part, best first
    sizes = part_sizes(part, count + 1)
    place = torch.arange(part.shape[1], device=part.device) - per_token(sizes.cumsum(1) - sizes, part.gather(1, order))
    return torch.zeros_like(part).scatter(1, order, place)


def budgets_of(tokens: VisualTokens) -> Tensor:
    """`[B, 1]` int64."""
    return torch.tensor(list(tokens.budgets), device=tokens.ids.device)[:, None]


def best(key: Tensor, budget: Tensor, valid: Tensor) -> Tensor:
    """`[B, N]` bool: the `budget [B, 1]` valid tokens of the largest `key [B, N]`, ties by the lowest index.

    With ``key = quota - rank`` (the quota of the token's part, a real number, and its rank in it) the parts share the
    budget by the largest remainder, and what a part is too small for goes to the others.
    """
    order = rankable(key, valid).sort(dim=1, descending=True, stable=True).indices
    first = torch.arange(key.shape[1], device=key.device) < budget
    return torch.zeros_like(valid).scatter(1, order, first.expand_as(valid)) & valid


def at_least_one(chosen: Tensor, score: Tensor, valid: Tensor) -> Tensor:
    """`chosen [B, N]` bool, with the token of the largest `score` in rows that chose none: no span is left empty."""
    lone = best(score, torch.ones_like(valid[:, :1], dtype=torch.int64), valid)
    return torch.where(chosen.any(1, keepdim=True), chosen, lone)


def within_budgets(index: Tensor, tokens: VisualTokens) -> Tensor:
    """`index [B, k]` with -1 behind each row's budget: what an adaptive method returns where it keeps what is asked."""
    return index.masked_fill(torch.arange(index.shape[1], device=index.device) >= budgets_of(tokens), -1)


def columns_of(chosen: Tensor, k: int, key: Tensor | None = None, exact: bool = True) -> Tensor:
    """The chosen columns first, `[B, k]` int64, in ascending order (of `key [B, N]`); not `exact`: then -1."""
    big = torch.iinfo(torch.int64).max
    place = torch.arange(chosen.shape[1], device=chosen.device).expand(chosen.shape) if key is None else key
    order = place.masked_fill(~chosen, big).sort(dim=1, stable=True).indices[:, :k]
    return order if exact else torch.where(chosen.gather(1, order), order, -1)
