"""What a cell's summary says beside accuracy and cost: smaller pictures, and what a score hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .intervals import Interval


@dataclass
class Part:
    """Some of the questions: how many, and the share of them that is right."""

    n: int
    accuracy: float | None


@dataclass
class AgainstSmaller:
    """A cell beside ``downsample``; None where the sweep has no smaller pictures that cost as much.

    Attributes
    ----------
    partner, tokens, difference
        The smaller pictures of about as many tokens, in words, what they have, and the paired difference to them.
    easy, hard : Part, optional
        The questions that are right on those, and the others: how many, and how many of them the cell has right.
    timed, timed_difference
        The largest smaller pictures whose whole prefill is no slower, and the paired difference to them.
    """

    partner: str = ""
    tokens: float | None = None
    difference: Interval | None = None
    easy: Part | None = None
    hard: Part | None = None
    timed: str = ""
    timed_difference: Interval | None = None

    def flat(self) -> dict[str, Any]:
        """Columns of ``summary.csv``."""
        row: dict[str, Any] = {"smaller": self.partner, "smaller_tokens": self.tokens}
        row |= ends("smaller_difference", self.difference)
        for name, part in (("easy", self.easy), ("hard", self.hard)):
            row |= {f"{name}_n": part and part.n, f"{name}_accuracy": part and part.accuracy}
        return row | {"smaller_in_time": self.timed, **ends("smaller_in_time_difference", self.timed_difference)}


@dataclass
class Hidden:
    """What one mean of accuracies hides; None where the questions do not tell it.

    Attributes
    ----------
    second, second_n
        Accuracy of second questions on the cache that a first one was pruned for, and how many.
    pointing, pointing_n
        Accuracy of questions where something is, and how many.
    made_up, made_up_n
        Share of yes to what is not there, and how many are asked about such.
    second_difference, pointing_difference, made_up_difference
        The paired differences to the unpruned model.
    """

    second: float | None = None
    second_n: int = 0
    second_difference: Interval | None = None
    pointing: float | None = None
    pointing_n: int = 0
    pointing_difference: Interval | None = None
    made_up: float | None = None
    made_up_n: int = 0
    made_up_difference: Interval | None = None

    def flat(self) -> dict[str, Any]:
        """Columns of ``summary.csv``."""
        row: dict[str, Any] = {}
        for name in ("second", "pointing", "made_up"):
            row |= {name: getattr(self, name), f"{name}_n": getattr(self, f"{name}_n")}
            row |= ends(f"{name}_difference", getattr(self, f"{name}_difference"))
        return row


def ends(name: str, interval: Interval | None, value: str = "") -> dict[str, float | None]:
    """Three columns of an interval."""
    found = interval or (None, None, None)
    return dict(zip((value or name, f"{name}_low", f"{name}_high"), found, strict=True))
