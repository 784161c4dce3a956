"""Max-sum diversity (ToDRE) with a column of cosines a step, a picture at a time; its authors published no code."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

from vtc.pruners.primitives.greedy import max_sum

NAME = "max_sum"


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """Features `[B, N, D]` and the class token's attention `[B, N]`."""
    return shape.features(), shape.rand(shape.batch, shape.tokens)


def theirs(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """First the largest attention, then ``argmin_i sum_{j chosen} cos(x_i, x_j)``."""
    chosen = []
    for x, start in zip(*inputs, strict=True):
        unit = x.float()
        unit = unit / unit.norm(dim=1, keepdim=True)
        order, total = [start.argmax()], torch.zeros_like(start)
        while len(order) < shape.kept:
            total = total + unit @ unit[order[-1]]
            total[order[-1]] = float("inf")
            order.append(total.argmin())
        chosen.append(torch.stack(order))
    return torch.stack(chosen)


def ours(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """By vtc."""
    x, start = inputs
    return max_sum(x, shape.kept, start)
