"""What the decoder does on one number of tokens, and what a few numbers tell of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .operators import ATTENTION, CAUSAL, Operator, Operators

POINTS = 3  # of a curve of the second degree, which products between tokens are
EXACT = 1e-6


@dataclass(frozen=True)
class DecoderWork:
    """What the decoder does on one prompt whose every layer sees `length` tokens.

    Attributes
    ----------
    layers : tuple
        Operators of each layer.
    rest : tuple
        Of what is beside them: embeddings, rotary angles, the last norm.
    kv : tuple of int
        Bytes that each layer's cache holds behind it; a recurrent layer's state is one, whatever the length.
    """

    length: int
    layers: tuple[Operators, ...]
    rest: Operators
    kv: tuple[int, ...]

    def attention(self, layer: int) -> float:
        """FLOPs of attention that the last token needs in a layer."""
        return sum(o.flops for o in self.layers[layer] if o.kind in (ATTENTION, CAUSAL)) / self.length


class LengthCurve:
    """Operators as curves of the second degree in the number of tokens, where that is what they are.

    It has to hold for one length more than a curve needs: with windows, chunks or states it mostly does not, and then
    nothing is told.
    """

    def __init__(self) -> None:
        self._points: list[DecoderWork] = []
        self._holds: bool | None = None

    def add(self, work: DecoderWork) -> None:
        """One that was run."""
        if all(p.length != work.length for p in self._points):
            self._points.append(work)
            self._holds = None

    def at(self, length: int) -> DecoderWork | None:
        """The decoder on `length` tokens; None where too little is known, or it is no such curve."""
        if self._holds is None:
            self._holds = len(self._points) > POINTS and all(
                _same(_told([p for p in self._points if p is not one][:POINTS], one.length), one)
                for one in self._points
            )
        near = sorted(self._points, key=lambda p: abs(p.length - length))[:POINTS]
        return _told(near, length) if self._holds else None


def _told(points: Sequence[DecoderWork], length: int) -> DecoderWork | None:
    weights = _weights([p.length for p in points], length)
    made: dict[int, Operators | None] = {}

    def curve(parts: Sequence[Operators]) -> Operators | None:
        if id(parts[0]) not in made:  # equal layers are the same object
            made[id(parts[0])] = _operators(parts, weights, length)
        return made[id(parts[0])]

    rest = curve([p.rest for p in points])
    layers = [curve(parts) for parts in zip(*(p.layers for p in points), strict=True)]
    found = [part for part in layers if part is not None]
    if rest is None or len(found) < len(layers):
        return None
    kv = tuple(round(_sum(weights, held)) for held in zip(*(p.kv for p in points), strict=True))
    return DecoderWork(length, tuple(found), rest, kv)


def _weights(at: Sequence[int], length: int) -> list[float]:
    """Lagrange's."""
    found = []
    for a in at:
        weight = 1.0
        for b in at:
            weight *= (length - b) / (a - b) if a != b else 1.0
        found.append(weight)
    return found


def _sum(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(w * v for w, v in zip(weights, values, strict=True))


def _operators(parts: Sequence[Operators], weights: Sequence[float], length: int) -> Operators | None:
    if len({tuple((o.kind, o.weights, o.experts is None) for o in part) for part in parts}) > 1:
        return None
    found = []
    for same in zip(*parts, strict=True):
        one: Operator = same[0]
        experts = one.experts and (*one.experts[:2], length)
        flops, moved = _sum(weights, [o.flops for o in same]), _sum(weights, [o.moved for o in same])
        found.append(replace(one, flops=flops, moved=moved, experts=experts))
    return tuple(found)


def _same(told: DecoderWork | None, run: DecoderWork) -> bool:
    if told is None or told.kv != run.kv:
        return False
    for mine, own in zip((told.rest, *told.layers), (run.rest, *run.layers), strict=True):
        if len(mine) != len(own):
            return False
        for a, b in zip(mine, own, strict=True):
            if abs(a.flops - b.flops) > EXACT * b.flops or abs(a.moved - b.moved) > EXACT * b.moved:
                return False
            if a.experts != b.experts:
                return False
    return True
