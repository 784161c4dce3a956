"""p-MoD with random routers of whatever width, and a lender that takes any ratios: for tests of loans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from methods import Setting
from torch import Tensor

from vtc.pruners.base import Loan, Stop
from vtc.pruners.model_facts import ModelFacts
from vtc.pruners.pmod import PMoD, PModRouters
from vtc.pruners.trained.compressor import UNTRAINED

LAYERS = 6


@dataclass(kw_only=True, eq=False)
class Routed(PMoD):
    """With its own stops, where they are given."""

    name: ClassVar[str] = "routed"
    lent: tuple[tuple[int, float], ...] = ()
    weights: str | None = UNTRAINED
    __hash__ = object.__hash__  # settings are cached

    def __str__(self) -> str:
        return "routed" + "".join(f"-{layer}" for layer, _ in self.lent)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        return tuple(Loan(*one) for one in self.lent) if self.lent else super().stops(depth)

    def routers(self, width: int) -> PModRouters:
        """Routers of this width, made once."""
        if self.sizes.get("width") != width:
            with torch.random.fork_rng(), torch.inference_mode(False):
                torch.manual_seed(0)
                network = PModRouters(width, LAYERS)
                for parameter in network.parameters():
                    parameter.data.normal_(0, 0.6 / width**0.5)
            self.use(network, {"width": width, "layers": LAYERS})
        assert isinstance(self._network, PModRouters)
        return self._network

    def check_model(self, model: ModelFacts) -> None:
        """It is made for whatever it meets."""
        self.routers(model.width)

    def gates_of(self, layer: int, states: Tensor) -> Tensor:
        """The formula, written out: what the reference gates by."""
        router = self.routers(states.shape[-1]).routers[layer]
        return 1 + 0.2 * torch.tanh((states * router.weight[0]).sum(-1) + router.bias)


class Of(Setting):
    """The setting of a method that is not registered."""

    def __str__(self) -> str:
        return str(self.pruner)


ROUTED = Of(Routed())  # type: ignore[arg-type]
EVERYWHERE = Of(Routed(lent=((0, 0.6), (1, 0.3), (2, 0.9), (5, 0.04))))  # type: ignore[arg-type]
