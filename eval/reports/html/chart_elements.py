"""What a chart consists of, in pixels; ``chart.svg.j2`` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

TOP, LEFT = 34, 40


class Look(NamedTuple):
    """How a method is drawn: "random", "focus" or "rest", its colour (grey where None) and its marker's shape."""

    kind: str
    colour: int | None
    shape: int


@dataclass(frozen=True)
class Point:
    """A cell: its place, the ends of its interval and of its cost's range, its name for the tooltip and its keep."""

    x: float
    y: float
    low: float
    high: float
    title: str
    keep: str
    left: float
    right: float


@dataclass(frozen=True)
class Series:
    """A method, with its place in the legend."""

    name: str
    index: int
    look: Look
    points: list[Point]

    @property
    def path(self) -> str:
        """The line through its points."""
        return "M" + " L".join(f"{p.x:.1f} {p.y:.1f}" for p in self.points)

    @property
    def band(self) -> str:
        """The outline of its intervals."""
        up = [f"{p.x:.1f} {p.high:.1f}" for p in self.points]
        down = [f"{p.x:.1f} {p.low:.1f}" for p in reversed(self.points)]
        return "M" + " L".join(up + down) + "Z"


@dataclass
class Chart:
    """Everything in pixels, ticks with their labels; ``unpruned`` is y, low and high of the reference line,
    ``unpruned_at`` the place of its words."""

    width: int
    height: int
    x_label: str
    alt: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Series]
    unpruned: tuple[float, float, float] | None
    unpruned_text: str
    unpruned_x: float = 0
    unpruned_at: tuple[float, float, str] = (0, 0, "start")
    left: int = LEFT
    right: float = 0
    top: int = TOP
    bottom: float = 0
    missing: list[str] = field(default_factory=list)
