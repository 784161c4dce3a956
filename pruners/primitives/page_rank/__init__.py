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


def page_rank(attention: Iterable[Tensor], start: Tensor, votes: int) -> Tensor:
    """Weighted page rank: `votes` times ``s_j <- sum_i A_ij s_i``, so that who is looked at gets what looks at it.

    Parameters
    ----------
    attention : iterable of Tensor
        A in blocks of rows `[..., m, M]`, row i the attention of query i. It is gone through once a vote.
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
        for rows in attention:
            stop = at + rows.shape[-2]
            found = found + (rank[..., None, at:stop] @ rows)[..., 0, :]
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
    """The attention of some heads in blocks of rows.

    Attributes
    ----------
    queries, keys : Tensor
        `[B, h, M, d]`, the queries scaled.
    size : Tensor, optional
        `[B, M]`: a node counts as so many; by default as one.
    hidden : callable, optional
        Of a slice of rows, which nodes these don't see, `[B, m, M]` bool.
    entries : int
        Of a block.
    room : int
        Bytes of blocks that may be kept for the next vote; the others are made again.
    """

    queries: Tensor
    keys: Tensor
    size: Tensor | None
    hidden: Callable[[slice], Tensor] | None
    entries: int
    room: int
    held: list[Tensor] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.held
        batch, heads, count = self.queries.shape[:3]
        step = max(1, self.entries // (batch * heads * count))
        for start in range(len(self.held) * step, count, step):
            block = self._rows(slice(start, start + step))
            if len(self.held) * step == start and (start + step) * (block.nbytes // block.shape[2]) <= self.room:
                self.held.append(block)
            yield block
            del block  # before the next one is made

    def _rows(self, some: slice) -> Tensor:
        x = self.queries[:, :, some] @ self.keys.transpose(2, 3)
        if self.hidden is not None:
            x.masked_fill_(self.hidden(some)[:, None], torch.finfo(x.dtype).min)  # finite: padding sees nobody
        if self.size is not None:
            x.add_(self.size.to(x.dtype).clamp(min=torch.finfo(x.dtype).tiny).log()[:, None, None])
        return x.softmax(-1)
