"""Marginal relevance (IDPruner) with the whole matrix of cosines, a picture at a time."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

from vtc.pruners.primitives.greedy import finite_range, mmr

NAME = "mmr"


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """Features `[B, N, D]` and raw importance `[B, N]`."""
    return shape.features(), shape.rand(shape.batch, shape.tokens)


def theirs(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """``argmax_i imp_i / 2 - max_{j chosen} cos(x_i, x_j) / 2``, the first by importance."""
    chosen = []
    for x, raw in zip(*inputs, strict=True):
        unit = x.float()
        unit = unit / (unit.norm(dim=1, keepdim=True) + 1e-8)
        cosine = unit @ unit.T
        importance = (raw - raw.min()) / (raw.max() - raw.min() + 1e-6)
        nearest, free, order = torch.full_like(raw, -2), torch.ones_like(raw, dtype=torch.bool), []
        score = importance
        while len(order) < shape.kept:
            best = score.masked_fill(~free, float("-inf")).argmax()
            order.append(best)
            free[best] = False
            nearest = torch.maximum(nearest, cosine[:, best])
            score = 0.5 * importance - 0.5 * nearest
        chosen.append(torch.stack(order))
    return torch.stack(chosen)


def ours(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """By vtc."""
    x, raw = inputs
    return mmr(x, finite_range(raw), shape.kept, 0.5)
