"""Page rank on the graph of attention, whose matrices are made in blocks of rows.

In: queries and keys of nodes.
Out: ranks of the nodes, head by head and over the heads.
Uses: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

VARIANCE = 0.01, 0.7  # of a head's importance over its mean: heads in this range are heard


def page_rank(attention: Iterable[tuple[Tensor, Tensor | float]], start: Tensor, votes: int) -> Tensor:
    """Weighted page rank: `votes` times ``s_j <- sum_i A_ij s_i``, so that who is looked at gets what looks at it.

    Parameters
    ----------
    attention : iterable of (Tensor, Tensor or float)
        A in blocks of rows `[..., m, M]`, row i the attention of query i, beside what each row is to be multiplied by,
        `[..., m]`. It is gone through once a vote.
    start : Tensor
        `[..., M]`, s at first.
    votes : int
        How often.

    Returns
    -------
    Tensor
        `[..., M]`, of the same sum where the rows of A sum to 1.
    """
    rank = start
    for _ in range(votes):
        found, at = torch.zeros_like(start), 0
        for rows, share in attention:
            stop = at + rows.shape[-2]
            found = found + ((rank[..., at:stop] * share)[..., None, :] @ rows)[..., 0, :]
            at = stop
        rank = found
    return rank


def head_variance(rank: Tensor, present: Tensor) -> Tensor:
    """Sample variance of `rank [B, H, M]` over its mean, among the tokens `present [B, M]` bool: `[B, H]`."""
    n, inside = present.sum(-1)[:, None], present[:, None]
    mean = (rank * inside).sum(-1) / n
    relative = rank / mean.clamp(min=torch.finfo(rank.dtype).tiny)[..., None]
    return ((relative - 1).square() * inside).sum(-1) / (n - 1).clamp(min=1)


def over_heads(rank: Tensor, present: Tensor) -> Tensor:
    """Root mean square of `rank [B, H, M]` over the heads whose variance is in range, else over all: `[B, M]`."""
    variance = head_variance(rank, present)
    heard = (variance >= VARIANCE[0]) & (variance <= VARIANCE[1])
    heard = (heard | ~heard.any(1, keepdim=True))[..., None]
    return ((rank.square() * heard).sum(1) / heard.sum(1)).sqrt()


@dataclass
class Attention:
    """Exponents of the attention of some heads in blocks of rows, each with its nodes' sizes over what they sum up to.

    Attributes
    ----------
    queries, keys : Tensor
        `[B, h, M, d]`, the queries scaled.
    size : Tensor
        `[B, M]`.
    hidden : callable, optional
        Of a slice of rows, which nodes these don't see, `[B, m, M]` bool.
    entries : int
        Of a block.
    holds : bool
        Whether blocks are kept for the next vote, or made again.
    """

    queries: Tensor
    keys: Tensor
    size: Tensor
    hidden: Callable[[slice], Tensor] | None
    entries: int
    holds: bool
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.held:
            yield from self.held
            return
        batch, heads, count = self.queries.shape[:3]
        step = max(1, self.entries // (batch * heads * count))
        for start in range(0, count, step):
            block = self._rows(slice(start, start + step))
            if self.holds:
                self.held.append(block)
            yield block
            del block  # before the next one is made

    def _rows(self, some: slice) -> tuple[Tensor, Tensor]:
        x = self.queries[:, :, some] @ self.keys.transpose(2, 3)
        if self.hidden is not None:
            x.masked_fill_(self.hidden(some)[:, None], float("-inf"))
        x.sub_(x.amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)).exp_()  # padding sees nobody
        size = self.size[:, None].to(x.dtype)
        total = (x @ size[..., None])[..., 0].clamp_(min=torch.finfo(x.dtype).tiny)
        return x, size[..., some] / total
