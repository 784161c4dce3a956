"""Muon for the matrices inside transformer layers, AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .distributed_ranks import Ranks

_MOMENTUM = 0.95
_MATRIX_DECAY = 0.02
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)


class MatrixOptimizer:
    """Muon: momentum whose matrices are replaced by the nearest orthogonal ones.

    Matrices of one shape are stacked, and the ranks share the work of orthogonalising them.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], ranks: Ranks) -> None:
        self._ranks = ranks
        self._groups: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self._groups[tuple(matrix.shape)].append(matrix)
        self._momentum = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update all matrices."""
        for shape, group in self._groups.items():
            gradients = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in group])
            momentum = self._momentum[shape].lerp_(gradients, 1 - _MOMENTUM)
            wanted = gradients.lerp(momentum, _MOMENTUM)
            update = torch.zeros_like(wanted)
            mine = list(range(self._ranks.index, len(group), self._ranks.count))
            if mine:
                update[mine] = _orthogonalise(wanted[mine])
            self._ranks.sum_(update)
            scale = learning_rate * max(1.0, shape[0] / shape[1]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.mul_(1 - learning_rate * _MATRIX_DECAY).add_(change, alpha=-scale)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the momentum by shape."""
        return {str(shape): momentum for shape, momentum in self._momentum.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for shape, momentum in self._momentum.items():
            momentum.copy_(state[str(shape)])


class MixedOptimizer:
    """Both optimizers behind one step.

    Parameters
    ----------
    parameters : sequence of nn.Parameter
        All trained parameters.
    matrices : sequence of nn.Parameter
        Those of them that Muon updates.
    learning_rate, matrix_learning_rate : float
        Peak rates of AdamW and of Muon.
    ranks : Ranks
        The processes that train together.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        matrices: Sequence[nn.Parameter],
        learning_rate: float,
        matrix_learning_rate: float,
        ranks: Ranks,
    ) -> None:
        self.parameters = list(parameters)
        self._ranks = ranks
        self._rates = (learning_rate, matrix_learning_rate)
        self._muon = MatrixOptimizer(matrices, ranks)
        in_muon = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in in_muon]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": 0.02},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)

    def step(self, loss: Tensor, factor: float) -> None:
        """Back-propagate a loss and update at ``factor`` times the peak rates."""
        self._adam.zero_grad()
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        self._ranks.average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self._adam.param_groups:
            group["lr"] = self._rates[0] * factor
        self._adam.step()
        self._muon.step(self._rates[1] * factor)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers."""
        return {"adam": self._adam.state_dict(), "muon": self._muon.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._adam.load_state_dict(state["adam"])
        self._muon.load_state_dict(state["muon"])


def _orthogonalise(matrices: Tensor) -> Tensor:
    """Push all singular values of a stack of matrices towards 1 (five Newton-Schulz steps)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.transpose(1, 2) if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.transpose(1, 2) if tall else x).float()
