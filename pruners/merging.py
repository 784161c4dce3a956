"""Merging primitives: batched, deterministic, without a host sync, in float32. Ties go to the lowest index.

Sums over groups are matrix products with a 0/1 matrix and not scatters, whose order on a GPU differs from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .precision import wide, wide_dtype

FAR = 1e9  # a distance that is not finite
CHANNELS = 1024  # at a time in float32, so that half precision needs no second copy of the features


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index [B, K]` of `x [B, N, D]`, `[B, K, D]`."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def channel_blocks(width: int) -> list[slice]:
    """Slices of `width` channels that are taken to float32 together."""
    return [slice(start, start + CHANNELS) for start in range(0, width, CHANNELS)]


def combine(weights: Tensor, x: Tensor) -> Tensor:
    """Weighted sums of the tokens `x [B, N, D]`, `[B, K, D]` float32; entries that are not finite count as 0."""
    made = weights.new_empty(*weights.shape[:2], x.shape[-1], dtype=wide_dtype(x))
    weights = weights.to(made)
    for c in channel_blocks(x.shape[-1]):
        made[..., c] = weights @ x[..., c].to(made.dtype, copy=True).nan_to_num_(0, 0, 0)
    return made


def add_weighted(made: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`made [B, K, D]` float32, to which the tokens `x [B, K, D]` are added by `weight [B, K, 1]`."""
    for c in channel_blocks(x.shape[-1]):
        made[..., c] += wide(x[..., c]) * weight
    return made


def inner(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of `a [B, N, D]` and `b [B, K, D]`, `[B, N, K]` float32, and the squared norms of each."""
    found = left = right = a.new_zeros((), dtype=wide_dtype(a))
    for c in channel_blocks(a.shape[-1]):
        u, v = wide(a[..., c].detach()), wide(b[..., c].detach())
        found = torch.baddbmm(found.expand(*u.shape[:2], v.shape[1]), u, v.transpose(1, 2))
        left, right = u.square().sum(-1) + left, v.square().sum(-1) + right
    return found, left, right


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of `a [B, N, D]` and `b [B, K, D]`, `[B, N, K]` float32; -1 where it is not finite."""
    found, left, right = inner(a, b)
    scale = left.sqrt()[..., None] * right.sqrt()[:, None]
    return found.div_(scale.clamp_(min=1e-12)).nan_to_num_(-1, -1, -1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances over D of `a [B, N, D]` and `b [B, K, D]`, `[B, N, K]` float32; 1e9 if not finite."""
    found, left, right = inner(a, b)
    found.mul_(-2).add_(left[..., None]).add_(right[:, None])
    return found.clamp_(min=0).div_(a.shape[-1]).nan_to_num_(FAR, FAR)


def nearest(similarity: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The best column of each row.

    Parameters
    ----------
    similarity : Tensor
        `[B, N, K]`.
    allowed : Tensor
        `[B, K]` or `[B, N, K]` bool: the columns to choose from.

    Returns
    -------
    best : Tensor
        `[B, N]`, the largest similarity; -inf where no column is allowed.
    column : Tensor
        `[B, N]` int64, the lowest column that has it.
    """
    allowed = allowed[:, None] if allowed.dim() == 2 else allowed
    similarity = similarity.masked_fill(~allowed, float("-inf"))
    best = similarity.amax(-1, keepdim=True)
    return best[..., 0], (similarity == best).to(torch.int8).argmax(-1)


def largest(x: Tensor, m: int) -> Tensor:
    """Bool mask of the `m` largest entries of the last dimension, the lowest of equal ones, never -inf."""
    m = min(m, x.shape[-1])
    least = x.topk(m, dim=-1).values[..., -1:]  # the value is defined on every device, the order of equal ones is not
    above, equal = x > least, (x == least) & (x > float("-inf"))
    room = m - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))


def membership(group: Tensor, count: int, member: Tensor, weight: Tensor | None = None) -> Tensor:
    """`[B, count, N]` float32: 1 (or the token's `weight [B, N]`) where token n is a `member` of a group, else 0."""
    inside = (group[:, None] == torch.arange(count, device=group.device)[:, None]) & member[:, None]
    return inside.float() if weight is None else inside * wide(weight)[:, None]


class Match(NamedTuple):
    """A bipartite matching of the tokens at even places (A) with those at odd places (B).

    Attributes
    ----------
    edges : Tensor
        `[B, A]` int64: the places in A (0 is column 0, 1 is column 2 ...) by falling similarity to their best match.
    best : Tensor
        `[B, A]` int64: the place in B that each token of A is most similar to.
    merged : Tensor
        `[B, A]` bool: whether the token of A is one of the `r` most similar and merges.
    """

    edges: Tensor
    best: Tensor
    merged: Tensor


def bipartite_match(metric: Tensor, r: Sequence[int], valid: Tensor, protect: int = 0) -> Match:
    """ToMe's soft matching: each token of A proposes to its most similar token of B, the `r` best proposals merge.

    Parameters
    ----------
    metric : Tensor
        `[B, N, d]`, compared by cosine.
    r : sequence of int
        Tokens that each row loses; at most half of its unprotected ones do.
    valid : Tensor
        `[B, N]` bool; padding is on the right.
    protect : int
        Tokens in front (a class token: 1) that are not merged, in A or B.
    """
    similarity = cosine(metric[:, ::2], metric[:, 1::2])
    free = torch.arange(metric.shape[1], device=metric.device) >= protect
    usable = valid & free
    score, best = nearest(similarity, usable[:, 1::2])
    score = score.masked_fill(~usable[:, ::2], float("-inf"))
    edges = score.sort(dim=1, descending=True, stable=True).indices
    limit = torch.tensor([[max(0, n)] for n in r], device=metric.device)
    possible = torch.minimum(usable[:, ::2].sum(1, keepdim=True), usable.sum(1, keepdim=True) // 2)
    first = torch.arange(edges.shape[1], device=metric.device) < torch.minimum(limit, possible)
    return Match(edges, best, torch.zeros_like(first).scatter(1, edges, first))


def merge_matched(x: Tensor, size: Tensor, match: Match) -> tuple[Tensor, Tensor]:
    """Size-weighted means of a matching.

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`.
    size : Tensor
        `[B, N]` float32: how many tokens each one already stands for.
    match : Match
        Who merges with whom.

    Returns
    -------
    x : Tensor
        `[B, N // 2, D]` float32: the tokens of B, each the mean of itself and those that merged into it.
    size : Tensor
        `[B, N // 2]` float32: how many they stand for now.
    """
    b, size_b = x[:, 1::2], size[:, 1::2]
    pull = membership(match.best, b.shape[1], match.merged, size[:, ::2])
    total = size_b + pull.sum(2)
    made = add_weighted(combine(pull, x[:, ::2]), b, size_b[..., None])
    return made.div_(total[..., None].clamp(min=1)), total  # padding has none
