"""Data-parallel ranks: single-threaded processes that average their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process among the ``count`` that train together."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes logs and checkpoints."""
        return self.index == 0

    def sum_(self, tensor: Tensor) -> None:
        """Add up a tensor over the ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks (a missing one counts as zero)."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        self.sum_(flat)
        flat /= self.count
        for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = piece.view_as(parameter)
