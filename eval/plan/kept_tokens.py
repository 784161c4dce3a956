"""What each layer sees under a pipeline, by the pipeline's own stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vtc.models.adapter import Adapter
from vtc.models.layout.model_parts import Parts
from vtc.pruners.base import Loan, Pruner, Stop, resolve_keep
from vtc.pruners.signals import QuestionState


@dataclass(frozen=True)
class Kept:
    """Visual tokens by layer.

    Attributes
    ----------
    per_layer : tuple of int
        Of each decoder layer.
    tower_shares : tuple of float
        Which part of its tokens each layer of the tower sees; empty: all.
    stops : tuple
        Each method with its stop, the tokens there of each span (at a loan of the sample) and what it keeps of them.
    last : int
        What is left behind the last stop. What went round a layer is.
    """

    per_layer: tuple[int, ...]
    tower_shares: tuple[float, ...]
    stops: tuple[tuple[Pruner, Stop, tuple[int, ...], tuple[int, ...]], ...]
    last: int

    @property
    def asks(self) -> bool:
        """Whether a method has the language model read the question alone first."""
        return any(isinstance(s, QuestionState) for pruner, stop, *_ in self.stops for s in pruner.signals_at(stop))


def unpruned(lengths: Sequence[int], depth: int) -> Kept:
    """All tokens everywhere."""
    return Kept((sum(lengths),) * depth, (), (), sum(lengths))


def kept_by(parts: Parts, pipeline: Sequence[Pruner], lengths: Sequence[int]) -> Kept:
    """Follow a pipeline through a model.

    Parameters
    ----------
    parts : Parts
        Of the model, untouched.
    pipeline : sequence of Pruner
        They know what they keep. A method that chooses the count itself is taken to keep what it was asked.
    lengths : sequence of int
        Visual tokens of each span.

    Raises
    ------
    NotImplementedError, ValueError
        If a method can't run on the model.
    """
    adapter = Adapter(parts, pipeline)
    depth, whole = len(parts.layers), sum(lengths)
    left = list(lengths)
    per_layer, shares = [whole] * depth, [1.0] * len(adapter.vision.layers)
    stops: list[Any] = []

    def keep(pruner: Pruner, stop: Stop) -> None:
        before = tuple(left)
        for i, n in enumerate(lengths):
            asked = 0 if stop.keep == 0 else resolve_keep(stop.keep or 1.0, n)
            left[i] = min(left[i], asked)
        stops.append((pruner, stop, before, tuple(left)))

    for layer in sorted(adapter.vision.stops):
        for pruner, stop in adapter.vision.stops[layer]:
            keep(pruner, stop)
        shares[layer:] = [sum(left) / whole] * (len(shares) - layer)
    per_layer = [sum(left)] * depth
    for pruner, stop in adapter.stops:
        if stop.stage == "vision":
            continue
        if isinstance(stop, Loan):  # of a sample's tokens together, and only there
            per_layer[stop.layer or 0] = stop.count(sum(left))
            stops.append((pruner, stop, (sum(left),), (stop.count(sum(left)),)))
            continue
        keep(pruner, stop)
        start = stop.layer or 0 if stop.stage == "decoder" else 0
        per_layer[start:] = [sum(left)] * (depth - start)
    return Kept(tuple(per_layer), tuple(shares) if adapter.vision.stops else (), tuple(stops), sum(left))
