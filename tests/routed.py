"""p-MoD with random routers of whatever width, and a lender that takes any ratios: for tests of loans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from methods import Setting
from torch import Tensor

import vtc
from vtc.pruners.base import Loan, Stop
from vtc.pruners.pmod import PModRouters, PMoD

LAYERS = 6


@dataclass(kw_only=True, eq=False)
class Routed(PMoD):
    """With its own stops, where they are given."""

    name: ClassVar[str] = "routed"
    lent: tuple[tuple[int, float], ...] = ()
    __hash__ = object.__hash__  # settings are cached

    def __str__(self) -> str:
        return "routed" + "".join(f"-{layer}" for layer, _ in self.lent)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        return tuple(Loan(*one) for one in self.lent) if self.lent else super().stops(depth)

    def network(self, width: int) -> PModRouters:
        """Routers of this width, made once."""
        if self.routers is None or self.routers.routers[0].in_features != width:
            with torch.random.fork_rng(), torch.inference_mode(False):
                torch.manual_seed(0)
                self.routers = PModRouters(width, LAYERS)
                for parameter in self.routers.parameters():
                    parameter.data.normal_(0, 0.6 / width**0.5)
        return self.routers

    def gate(self, tokens: vtc.VisualTokens) -> Tensor:
        self.network(tokens.features.shape[-1])
        return super().gate(tokens)

    def gates_of(self, layer: int, states: Tensor) -> Tensor:
        """The formula, written out: what the reference gates by."""
        router = self.network(states.shape[-1]).routers[layer]
        return 1 + 0.2 * torch.tanh((states * router.weight[0]).sum(-1) + router.bias)


class Of(Setting):
    """The setting of a method that is not registered."""

    def __str__(self) -> str:
        return str(self.pruner)


ROUTED = Of(Routed())  # type: ignore[arg-type]
EVERYWHERE = Of(Routed(lent=((0, 0.6), (1, 0.3), (2, 0.9), (5, 0.04))))  # type: ignore[arg-type]
