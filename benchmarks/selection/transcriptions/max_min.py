"""Max-min diversity (DivPrune) with the whole matrix of distances, a picture at a time."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

from vtc.pruners.primitives.greedy import farthest_point

NAME = "max_min"


def make(shape: Shape) -> Tensor:
    """Features `[B, N, D]`."""
    return shape.features()


def theirs(inputs: Tensor, shape: Shape) -> Tensor:
    """First the token farthest from its nearest other one, then the farthest from those chosen."""
    chosen = []
    for x in inputs:
        unit = x / x.norm(dim=1, keepdim=True)
        distance = 1 - unit @ unit.T
        order = [distance.topk(2, dim=0, largest=False).values[1].argmax()]
        while len(order) < shape.kept:
            order.append(distance[torch.stack(order)].amin(0).argmax())  # over all chosen, anew at every step
        chosen.append(torch.stack(order))
    return torch.stack(chosen)


def ours(inputs: Tensor, shape: Shape) -> Tensor:
    """By vtc."""
    return farthest_point(inputs, shape.kept)
