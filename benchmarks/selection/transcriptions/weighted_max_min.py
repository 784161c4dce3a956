"""Weighted max-min diversity (ZOO-Prune) with the whole matrix of distances, a picture at a time."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

from vtc.pruners.primitives.greedy import farthest_point, finite_range

NAME = "weighted_max_min"


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """Features `[B, N, D]` and sensitivities `[B, N]`."""
    return shape.features(), shape.rand(shape.batch, shape.tokens)


def theirs(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """``argmax_i w_i min_{j chosen} (1 - cos(x_i, x_j))``, the first by w.

    The cosines are a product of matrices; the paper's code broadcasts to `[N, N, D]`.
    """
    chosen = []
    for x, raw in zip(*inputs, strict=True):
        unit = x / x.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
        weight = (raw - raw.min()) / (raw.max() - raw.min() + 1e-8)
        free, order = torch.ones_like(raw, dtype=torch.bool), []
        score = weight
        for _ in range(shape.kept):
            order.append(score.masked_fill(~free, float("-inf")).argmax())
            free[order[-1]] = False
            score = weight * distance[torch.stack(order)].amin(0)  # over all chosen, anew at every step
        chosen.append(torch.stack(order))
    return torch.stack(chosen)


def ours(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """By vtc."""
    x, raw = inputs
    return farthest_point(x, shape.kept, weight=finite_range(raw, epsilon=1e-8))
