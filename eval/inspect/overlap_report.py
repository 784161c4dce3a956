"""What selections have in common, in words, as a table, as JSON and as heat maps."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from vtc.eval.statistics.intervals import Interval

from .selection_overlap import Comparison, Pair

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FAR = 3.0  # standard deviations from chance that are called another choice than a random one


def _percent(found: Interval) -> str:
    if not math.isfinite(found.value):
        return "-"
    middle = f"{100 * found.value:.0f}%"
    return middle if not math.isfinite(found.low) else f"{middle} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def in_words(found: Comparison, pair: Pair) -> str:
    """One line: what the two share, beside chance, and whether that is more, less or as much."""
    first, second = found.names[pair.first], found.names[pair.second]
    if not math.isfinite(pair.iou.value):
        return f"{first} and {second}: neither keeps anything at the end"
    if not (math.isfinite(pair.of_first.value) and math.isfinite(pair.of_second.value)):
        none = first if not math.isfinite(pair.of_first.value) else second
        return f"{first} and {second} share nothing: {none} keeps no visual token at the end"
    equal = math.isclose(found.kept[pair.first], found.kept[pair.second])
    said = f"{first} and {second} share" if equal else f"{second} keeps"
    of = "of their tokens" if equal else f"of {first}'s tokens"
    share, chance = pair.of_first, pair.chance_of_first
    line = f"{said} {_percent(share)} {of} where chance gives {100 * chance:.0f}%"
    if not equal:
        line += f", and {first} keeps {_percent(pair.of_second)} of {second}'s ({100 * pair.chance_of_second:.0f}%)"
    return f"{line}: {verdict(pair)}"


def verdict(pair: Pair) -> str:
    """Whether two settings agree more than chance: by z for one image, by the interval for several."""
    if math.isfinite(pair.gain.low):
        above, below = pair.gain.low > 0, pair.gain.high < 0
        how = f"{100 * pair.gain.value:+.0f} points [{100 * pair.gain.low:+.0f}, {100 * pair.gain.high:+.0f}]"
    elif math.isfinite(pair.z):
        above, below = pair.z > FAR, pair.z < -FAR
        how = f"z = {pair.z:+.1f}"
    else:
        return "one of them leaves no choice"
    word = "more alike than chance" if above else "less alike than chance" if below else "as unlike as chance"
    ratio = f"{pair.of_first.value / pair.chance_of_first:.1f} times chance, " if pair.chance_of_first else ""
    return f"{word} ({ratio}{how})"


def matrices(found: Comparison) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """IoU, share of the row's tokens that the column keeps, and that share by chance: `[m, m]` each."""
    size = len(found.names)
    iou, share, chance = (np.full((size, size), np.nan) for _ in range(3))
    for i, kept in enumerate(found.kept):
        if kept:
            iou[i, i] = share[i, i] = 1.0
    for p in found.pairs:
        iou[p.first, p.second] = iou[p.second, p.first] = p.iou.value
        share[p.first, p.second], share[p.second, p.first] = p.of_first.value, p.of_second.value
        chance[p.first, p.second], chance[p.second, p.first] = p.chance_of_first, p.chance_of_second
    return iou, share, chance


def as_table(found: Comparison) -> Table:
    """A row per setting: IoU, and beside chance the share of its tokens that each other one keeps."""
    many = "" if found.images == 1 else f", mean of {found.images} images"
    table = Table(
        title=f"IoU | share of the row's tokens that the column keeps (by chance){many}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("keeps")
    table.add_column("tokens", justify="right")
    for letter in LETTERS[: len(found.names)]:
        table.add_column(letter, justify="right")
    iou, share, chance = matrices(found)

    def entry(i: int, j: int) -> str:
        if i == j:
            return "="
        if math.isnan(share[i, j]):
            return "-"
        return f"{iou[i, j]:.2f} | {100 * share[i, j]:.0f}% ({100 * chance[i, j]:.0f}%)"

    for i, (name, kept) in enumerate(zip(found.names, found.kept, strict=True)):
        cells = (entry(i, j) for j in range(len(found.names)))
        table.add_row(f"{LETTERS[i]}  {name}", f"{kept:.0f}", *cells)
    return table


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything as plain values; None where something is not defined."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def spread(value: Interval) -> dict[str, float | None]:
        return {"mean": plain(value.value), "low": plain(value.low), "high": plain(value.high)}

    return {
        "images": found.images,
        "tokens": found.tokens,
        "settings": [{"spec": name, "kept": kept} for name, kept in zip(found.names, found.kept, strict=True)],
        "pairs": [
            {
                "first": found.names[p.first],
                "second": found.names[p.second],
                "iou": spread(p.iou),
                "share_of_first": spread(p.of_first),
                "share_of_second": spread(p.of_second),
                "chance": {
                    "iou": plain(p.chance_iou),
                    "share_of_first": plain(p.chance_of_first),
                    "share_of_second": plain(p.chance_of_second),
                },
                "share_of_first_above_chance": spread(p.gain),
                "z": plain(p.z),
                "in_words": in_words(found, p),
            }
            for p in found.pairs
        ],
    }


def draw_matrices(found: Comparison) -> Image.Image:
    """Two heat maps with their numbers: the IoU, and the share of each row's tokens that each column keeps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    iou, share, chance = matrices(found)
    size = len(found.names)
    letters = list(LETTERS[:size])
    names = [
        f"{letter}  {name if len(name) <= 40 else name[:37] + '...'}"
        for letter, name in zip(letters, found.names, strict=True)
    ]
    side = 1.6 + 0.85 * size
    figure = Figure(figsize=(2 * side + 2.6, side + 0.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    many = "" if found.images == 1 else f" (mean of {found.images} images)"
    for axes, values, title in zip(
        figure.subplots(1, 2),
        (iou, share),
        (f"IoU{many}", f"share of the row's tokens kept by the column{many}"),
        strict=True,
    ):
        others = np.where(np.eye(size, dtype=bool), np.nan, values)  # the diagonal says nothing
        axes.set_facecolor("0.92")
        axes.imshow(others, cmap="cividis", vmin=0, vmax=np.nanmax(others, initial=0.5))
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(size), letters)
        axes.set_yticks(range(size), names if values is iou else letters, fontsize=9)
        for i, j in itertools.product(range(size), repeat=2):
            value = values[i, j]
            colour = "black" if i == j or math.isnan(value) or value > 0.6 * np.nanmax(others, initial=0.5) else "white"
            text = "-" if math.isnan(value) else f"{value:.2f}" if values is iou else f"{100 * value:.0f}%"
            if i != j and values is share and not math.isnan(chance[i, j]):
                text += f"\nchance {100 * chance[i, j]:.0f}%"
            axes.text(j, i, text, ha="center", va="center", fontsize=9 if i != j else 8, color=colour)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
