"""Greedy MAP of a determinantal point process (CDPruner) on the whole kernel, all pictures at once."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

from vtc.pruners.primitives.greedy import dpp_map

NAME = "dpp"


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """Features `[B, N, D]` and relevance `[B, N]`."""
    return shape.features(), shape.rand(shape.batch, shape.tokens) + 0.05


def theirs(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """Incremental Cholesky rows of ``w_i cos(x_i, x_j) w_j``."""
    x, weight = inputs
    unit = (x / x.norm(dim=-1, keepdim=True)).float()
    kernel = weight[:, :, None] * (unit @ unit.mT) * weight[:, None]
    left = kernel.diagonal(dim1=1, dim2=2).clone()
    rows, every = torch.zeros(shape.kept, *left.shape), torch.arange(len(x))
    order = []
    for step in range(shape.kept):
        best = left.argmax(-1)
        order.append(best)
        known = (rows[:step, every, best][..., None] * rows[:step]).sum(0) if step else 0
        rows[step] = (kernel[every, best] - known) / left[every, best].sqrt()[:, None]
        left = left - rows[step].square()
        left[every, best] = float("-inf")
    return torch.stack(order, 1)


def ours(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """By vtc."""
    x, weight = inputs
    return dpp_map(x, shape.kept, None, weight)
