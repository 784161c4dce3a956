"""What a greedy choice scores tokens by, kept up lazily: two kinds of scores, which both only fall.

A rule holds the state of all tokens, as tensors, and that of a pool of a few tokens under choice, as numpy arrays: at
that size a call into torch takes longer than what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .rows import Rows

SPANNED = 1e-6  # what is left below it is rounding: the chosen set spans the token, and there is nothing to choose by


class Closest:
    """Scores that fall with the largest cosine to a chosen token.

    Parameters
    ----------
    rows : Rows
        The tokens.
    share : Tensor
        `[N]`, what else a token's score is made of.
    score : callable
        ``score(share, closest)`` of some tokens, in plain arithmetic.
    """

    all_fall: ClassVar[bool] = False  # with a chosen token the scores of those near to it

    def __init__(self, rows: Rows, share: Tensor, score: Callable[[Any, Any], Any]):
        self.twin, self.share, self.score = rows.twin, share, score
        self.closest = torch.full_like(rows.own, -1.0)

    def bounds(self) -> Tensor:
        """Upper bounds of all tokens, `[N]`."""
        return self.score(self.share, self.closest if self.twin is None else self.closest[self.twin])

    def refresh(self, source: Tensor | slice, cosine: Tensor, start: int) -> None:
        """Take in the `cosine` `[n, m]` of some tokens to the chosen ones from `start` on."""
        self.closest[source] = torch.maximum(self.closest[source], cosine.amax(1))

    def gather(self, pool: Tensor, source: Tensor, cosine: Tensor) -> None:
        """Go on with a few tokens, whose state is that of `source`, by the cosines among them, `[n, n]`."""
        self.source, self.cosine = source, cosine.numpy()
        self.pool_share, self.near = self.share[pool].numpy(), self.closest[source].numpy()

    def pooled(self) -> np.ndarray:
        """Scores of the pool, `[n]`."""
        return self.score(self.pool_share, self.near)

    def take(self, place: int) -> None:
        """One of the pool is chosen."""
        np.maximum(self.near, self.cosine[place], out=self.near)

    def store(self) -> None:
        """The pool's state is the tokens'."""
        self.closest[self.source] = torch.from_numpy(self.near)


class Determinant:
    """Scores ``w_i^2 d_i``, where d is what the chosen tokens leave of a token: squares of Cholesky rows are taken off.

    Parameters
    ----------
    rows : Rows
        The tokens.
    weight : Tensor
        `[N]`, w squared.
    steps : int
        How many tokens are chosen.
    """

    all_fall: ClassVar[bool] = True  # with every chosen token

    def __init__(self, rows: Rows, weight: Tensor, steps: int):
        self.twin, self.weight, self.own = rows.twin, weight, rows.own
        self.left = rows.own.clone()
        self.known = rows.own.new_zeros(len(weight), steps)  # e of each token, as far as it is refreshed
        self.factor = rows.own.new_zeros(steps, steps)  # e of the chosen tokens, and their roots of d
        self.count = 0

    def bounds(self) -> Tensor:
        """Upper bounds of all tokens, `[N]`."""
        left = torch.where(self.left > SPANNED, self.left, 0)
        return self.weight * (left if self.twin is None else left[self.twin])

    def refresh(self, source: Tensor | slice, cosine: Tensor, start: int) -> None:
        """Take in the `cosine` `[n, m]` of some tokens to the chosen ones from `start` on."""
        stop = start + cosine.shape[1]
        known, factor = self.known[source, :stop], self.factor[start:stop]
        rest = cosine - known[:, :start] @ factor[:, :start].mT
        square = factor[:, start:stop]
        spanned = square.diagonal() == 0  # such a step changes nothing
        square = square + torch.diag(spanned.to(square.dtype))
        known[:, start:] = torch.linalg.solve_triangular(
            square.mT, rest.masked_fill_(spanned, 0), upper=True, left=False
        )
        self.known[source, start:stop] = known[:, start:]
        self.left[source] = self.own[source] - known.square().sum(1)

    def gather(self, pool: Tensor, source: Tensor, cosine: Tensor) -> None:
        """Go on with a few tokens, whose state is that of `source`, by the cosines among them, `[n, n]`."""
        self.source, self.start = source, self.count
        self.pool_weight, self.near = self.weight[pool].numpy(), self.left[source].numpy()
        self.pool_known, self.cosine = np.ascontiguousarray(self.known[source].numpy().T), cosine.numpy()
        self._drop_spanned()

    def _drop_spanned(self) -> None:
        if self.near.min() <= SPANNED:
            self.near[self.near <= SPANNED] = 0

    def pooled(self) -> np.ndarray:
        """Scores of the pool, `[n]`."""
        return self.pool_weight * self.near

    def take(self, place: int) -> None:
        """One of the pool is chosen."""
        mine, count = float(self.near[place]), self.count
        if mine > SPANNED:
            mine_known = self.pool_known[:count, place].copy()
            e = (self.cosine[place] - mine_known @ self.pool_known[:count]) / mine**0.5
            factor = self.factor.numpy()
            factor[count, :count], factor[count, count] = mine_known, mine**0.5
            self.pool_known[count] = e
            self.near -= np.square(e, out=e)
            self._drop_spanned()
        self.count = count + 1

    def store(self) -> None:
        """The pool's state is the tokens'."""
        made = slice(self.start, self.count)
        self.known[self.source, made] = torch.from_numpy(self.pool_known[made].T)
        self.left[self.source] = torch.from_numpy(self.near)
