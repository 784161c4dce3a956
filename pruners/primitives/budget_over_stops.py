"""Budgets of methods that prune more than once: what each stop keeps so that the whole costs what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from vtc.pruners.base import check_keep


class TwoStage(NamedTuple):
    """What two stops keep; both are counts, or both are fractions. ``tail=0`` is nothing."""

    first: int | float
    tail: int | float


def scaled_layer(layer: int, of: int, depth: int) -> int:
    """The layer of a decoder of `depth` layers that is where `layer` is in one of `of` layers, at least 1."""
    return max(1, min(depth - 1, int(layer * depth / of + 0.5)))


def two_stage(
    average: int | float,
    depth: int,
    layer: int,
    tail: int | float | None = None,
    start: int = 0,
    tokens: int | None = None,
) -> TwoStage:
    """What to keep from layer `start` on so that, with `tail` from `layer` on, a layer sees `average` on average.

    ``first = (average * depth - N * start - tail * (depth - layer)) / (layer - start)``, rounded down for counts.

    Parameters
    ----------
    average : int or float
        Visual tokens per decoder layer and span: a count, or a fraction of the span's tokens.
    depth : int
        Decoder layers.
    layer : int
        Where the tail begins (the "information horizon").
    tail : int or float, optional
        Kept from `layer` on, a count beside a count and a fraction beside a fraction; 0 drops everything. By default a
        fifth of `average`, as in the paper (38 of 192).
    start : int
        Where the first method prunes: 0 for the input stage, else its decoder layer, before which all tokens are seen.
    tokens : int, optional
        N, the span's tokens; needed for a count with ``start > 0``, and caps the first count.

    Returns
    -------
    TwoStage
        Where `first` would exceed all tokens, it is all of them, and the tail takes what is left of the average.

    Raises
    ------
    ValueError
        If the average can't be met, or a layer is out of range.

    Examples
    --------
    >>> two_stage(192, 32, 20, 38), two_stage(192, 32, 20, 38, start=2, tokens=576)
    (TwoStage(first=284, tail=38), TwoStage(first=252, tail=38))
    """
    average = check_keep(average, "average")
    if not 0 <= start < layer < depth:
        raise ValueError(
            f"layers must rise: the first method prunes at {start}, the tail at {layer}, and the decoder has {depth}"
        )
    share = isinstance(average, float)
    if tail is None:
        tail = average * 0.2 if share else max(1, int(average * 0.2 + 0.5))
    elif tail != 0:
        tail = check_keep(tail, "tail")
        if isinstance(tail, float) != share:
            raise ValueError(f"say both as counts or both as fractions, got average={average} and tail={tail}")
    everything = 1.0 if share else tokens
    if everything is None and start:
        raise ValueError(
            f"an average of {average} tokens with a first method at layer {start}: say how many tokens a span has "
            "(tokens=576), or give the average as a fraction"
        )
    behind = depth - layer
    first = (average * depth - (everything or 0) * start - tail * behind) / (layer - start)
    least = tail if share else max(1, tail)
    if first < least - 1e-9:
        raise ValueError(
            f"an average of {average} can't be met: all tokens before layer {start} and {tail:g} from layer {layer} on "
            f"leave {first:.3g} for the layers between"
        )
    if everything is not None and first > everything:
        first = everything
        tail = (average * depth - everything * layer) / behind
    if share:
        return TwoStage(min(1.0, first), min(1.0, tail))
    return TwoStage(int(first + 1e-9), int(tail + 1e-9))


def pyramid(keep: int | float, stops: int, ratio: float | None = None) -> tuple[int | float, ...]:
    """What each of `stops` stops keeps when the last keeps `keep` and each `ratio` of what the one before it keeps.

    Without `ratio` a fraction falls evenly from 1 to `keep`; a count is halved at every stop, because how many tokens a
    span has is not known where stops are planned (a stop keeps all where there are fewer).
    """
    if isinstance(keep, float):
        ratio = keep ** (1 / stops) if ratio is None else ratio
        return (*(min(1.0, keep / ratio**i) for i in reversed(range(1, stops))), keep)
    ratio = 0.5 if ratio is None else ratio
    return (*(int(keep / ratio**i + 0.5) for i in reversed(range(1, stops))), keep)


def between_recipes(recipes: Sequence[Sequence[float]], keep: float) -> tuple[float, ...]:
    """The recipe whose last stop keeps `keep`, of falling `recipes`, shares of the original tokens kept by each stop.

    Shares are interpolated between the two recipes whose last ones are around `keep`; one that drops nothing always
    counts. Below the least of them its shares are raised to the power that makes the last one `keep`.

    Examples
    --------
    >>> between_recipes([(0.8, 0.4), (0.5, 0.25)], 0.7), between_recipes([(0.5, 0.25)], 0.0625)
    ((0.9, 0.7), (0.25, 0.0625))
    """
    above: Sequence[float] = (1.0,) * len(recipes[0])
    for below in sorted(recipes, key=lambda recipe: -recipe[-1]):
        if below[-1] <= keep < above[-1]:
            part = (keep - below[-1]) / (above[-1] - below[-1])
            return _ending([b + part * (a - b) for a, b in zip(above, below, strict=True)], keep)
        above = below if below[-1] > keep else above
    if keep >= above[-1]:
        return _ending(above, keep)
    power = math.log(keep) / math.log(above[-1])
    return _ending([share**power for share in above], keep)


def _ending(shares: Sequence[float], keep: float) -> tuple[float, ...]:
    """`shares` that end in `keep`: where they are as much but for rounding, they are `keep` itself."""
    return tuple(keep if share < keep + 1e-9 else min(1.0, share) for share in (*shares[:-1], keep))
