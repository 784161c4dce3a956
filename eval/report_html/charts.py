"""Geometry of the charts: accuracy with its interval against a cost, a line per method; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..matching import keep_text
from ..summary import CellSummary
from . import words

COLOURS = 7  # of the style sheet, without random's; a reader tells no more apart
TOP, RIGHT, BOTTOM, LEFT = 34, 14, 46, 40
STEP = 5  # px between methods of the same cost, whose bars would hide each other

Cost = Callable[[CellSummary], float | None]


@dataclass(frozen=True)
class Point:
    """A cell: its place, the ends of its interval, its name for the tooltip and its keep."""

    x: float
    y: float
    low: float
    high: float
    title: str
    keep: str


@dataclass(frozen=True)
class Series:
    """A method: `colour` counts from 0, None is drawn in grey; `kind` is "random", "focus" or "rest"."""

    name: str
    index: int
    colour: int | None
    kind: str
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
    """Everything in pixels, ticks with their labels; ``unpruned`` is y, low and high of the reference line."""

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
    left: int = LEFT
    right: float = 0
    top: int = TOP
    bottom: float = 0
    missing: list[str] = field(default_factory=list)


def focus(cells: Sequence[CellSummary]) -> dict[str, tuple[str, int | None]]:
    """Kind and colour of each method: random, the best few (all, where there are few), and the rest in grey."""
    methods = dict.fromkeys(c.method for c in cells if not c.is_unpruned)
    random = next((c.method for c in cells if c.is_random), None)
    others = [m for m in methods if m != random]

    def gain(method: str) -> float:
        gaps = [c.against_random or c.difference for c in cells if c.method == method]
        known = [gap.value for gap in gaps if gap is not None]
        return sum(known) / len(known) if known else -math.inf

    best = set(sorted(others, key=gain, reverse=True)[:COLOURS]) if len(others) > COLOURS else set(others)
    coloured = [m for m in others if m in best]
    kinds: dict[str, tuple[str, int | None]] = {m: ("rest", None) for m in methods}
    kinds |= {m: ("focus", i) for i, m in enumerate(coloured)}
    return kinds | ({random: ("random", None)} if random is not None else {})


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within the ends."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(t) for t in found if low - 1e-9 <= t <= high + 1e-9]


def make_chart(
    cells: Sequence[CellSummary], cost: Cost, x_label: str, kinds: dict[str, tuple[str, int | None]], width: int,
    height: int,
) -> Chart | None:  # fmt: skip
    """Lay out one chart; None where no pruned cell has a cost.

    Parameters
    ----------
    cells : sequence of CellSummary
        All cells.
    cost : callable
        A cell's cost as a ratio to unpruned; None leaves it out, and the chart says so.
    x_label : str
        What the cost is.
    kinds : dict
        See ``focus``.
    width, height : int
        Of the whole drawing.
    """
    placed = [(c, x) for c in cells if not c.is_unpruned and (x := cost(c)) is not None and math.isfinite(c.mean.value)]
    if not placed:
        return None
    plain = next((c for c in cells if c.is_unpruned and math.isfinite(c.mean.value)), None)
    shown = [c for c, _ in placed] + ([plain] if plain else [])
    ends = [100 * v for c in shown for v in (c.mean.low, c.mean.high)]
    margin = 0.05 * (max(ends) - min(ends)) + 0.8
    y_low, y_high = max(0.0, min(ends) - margin), min(102.0, max(ends) + margin)
    x_high = max(1.0, *(x for _, x in placed)) * 1.03
    right, bottom = width - RIGHT, height - BOTTOM

    def to_x(x: float) -> float:
        return LEFT + x / x_high * (right - LEFT)

    def to_y(accuracy: float) -> float:
        return bottom - (100 * accuracy - y_low) / (y_high - y_low) * (bottom - TOP)

    dodged = [m for m, (kind, _) in kinds.items() if kind != "rest"]
    lines: dict[str, list[tuple[CellSummary, float]]] = {}
    for c, x in sorted(placed, key=lambda pair: pair[1]):
        lines.setdefault(c.method, []).append((c, x))
    series = []
    for index, (method, (kind, colour)) in enumerate(kinds.items()):
        step = min(STEP, 24 / max(1, len(dodged)))
        aside = (dodged.index(method) - (len(dodged) - 1) / 2) * step if method in dodged else 0.0
        made = []
        for c, x in lines.get(method, []):
            title = f"{c.label}: {words.percent(c.mean.value)}% {words.ends(c.mean, sign=False)} at {words.ratio(x)}"
            place = min(max(to_x(x) + aside, LEFT + 4), right - 2)
            made.append(Point(place, *map(to_y, c.mean), title, keep_text(c.keep)))  # type: ignore[arg-type]
        if made:
            series.append(Series(method, index, colour, kind, made))
    order = {"rest": 0, "random": 1, "focus": 2}
    series.sort(key=lambda s: order[s.kind])
    chart = Chart(
        width, height, x_label, _alt(x_label, series, placed),
        [(to_x(t), f"{100 * t:.0f}%") for t in ticks(0, x_high, 5 if width > 450 else 4)],
        [(to_y(t / 100), f"{t:g}") for t in ticks(y_low, y_high, 6)],
        series, None, "", right=right, bottom=bottom,
        missing=[c.label for c in cells if not c.is_unpruned and cost(c) is None],
    )  # fmt: skip
    if plain is not None:
        y, low, high = map(to_y, plain.mean)
        chart.unpruned, chart.unpruned_text = (y, low, high), f"unpruned {words.percent(plain.mean.value)}"
        chart.unpruned_x = to_x(1.0)
    return chart


def _alt(x_label: str, series: Sequence[Series], placed: Sequence[tuple[CellSummary, float]]) -> str:
    names = words.listed([s.name for s in series if s.kind != "rest"] or [s.name for s in series], 9)
    return f"Mean accuracy with 95% intervals against {x_label}: {names}. The same numbers are in the results table."
