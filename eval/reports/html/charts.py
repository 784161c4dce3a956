"""Geometry of the charts: accuracy with its interval against a cost, a line per method; the template draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vtc.eval.reports.wording import numbers_in_words as words
from vtc.eval.statistics.cell_summary import CellSummary, keep_text

from .chart_elements import LEFT, TOP, Chart, Look, Point, Series

COLOURS = 7  # of the style sheet, without random's; a reader tells no more apart
RIGHT, BOTTOM = 14, 46
TEXT = 110  # px of the words at the reference line

Range = tuple[float, float, float]  # a value and its ends
Cost = Callable[[CellSummary], Range | None]


def focus(cells: Sequence[CellSummary]) -> dict[str, Look]:
    """How each method is drawn: random, the best few (all, where there are few) in colour, and the rest in grey."""
    methods = dict.fromkeys(c.method for c in cells if not c.is_unpruned)
    randoms = list(dict.fromkeys(c.method for c in cells if c.is_random))
    others = [m for m in methods if m not in randoms]

    def gain(method: str) -> float:
        gaps = [c.against_random or c.difference for c in cells if c.method == method]
        known = [gap.value for gap in gaps if gap is not None]
        return sum(known) / len(known) if known else -math.inf

    best = set(sorted(others, key=gain, reverse=True)[:COLOURS]) if len(others) > COLOURS else set(others)
    coloured = [m for m in others if m in best]
    looks = dict.fromkeys(methods, Look("rest", None, 0))
    looks |= {m: Look("focus", i, i) for i, m in enumerate(coloured)}
    return looks | {m: Look("random", None, i % COLOURS) for i, m in enumerate(randoms)}


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within the ends."""
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(t) for t in found if low - 1e-9 <= t <= high + 1e-9]


def start(smallest: float) -> float:
    """Where the axis of costs begins: at zero, unless all are far from it."""
    return 0.0 if smallest < 0.25 else math.floor(10 * (smallest - 0.04)) / 10


@dataclass(frozen=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)


def make_chart(
    cells: Sequence[CellSummary],
    cost: Cost,
    x_label: str,
    looks: dict[str, Look],
    width: int,
    height: int,
) -> Chart | None:
    """Lay out one chart; None where no pruned cell has a cost.

    Parameters
    ----------
    cells : sequence of CellSummary
        All cells.
    cost : callable
        A cell's cost as a ratio to unpruned, with the ends of its range; None leaves it out, and the chart says so.
    x_label : str
        What the cost is.
    looks : dict
        See ``focus``.
    width, height : int
        Of the whole drawing.
    """
    placed = [(c, x) for c in cells if not c.is_unpruned and (x := cost(c)) is not None and math.isfinite(c.mean.value)]
    if not placed:
        return None
    plain = next((c for c in cells if c.is_unpruned and math.isfinite(c.mean.value)), None)
    ends = [100 * v for c in [c for c, _ in placed] + ([plain] if plain else []) for v in (c.mean.low, c.mean.high)]
    margin = 0.05 * (max(ends) - min(ends)) + 0.8
    smallest, largest = min(x[0] for _, x in placed), max(x[0] for _, x in placed)
    right, bottom = width - RIGHT, height - BOTTOM
    to_x = Scale(start(smallest), max(1.0, largest) * 1.03, LEFT, right)
    to_y = Scale(max(0.0, min(ends) - margin), min(102.0, max(ends) + margin), bottom, TOP)
    series = _series(placed, looks, to_x, to_y)
    chart = Chart(
        width,
        height,
        x_label,
        _alt(x_label, series),
        [(to_x(t), f"{100 * t:.0f}%") for t in ticks(to_x.low, to_x.high, 5 if width > 450 else 4)],
        [(to_y(t), f"{t:g}") for t in ticks(to_y.low, to_y.high, 6)],
        series,
        None,
        "",
        right=right,
        bottom=bottom,
        missing=[c.label for c in cells if not c.is_unpruned and cost(c) is None],
    )
    if plain is not None:
        y, low, high = (to_y(100 * v) for v in plain.mean)
        chart.unpruned, chart.unpruned_text = (y, low, high), f"unpruned {words.percent(plain.mean.value)}"
        chart.unpruned_x = to_x(1.0)
        if chart.unpruned_x - to_x(largest) > TEXT:
            chart.unpruned_at = (chart.unpruned_x - 9, y - 6, "end")
        elif to_x(smallest) > LEFT + TEXT:
            chart.unpruned_at = (LEFT + 5, y - 6, "start")
        else:  # no room beside the methods
            chart.unpruned_at, chart.unpruned_text = (right, TOP - 5, "end"), f"╌╌ {chart.unpruned_text}"
    return chart


def _series(
    placed: Sequence[tuple[CellSummary, Range]], looks: dict[str, Look], to_x: Scale, to_y: Scale
) -> list[Series]:
    """The methods' lines in the order of drawing; each point stands where its cost and its accuracy put it."""
    lines: dict[str, list[tuple[CellSummary, Range]]] = {}
    for c, cost in sorted(placed, key=lambda pair: pair[1]):
        lines.setdefault(c.method, []).append((c, cost))
    found = []
    for index, (method, look) in enumerate(looks.items()):
        made = []
        for c, cost in lines.get(method, []):
            x, left, right = to_x(cost[0]), max(to_x(cost[1]), to_x.first), min(to_x(cost[2]), to_x.last)
            y, low, high = (to_y(100 * v) for v in c.mean)
            title = f"{c.label}: {words.percent(c.mean.value)}% {words.ends(c.mean, sign=False)}"
            title += f" at {words.ratio(cost[0])}"
            made.append(Point(x, y, low, high, title, keep_text(c.keep), left, right))
        if made:
            found.append(Series(method, index, look, made))
    order = {"rest": 0, "random": 1, "focus": 2}
    return sorted(found, key=lambda s: order[s.look.kind])


def _alt(x_label: str, series: Sequence[Series]) -> str:
    names = words.listed([s.name for s in series if s.look.kind != "rest"] or [s.name for s in series], 9)
    return f"Mean accuracy with 95% intervals against {x_label}: {names}. The same numbers are in the results table."
