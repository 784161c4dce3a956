"""Splits spans into their pictures (crops, frames), for methods that choose inside each of them by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .base import VisualTokens


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
