"""Bipartite matching, ToMe's: each token at an even place proposes to its most similar one at an odd place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..merging import channel_blocks, cosine_of, inner, nearest
from ..precision import exact_dtype, settled


def merged_cosine(
    x: Tensor,
    owner: Tensor,
    count: int,
    weight: Tensor,
    some: slice = slice(None),
) -> Tensor:
    """As ``cosine``, of the merged tokens at even places with those at odd places, in float64 without rounding.

    ``settled``, because these comparisons decide what is compared next.

    Parameters
    ----------
    x : Tensor
        `[B, N, D]`; entries that are not finite count as 0.
    owner : Tensor
        `[B, N]` int64: which merged token each one belongs to.
    count : int
        M, how many there are.
    weight : Tensor
        `[B, N]`: how many tokens each one stands for; 0 for padding.
    some : slice
        Which of those at even places; default all.

    Returns
    -------
    Tensor
        `[B, (M + 1) // 2, M // 2]`, or of `some` rows.
    """
    dtype = exact_dtype(x.device)
    found = left = right = x.new_zeros((), dtype=dtype)
    for c in channel_blocks(x.shape[-1], dtype):
        part = x[..., c].detach().to(dtype, copy=True).nan_to_num_(0, 0, 0).mul_(weight[..., None])
        sums = part.new_zeros(part.shape[0], count, part.shape[2])
        sums = sums.scatter_add_(1, owner[..., None].expand_as(part), part)  # a mean's cosine is its sum's
        one, _, _ = more = inner(sums[:, ::2][:, some], sums[:, 1::2])
        found = one if found.dim() == 0 else found.add_(one)
        left, right = left + more[1], right + more[2]
    return settled(cosine_of(found, left, right))


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


def bipartite_match(similarity: Tensor, r: Sequence[int], valid: Tensor, protect: int = 0) -> Match:
    """ToMe's soft matching: each token of A proposes to its most similar token of B, the `r` best proposals merge.

    Parameters
    ----------
    similarity : Tensor
        `[B, A, B]`, of the tokens of A and B.
    r : sequence of int
        Tokens that each row loses; at most half of its unprotected ones do.
    valid : Tensor
        `[B, N]` bool; padding is on the right.
    protect : int
        Tokens in front (a class token: 1) that are not merged, in A or B.
    """
    usable = valid & (torch.arange(valid.shape[1], device=valid.device) >= protect)
    return _accepted(*nearest(similarity, usable[:, 1::2]), r, usable)


def merged_match(x: Tensor, owner: Tensor, whole: Tensor, weight: Tensor, r: Sequence[int], valid: Tensor) -> Match:
    """``bipartite_match`` of merged tokens, some rows of the matrix at a time.

    Parameters
    ----------
    x, owner, weight
        As for ``merged_cosine``.
    whole : Tensor
        `[B, M]` bool: False is like no other, -1.
    r, valid
        As for ``bipartite_match``; `valid` is `[B, M]`.
    """
    rows, columns = (valid.shape[1] + 1) // 2, valid.shape[1] // 2
    size = max(1, x.shape[1] * x.shape[2] // 16 // max(1, columns))  # the matrix is small beside the features
    found = []
    for start in range(0, rows, size):
        some = slice(start, start + size)
        likeness = merged_cosine(x, owner, valid.shape[1], weight, some)
        likeness.masked_fill_(~(whole[:, ::2, None][:, some] & whole[:, None, 1::2]), -1)
        found.append(nearest(likeness, valid[:, 1::2]))
    score, best = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return _accepted(score, best, r, valid)


def _accepted(score: Tensor, best: Tensor, r: Sequence[int], usable: Tensor) -> Match:
    """The matching of proposals `best` with their `score`."""
    score = score.masked_fill(~usable[:, ::2], float("-inf"))
    edges = score.sort(dim=1, descending=True, stable=True).indices
    limit = torch.tensor([[max(0, n)] for n in r], device=usable.device)
    possible = torch.minimum(usable[:, ::2].sum(1, keepdim=True), usable.sum(1, keepdim=True) // 2)
    first = torch.arange(edges.shape[1], device=usable.device) < torch.minimum(limit, possible)
    return Match(edges, best, torch.zeros_like(first).scatter(1, edges, first))
