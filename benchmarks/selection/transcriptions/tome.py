"""Bipartite merging (ToMe) in rounds: a product of even with odd places, sums of features, then their mean."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

import vtc
from vtc.pruners.layout import Layout
from vtc.pruners.visual_tokens import VisualTokens

NAME = "tome"


def rounds(shape: Shape) -> list[int]:
    """How many tokens go in each round: a tenth of those there."""
    left, made = shape.tokens, []
    while left > shape.kept:
        made.append(min(left // 2, max(1, int(0.1 * left)), left - shape.kept))
        left -= made[-1]
    return made


def make(shape: Shape) -> Tensor:
    """Features `[B, N, D]`."""
    return shape.features()


def theirs(x: Tensor, shape: Shape) -> Tensor:
    """Merged features `[B, k, D]`, in the order of their last members of B behind unmerged ones of A."""
    size = torch.ones_like(x[..., :1])
    for r in rounds(shape):
        unit = x / x.norm(dim=-1, keepdim=True)
        likeness = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        best, partner = likeness.max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        gone, stays = order[:, :r], order[:, r:]
        into = partner[..., None].gather(1, gone)
        made = []
        for values in (x * size, size):
            a, b, width = values[:, ::2], values[:, 1::2], values.shape[-1]
            moved = a.gather(1, gone.expand(-1, -1, width))
            b = b.scatter_reduce(1, into.expand(-1, -1, width), moved, "sum")
            made.append(torch.cat([a.gather(1, stays.expand(-1, -1, width)), b], 1))
        x, size = made[0] / made[1], made[1]
    return x


def ours(x: Tensor, shape: Shape) -> Tensor:
    """By vtc, in reading order."""
    rows, n = x.shape[:2]
    tokens = VisualTokens(
        features=x,
        ids=torch.arange(n).expand(rows, -1),
        counts=[n] * rows,
        budgets=[shape.kept] * rows,
        layouts=[Layout.line(n)] * rows,
        sample=torch.arange(rows),
        order=[0] * rows,
    )
    return vtc.parse("tome", keep=shape.kept)[0].select(tokens, shape.kept).features


def agree(theirs: Tensor, ours: Tensor) -> float:
    """Share of our merged vectors that are among theirs, of the worst row.

    From the second round on they differ: the plain method puts unmerged tokens of A in front, which makes other pairs
    of even and odd places, and half precision rounds it in every round.
    """
    shares = []
    for a, b in zip(theirs.float(), ours.float(), strict=True):
        nearest = torch.cdist(b, a).amin(1)
        shares.append((nearest <= 1e-3 * b.norm(dim=-1)).float().mean().item())
    return min(shares)
