"""VisPruner's second half: rounds that remove look-alikes, with a product of what is left in each."""

from __future__ import annotations

import torch
from cases import Shape
from torch import Tensor

from vtc.pruners.vispruner import remove_alike

NAME = "look-alikes"


def make(shape: Shape) -> tuple[Tensor, Tensor]:
    """Features `[B, N, D]` and the list `[B, M]` of those that attention did not choose; M is even."""
    order = shape.rand(shape.batch, shape.tokens).argsort(1)
    return shape.features(), order[:, shape.kept // 2 + shape.kept // 2 % 2 :]


def goal(inputs: tuple[Tensor, Tensor], shape: Shape) -> int:
    """What is left of the list: an even number, as rounds of eight need."""
    return (shape.kept + 1) // 2 // 2 * 2


def theirs(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """The most alike of the even places go, eight at a time."""
    x, rest = inputs
    unit = x / x.norm(dim=-1, keepdim=True)
    left = goal(inputs, shape)
    while rest.shape[1] > left:
        go = min(8, rest.shape[1] - left)
        now = unit.gather(1, rest[..., None].expand(-1, -1, x.shape[-1]))
        best = (now[:, ::2] @ now[:, 1::2].transpose(1, 2)).amax(-1)
        stays = best.argsort(dim=-1, descending=True)[:, go:]
        rest = torch.cat([rest[:, ::2].gather(1, stays), rest[:, 1::2]], 1)
    return rest


def ours(inputs: tuple[Tensor, Tensor], shape: Shape) -> Tensor:
    """By vtc, a row at a time."""
    left = goal(inputs, shape)
    return torch.stack([remove_alike(x[:, None], rest, left, 8) for x, rest in zip(*inputs, strict=True)])
