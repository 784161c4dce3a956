"""The token that is least like its most similar other one, without most of the cosines."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import Rows

NONE = -2.0  # below every cosine
SLACK = 2e-6  # more than rounding: tokens that tie stay in
PIVOTS = 64  # tokens known exactly at first
PROMISING = 32  # and in every round
BLOCK = 128


def most_isolated(rows: Rows, use: Tensor, whole: bool) -> int:
    """Column of the token whose largest cosine to another one is least, the lowest on ties.

    Parameters
    ----------
    rows : Rows
        The tokens.
    use : Tensor
        `[N]` bool, those that count; at least one.
    whole : bool
        Make all cosines: quicker for small pictures.

    Notes
    -----
    The largest cosine to SOME others is a lower bound, and a token whose bound is above another's true value is out.
    Some tokens' true values are found first; then, in turns, those of the most promising tokens, and the cosines of all
    that are still in to a block of columns, spread over the picture. On pictures few are in after the first block; on
    noise, where all tokens are alike, a fifth of all cosines is made.
    """
    if whole:
        cosine = rows.whole.masked_fill(~use, NONE)
        cosine.diagonal().fill_(NONE)
        return int(torch.where(use, cosine.amax(1), float("inf")).argmin())
    search = _Search(rows, use)
    search.look(search.unseen(PIVOTS), None)
    while len(alive := search.alive()):
        search.look(alive[search.near[alive].argsort()[:PROMISING]], None)
        alive = search.alive()
        block = search.unseen(BLOCK)
        if len(block) == 0:  # those that are in have been compared with all
            search.exact[alive] = True
        elif len(alive) > PROMISING:
            search.look(block, alive)
    return int(torch.where(search.exact, search.near, float("inf")).argmin())


class _Search:
    """What is known of each token's largest cosine."""

    def __init__(self, rows: Rows, use: Tensor):
        self.rows, self.use = rows, use
        self.near = torch.where(use, torch.full_like(rows.own, NONE), float("inf"))  # lower bounds
        self.exact = torch.zeros_like(use)
        self.unlike = use.clone()  # not yet compared with all that are in
        self.least = float("inf")

    def alive(self) -> Tensor:
        """Tokens that may be the one, and are not known exactly."""
        return ((self.near <= self.least + SLACK) & ~self.exact).nonzero()[:, 0]

    def unseen(self, count: int) -> Tensor:
        """Some tokens, spread over the picture, that those that are in have not been compared with."""
        left = self.unlike.nonzero()[:, 0]
        return left[:: max(1, len(left) // count)][:count]

    def look(self, columns: Tensor, at: Tensor | None) -> None:
        """Compare `columns` with the tokens `at` (None: all, then the columns are known exactly), for both."""
        unit, largest = self.rows.scaled(columns), torch.full((len(columns),), NONE, dtype=self.near.dtype)
        for part in (torch.arange(len(self.use)) if at is None else at).split(self.rows.chunk):
            found = self.rows.cosines(slice(int(part[0]), int(part[-1]) + 1) if at is None else part, unit)
            found.masked_fill_((part[:, None] == columns) | ~self.use[part, None], NONE)
            # the same number for both, so that two tokens nearest to each other tie
            self.near[part] = torch.maximum(self.near[part], found.amax(1))
            largest = torch.maximum(largest, found.amax(0))
        self.near[columns] = torch.maximum(self.near[columns], largest)
        self.unlike[columns] = False
        if at is None:
            self.exact[columns] = True
            self.least = min(self.least, float(self.near[columns].min()))
