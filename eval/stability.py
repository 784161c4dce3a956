"""How much of a method's choice depends on rounding: the same made-up span, computed in slightly other ways.

A method that keeps other tokens because sums were added in another order gives another answer on another card. So each
one chooses for the same made-up signals (``synthetic``) several times, and the kept sets are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtc.models.select import select_tokens
from vtc.pruners import make_pruner
from vtc.pruners.base import Pruner, Stop, VisualTokens, resolve_keep

from .cells import takes_keep
from .synthetic import Made, Sizes, Vary, picture, video

DEPTH, LAST = 32, 22  # LLaVA-1.5's decoder layers, and the encoder layer that its projector reads
EPSILON = 1e-6  # of a relative perturbation
LEAST = 0.98  # overlap that a method promises of the first two
# what a method needs here beside a keep
PARAMS: dict[str, dict[str, Any]] = {
    # random tokens are near to any of the vocabulary's, so that about one in ten belongs to a class
    "embedlens": {"sink": tuple(range(10)), "dead": tuple(range(10, 35))},
    # four times as fast as its 64, and it finds 16 to 160 alike
    "zoo_prune": {"directions": 16},
}
SIZES: dict[str, Sizes] = {
    "explainer": Sizes(heads=6, decoder=192),  # the network that comes with vtc belongs to a model of this size
}


def float64(x: Tensor, _: torch.Generator) -> Tensor:
    """The same numbers in float64, in which the method then computes."""
    return x.double()


def perturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every number off by a normal share of ``EPSILON``."""
    return x * (1 + EPSILON * torch.randn(x.shape, generator=generator))


def bfloat16(x: Tensor, _: torch.Generator) -> Tensor:
    """Rounded to bfloat16, as a model in half precision gives it."""
    return x.bfloat16().float()


CHANGES: dict[str, Vary] = {"float64": float64, "perturbed": perturbed, "bfloat16": bfloat16}


@dataclass(frozen=True)
class Stability:
    """Overlaps of one method at one size.

    Attributes
    ----------
    method : str
        Its name.
    tokens : int
        Tokens of the spans.
    cascades : bool
        Whether its class says that one near tie may decide much.
    overlaps : dict
        Per change (``CHANGES``) the overlap of each draw with what is kept in float32.
    """

    method: str
    tokens: int
    cascades: bool = False
    overlaps: dict[str, list[float]] = field(default_factory=dict)

    def worst(self, change: str) -> float:
        """The least overlap of all draws."""
        return min(self.overlaps[change])

    def mean(self, change: str) -> float:
        """The mean over the draws."""
        return sum(self.overlaps[change]) / len(self.overlaps[change])


def overlap(a: Tensor, b: Tensor) -> float:
    """Share of what is kept that two sets of ids have in common; 1 for two empty ones."""
    larger = max(len(a), len(b))
    return 1.0 if larger == 0 else int(torch.isin(a, b).sum()) / larger


def stops_of(pruner: Pruner) -> list[Stop]:
    """All places in forward order at which `pruner` prunes."""
    return [stop for given in pruner.stops(DEPTH) for stop in pruner.tower_stops(given, LAST)]


@torch.no_grad()
def walk(pruner: Pruner, made: Made) -> list[Tensor]:
    """Ids that are left after each stop of `pruner`, one stop behind the other as in a model, `[k]` int64 each."""
    n = made.layout.tokens
    left, found = torch.arange(n), []
    state: dict[str, dict[str, Any]] = {}
    for stop in stops_of(pruner):
        assert stop.keep is not None, f"{pruner.name} was given no keep"
        budget = resolve_keep(stop.keep, n) if stop.keep != 0 else 0
        if budget == 0:
            left = left[:0]
        elif budget < len(left):
            made.declared = pruner.signals_at(stop)
            tokens = VisualTokens(
                features=made.features(stop.stage, stop.layer)[left][None],
                ids=left[None],
                counts=[len(left)],
                budgets=[budget],
                layouts=[made.layout],
                sample=torch.zeros(1, dtype=torch.int64),
                order=[0],
                span=[0],
                stage=stop.stage,
                layer=stop.layer,
                last=LAST if stop.stage == "vision" else None,
                state=state.setdefault(stop.stage, {}),
                source=made,
            )
            [columns], _, _ = select_tokens(pruner, tokens)
            left = left[columns]
        found.append(left)
    return found


def setting(name: str, keep: int | float) -> Pruner:
    """The method `name` as it is measured."""
    params = PARAMS.get(name, {})
    plain = make_pruner(name, **params)
    try:
        return replace(plain, keep=keep) if takes_keep(plain) else plain
    except ValueError:  # a method that takes fractions only
        return plain


def draw(
    name: str, tokens: int, keep: float, seed: int, changes: Sequence[str] = tuple(CHANGES), copies: bool = False
) -> dict[str, float]:
    """Overlap under each of `changes` of one draw: the least over the method's stops. Odd draws are videos."""
    made = Made((picture, video)[seed % 2](tokens), SIZES.get(name, Sizes()), seed, copies=copies)
    pruner = setting(name, keep)
    plain = walk(pruner, made)
    found = {}
    for change in changes:
        other = walk(setting(name, keep), replace(made, vary=CHANGES[change]))
        found[change] = min((overlap(a, b) for a, b in zip(plain, other, strict=True)), default=1.0)
    return found


def measure(
    names: Sequence[str], tokens: Sequence[int], keep: float, draws: int, changes: Sequence[str] = tuple(CHANGES)
) -> Iterator[Stability]:
    """Measure methods one after the other, one result for each size."""
    for name in names:
        for n in tokens:
            found = [draw(name, n, keep, seed, changes) for seed in range(draws)]
            yield Stability(
                name, n, setting(name, keep).cascades, {change: [f[change] for f in found] for change in changes}
            )
