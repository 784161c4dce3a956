"""From rounds to figures: what was attained, what is the limit and what is attainable, with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtc.eval.load.speed_limit import Limit
from vtc.eval.statistics.intervals import Interval, percentile
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell

from .cell_facts import Facts
from .measure import Rounds

REPS = 2000


@dataclass(frozen=True)
class Figures:
    """One row of the table; seconds are medians of the rounds.

    Attributes
    ----------
    cell : Cell
        The setting.
    facts : Facts
        Its tokens and bytes.
    rounds : Rounds
        Its readings.
    seconds : dict
        By part.
    attained : Interval
        The unpruned prefill's time over this one's.
    limit : Limit, optional
        What bounds it; None where FLOPs aren't counted or the tower is not found.
    attainable : Interval, optional
        The unpruned prefill's time over that of the stock model on the tokens left.
    tower : Interval, optional
        The unpruned tower's time over this one's, of methods that prune inside it.
    """

    cell: Cell
    facts: Facts
    rounds: Rounds
    seconds: dict[str, float]
    attained: Interval
    limit: Limit | None
    attainable: Interval | None
    tower: Interval | None

    @property
    def of_limit(self) -> float | None:
        """Attained over limit."""
        return None if self.limit is None else self.attained.value / self.limit.speed_up

    @property
    def of_attainable(self) -> float | None:
        """Attained over attainable."""
        return None if self.attainable is None else self.attained.value / self.attainable.value

    @property
    def tower_limit(self) -> float | None:
        """The tower's FLOPs, unpruned over pruned."""
        return None if self.limit is None or self.tower is None else 1 / self.limit.tower_flops_ratio

    @property
    def of_tower_limit(self) -> float | None:
        """The tower's speed-up over its ratio of FLOPs."""
        limit = self.tower_limit
        return None if limit is None or self.tower is None else self.tower.value / limit


def ratio(over: Sequence[float], under: Sequence[float], seed: int) -> Interval:
    """Ratio of medians, with a bootstrap interval: rounds are drawn, and both sides are of the same ones."""
    a, b = np.asarray(over, dtype=float), np.asarray(under, dtype=float)
    rounds = np.random.default_rng(seed).integers(0, len(a), (REPS, len(a)))
    found = np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1)
    return percentile(float(np.median(a) / np.median(b)), found)


def figures(
    cells: Sequence[Cell],
    facts: dict[str, Facts],
    rounds: dict[str, Rounds],
    flops: dict[str, tuple[float, float]],
    seed: int,
) -> list[Figures]:
    """One for each cell, in their order.

    Parameters
    ----------
    cells : sequence of Cell
        The unpruned one among them.
    facts, rounds : mapping
        By spec.
    flops : mapping
        By spec f and t, FLOPs of decoder and tower over the unpruned ones; empty where they aren't counted.
    seed : int
        Of the bootstrap.
    """
    plain = rounds[UNPRUNED.spec]
    whole = statistics.median(plain.seconds["prefill"])
    share = None if "tower" not in plain.seconds else min(1.0, statistics.median(plain.seconds["tower"]) / whole)
    found = []
    for cell in cells:
        mine = rounds[cell.spec]
        seconds = {part: statistics.median(values) for part, values in mine.seconds.items()}
        limit = None
        f, t = flops.get(cell.spec, (None, 1.0))
        if share is not None and f is not None:
            limit = Limit(share, seconds.get("selection", 0.0) / whole, min(1.0, f), t)
        attainable = mine.attainable
        if attainable and facts[cell.spec].in_tower:  # the stock tower on fewer patches, by its FLOPs
            attainable = [a - (1 - t) * v for a, v in zip(attainable, plain.seconds["tower"], strict=True)]
        inside = facts[cell.spec].in_tower and share is not None
        found.append(
            Figures(
                cell,
                facts[cell.spec],
                mine,
                seconds,
                ratio(plain.seconds["prefill"], mine.seconds["prefill"], seed),
                limit,
                ratio(plain.seconds["prefill"], attainable, seed) if attainable else None,
                ratio(plain.seconds["tower"], mine.seconds["tower"], seed) if inside else None,
            )
        )
    return found
