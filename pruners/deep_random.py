"""Any method first and random pruning deep in the decoder, under one budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from vtc.pruners.primitives.best_per_part import within_budgets
from vtc.pruners.primitives.budget_over_stops import scaled_layer, two_stage

from .base import Lent, Merged, Stop
from .inner_method import Around
from .random import Random
from .registry import register_pruner
from .signals import Signal
from .visual_tokens import VisualTokens

HORIZON = 20, 32  # layer and depth in the paper


@register_pruner("deep_random")
@dataclass(kw_only=True)
class DeepRandom(Around):
    """Information horizon, "+ Random" (CVPR 2026, arXiv 2512.07580): a method first, random deep in the decoder.

    Parameters
    ----------
    keep : int or float
        What a decoder layer sees on AVERAGE, per span.
    first : str
        The method that prunes first, by name: any with one stop at the input or decoder stage. The paper uses
        ``divprune`` and ``dart``.
    layer : int, optional
        h: from decoder layer h on a random part of what is left remains. By default the paper's 20 of 32, scaled to the
        depth; ``vtc horizon`` measures where it is.
    tail : int or float, optional
        What remains from h on, a count beside a count and a fraction beside a fraction; 0 drops everything. By default
        a fifth of `keep` (the paper: 38 of 192, 10 or 27 of 64).
    seed : int
        Of the random draw.
    tokens : int, optional
        N, tokens per span; only needed for a count with a first method inside the decoder.
    first_params : dict, optional
        Parameters of the first method.
    official : bool
        Draw in the order of Python's ``random.sample``, see ``random``.

    Notes
    -----
    Stages: the first method's, then decoder. Layer l of L sees n(l) tokens; from ``keep = sum_l n(l) / L`` follows what
    the first method keeps, ``n1 = (keep L - N l1 - tail (L - h)) / (h - l1)`` for one that prunes at layer l1 (0:
    input), see ``budget_over_stops.two_stage``: 284 then 38 tokens at layer 20 of 32 are 192 on average. Costs what
    the first method costs. `keep` is the average and not the last count, so that a sweep compares methods at equal
    compute. The authors renumber positions after every stage; here they stay. Their reported gain of random over the
    first method alone, at equal average, is 0.2 points (DivPrune, Qwen2.5-VL-7B): within the noise of three runs.
    """

    first: str = "divprune"
    layer: int | None = None
    tail: int | float | None = None
    seed: int = 0
    tokens: int | None = None
    first_params: dict[str, Any] | None = None
    official: bool = False

    paper: ClassVar[str] = "arXiv 2512.07580"
    no_keep: ClassVar[str] = "what the first method keeps follows from the average"

    def __post_init__(self) -> None:
        super().__post_init__()
        stops = self._first.stops(HORIZON[1])
        once = len(stops) == 1 and stops[0].stage != "vision" and stops[0].keep is None
        if not once or len(replace(self._first, keep=0.5).stops(HORIZON[1])) != 1:  # some stop again where there is one
            raise ValueError(
                f"deep_random.first={self.first!r} must prune once, at the input or decoder stage; write the stages as "
                "a pipeline instead: 'first(...) + random(layer=..., keep=...)'"
            )
        self._random = Random(seed=self.seed, official=self.official)

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """The first method's where it prunes; random reads nothing."""
        return self.signals if self._is_first(stop.stage, stop.layer) else ()

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The first method's stop and the horizon."""
        (first,) = self._first.stops(depth)
        if self.keep is None:
            return (first,)
        layer = scaled_layer(*HORIZON, depth) if self.layer is None else self.layer
        counts = two_stage(self.keep, depth, layer, self.tail, first.layer or 0, self.tokens)
        return first._replace(keep=counts.first), Stop("decoder", layer, counts.tail)

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged | Lent:
        """The first method's choice, or a random one."""
        if self._is_first(tokens.stage, tokens.layer):
            return self._first.select(tokens, k)
        columns = self._random.select(tokens, k)
        return within_budgets(columns, tokens) if self.adaptive_count else columns

    def _is_first(self, stage: str, layer: int | None) -> bool:
        return stage == self._first.stage and (stage == "input" or layer == getattr(self._first, "layer", None))
