"""``pareto.png``: accuracy against FLOPs, a line per method, the unpruned model dashed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtc.eval.files.atomic import write_atomic
from vtc.eval.reports.html.chart_elements import Look
from vtc.eval.reports.html.charts import focus
from vtc.eval.statistics.cell_summary import CellSummary, keep_text
from vtc.eval.statistics.which_flops import flops_ratio, flops_shown, flops_words

from .summary_files import unpruned_of

# Okabe and Ito's colours, which people with any colour vision tell apart; markers differ as well
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# methods of equal cost stand on each other: seen through, and edged in white
BARS = {"elinewidth": 1.0, "capsize": 2.5, "markersize": 7, "linewidth": 1.6, "alpha": 0.85, "markeredgecolor": "w"}
REST = {"elinewidth": 0.0, "capsize": 0.0, "markersize": 2.5, "linewidth": 0.7, "color": "0.72", "marker": "o"}


def draw_pareto(cells: Sequence[CellSummary], path: Path, title: str) -> None:
    """Draw the mean accuracy with 95% intervals of every method against its FLOPs ratio; of many the best in colour.

    Parameters
    ----------
    cells : sequence of CellSummary
        Without FLOPs (they are not counted for every model) the horizontal axis is the tokens kept.
    path : Path
        The PNG; replaced in one go.
    title : str
        Heading.
    """
    from matplotlib.figure import Figure

    alone = all(cell.lm_flops_ratio is None and cell.flops_ratio is not None for cell in cells)  # a classifier's tower
    shown = flops_shown(cells)
    counted = all(flops_ratio(cell, shown) is not None for cell in cells)

    def place(cell: CellSummary) -> float:
        ratio = flops_ratio(cell, shown) if counted else cell.tokens_kept / cell.tokens_total
        assert ratio is not None
        return ratio

    looks = focus(cells)
    figure = Figure(figsize=(8.2, 5.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    _draw_unpruned(axes, unpruned_of(cells))
    others = sum(look.kind == "rest" for look in looks.values())
    order = ("rest", "random", "focus")
    for method, look in sorted(looks.items(), key=lambda item: order.index(item[1].kind)):
        line = sorted((cell for cell in cells if cell.method == method), key=place)
        label = method
        if look.kind == "rest":  # all of them have one line in the legend
            label, others = (f"{others} others" if others else "_"), 0
        _draw_line(axes, line, [place(cell) for cell in line], look, label)
    if looks:
        longest = max(looks, key=lambda m: sum(cell.method == m for cell in cells))
        for cell in (c for c in cells if c.method == longest and c.keep is not None):
            axes.annotate(
                keep_text(cell.keep),
                (place(cell), 100 * cell.mean.low),
                xytext=(0, -11),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color="0.35",
            )
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
    what = flops_words(shown, alone) if counted else "visual tokens kept"
    axes.set_xlabel(f"{what}, relative to unpruned")
    axes.set_ylabel("mean accuracy over tasks (%), 95% interval")
    axes.set_xlim(left=0, right=1.02)
    ends = [100 * end for cell in cells for end in (cell.mean.low, cell.mean.high)]
    margin = 0.06 * (max(ends) - min(ends)) + 1.0
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue())


def _draw_unpruned(axes: Any, reference: CellSummary | None) -> None:
    if reference is None:
        return
    height = 100 * reference.mean.value
    axes.axhline(height, color="0.35", linestyle="--", linewidth=1.2, zorder=1)
    axes.axhspan(100 * reference.mean.low, 100 * reference.mean.high, color="0.9", zorder=0)
    axes.annotate(
        f"unpruned {height:.1f}%",
        (0.995, height),
        color="0.25",
        fontsize=9,
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
    )


def _draw_line(axes: Any, line: Sequence[CellSummary], x: Sequence[float], look: Look, label: str) -> None:
    """One method's cells at the costs `x`, with their intervals."""
    y = [100 * cell.mean.value for cell in line]
    below = [100 * (cell.mean.value - cell.mean.low) for cell in line]
    above = [100 * (cell.mean.high - cell.mean.value) for cell in line]
    style: dict[str, Any] = REST
    if look.kind != "rest":
        style = BARS | {"color": "0.35", "marker": MARKERS[look.shape], "linestyle": "--"}
    if look.colour is not None:
        style |= {"color": COLOURS[look.colour], "linestyle": "-"}
    axes.errorbar(x, y, yerr=[below, above], label=label, zorder=2 if look.kind == "rest" else 3, **style)
