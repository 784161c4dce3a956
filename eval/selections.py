"""``vtc compare-selections``: how much of the same several methods keep, beside what chance would give."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.stats import hypergeom

from .bundled import bundled_data
from .cells import Cell
from .console import make_console, say
from .loading import Loaded, load_model
from .progress import plain_progress
from .show import GAP, Kept, draw_panel, find_kept
from .stats import Interval, cluster_bootstrap
from .store import write_atomic
from .tasks import load_tasks

Mask = NDArray[np.bool_]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTION = "What is in the image?"
FAR = 3.0  # standard deviations from chance that are called another choice than a random one


class Overlap(NamedTuple):
    """What two selections of one image's `n` tokens have in common.

    Attributes
    ----------
    n, a, b, both : int
        Tokens, those that either keeps, and those that both keep.
    iou : float
        ``both / (a + b - both)``; not a number where neither keeps any.
    of_a, of_b : float
        Share of a's tokens that b keeps, and of b's that a keeps.
    chance : float
        Mean of `both` for random selections of these sizes, ``a b / n``.
    chance_iou : float
        Mean of the IoU then.
    z : float
        How many standard deviations (of the hypergeometric distribution) `both` lies above `chance`; not a number where
        chance leaves no choice.
    """

    n: int
    a: int
    b: int
    both: int
    iou: float
    of_a: float
    of_b: float
    chance: float
    chance_iou: float
    z: float


def overlap(first: Mask, second: Mask) -> Overlap:
    """Compare two selections.

    Parameters
    ----------
    first, second : array of bool
        `[n]`, what each keeps of the same tokens.

    Raises
    ------
    ValueError
        If they are not of one length, at least 1.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"selections must be [n] masks of the same tokens, got {first.shape} and {second.shape}")
    n, a, b, both = len(first), int(first.sum()), int(second.sum()), int((first & second).sum())
    nan = float("nan")
    chance = a * b / n
    possible = np.arange(max(0, a + b - n), min(a, b) + 1)
    spread = math.sqrt(a * b * (n - a) * (n - b) / (n * n * (n - 1))) if n > 1 else 0.0
    return Overlap(
        n, a, b, both,
        both / (a + b - both) if a + b else nan,
        both / a if a else nan,
        both / b if b else nan,
        chance,
        float((hypergeom.pmf(possible, n, a, b) * possible / (a + b - possible)).sum()) if a + b else nan,
        (both - chance) / spread if spread else nan,
    )  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Two settings over all images; differences from chance are taken image by image.

    Attributes
    ----------
    first, second : int
        Their numbers.
    iou, of_first, of_second : Interval
        Means over the images, with a 95% interval where there are several (bootstrap over images).
    chance_iou, chance_of_first, chance_of_second : float
        The same of random selections.
    gain : Interval
        ``of_first - chance_of_first``, the share above chance.
    z : float
        Of the only image; not a number for several.
    """

    first: int
    second: int
    iou: Interval
    of_first: Interval
    of_second: Interval
    chance_iou: float
    chance_of_first: float
    chance_of_second: float
    gain: Interval
    z: float


@dataclass(frozen=True)
class Comparison:
    """Settings compared over images: what each keeps on average, and every pair of them."""

    names: tuple[str, ...]
    kept: tuple[float, ...]
    tokens: float
    images: int
    pairs: tuple[Pair, ...]


def _mean(values: Sequence[float]) -> Interval:
    """Mean over the images that have a value; the interval is not a number where there is only one."""
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2:
        return Interval(known[0] if known else float("nan"), float("nan"), float("nan"))
    return cluster_bootstrap(known, range(len(known)))


def compare(names: Sequence[str], masks: Sequence[Sequence[Mask]]) -> Comparison:
    """Compare settings.

    Parameters
    ----------
    names : sequence of str
        What the settings are called.
    masks : sequence of sequences of masks
        Per image and setting what is kept of its tokens, `[n]`.

    Raises
    ------
    ValueError
        If there are fewer than two settings, or no image.
    """
    if len(names) < 2 or not masks:
        raise ValueError(f"a comparison needs two settings and an image, got {len(names)} and {len(masks)}")
    pairs = []
    for i, j in itertools.combinations(range(len(names)), 2):
        found = [overlap(image[i], image[j]) for image in masks]
        pairs.append(
            Pair(
                i, j, _mean([o.iou for o in found]), _mean([o.of_a for o in found]), _mean([o.of_b for o in found]),
                _mean([o.chance_iou for o in found]).value,
                _mean([o.b / o.n if o.a else math.nan for o in found]).value,
                _mean([o.a / o.n if o.b else math.nan for o in found]).value,
                _mean([o.of_a - o.b / o.n for o in found]),
                found[0].z if len(found) == 1 else math.nan,
            )
        )  # fmt: skip
    kept = tuple(float(np.mean([image[i].sum() for image in masks])) for i in range(len(names)))
    tokens = float(np.mean([len(image[0]) for image in masks]))
    return Comparison(tuple(names), kept, tokens, len(masks), tuple(pairs))


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
        title=f"IoU | share of the row's tokens that the column keeps (by chance){many}", title_justify="left",
        title_style="bold",
    )  # fmt: skip
    table.add_column("keeps")
    table.add_column("tokens", justify="right")
    for letter in LETTERS[: len(found.names)]:
        table.add_column(letter, justify="right")
    iou, share, chance = matrices(found)
    for i, (name, kept) in enumerate(zip(found.names, found.kept, strict=True)):
        cells = [
            "=" if i == j else "-" if math.isnan(share[i, j]) else
            f"{iou[i, j]:.2f} | {100 * share[i, j]:.0f}% ({100 * chance[i, j]:.0f}%)"
            for j in range(len(found.names))
        ]  # fmt: skip
        table.add_row(f"{LETTERS[i]}  {name}", f"{kept:.0f}", *cells)
    return table


def as_json(found: Comparison) -> dict[str, Any]:
    """Everything as plain values; None where something is not defined."""

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def spread(value: Interval) -> dict[str, float | None]:
        return {"mean": plain(value.value), "low": plain(value.low), "high": plain(value.high)}

    return {
        "images": found.images, "tokens": found.tokens,
        "settings": [{"spec": name, "kept": kept} for name, kept in zip(found.names, found.kept, strict=True)],
        "pairs": [
            {
                "first": found.names[p.first], "second": found.names[p.second], "iou": spread(p.iou),
                "share_of_first": spread(p.of_first), "share_of_second": spread(p.of_second),
                "chance": {
                    "iou": plain(p.chance_iou), "share_of_first": plain(p.chance_of_first),
                    "share_of_second": plain(p.chance_of_second),
                },
                "share_of_first_above_chance": spread(p.gain), "z": plain(p.z), "in_words": in_words(found, p),
            }
            for p in found.pairs
        ],
    }  # fmt: skip


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
        figure.subplots(1, 2), (iou, share), (f"IoU{many}", f"share of the row's tokens kept by the column{many}"),
        strict=True,
    ):  # fmt: skip
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


def draw_sheet(panels: Sequence[Image.Image], found: Comparison) -> Image.Image:
    """The pictures side by side, at most four in a row, and the heat maps below them."""
    across = min(4, len(panels))
    lines = [panels[i : i + across] for i in range(0, len(panels), across)]
    heat = draw_matrices(found)
    width = max(heat.width, *(sum(p.width + GAP for p in line) for line in lines)) + GAP
    height = sum(max(p.height for p in line) + GAP for line in lines) + heat.height + 2 * GAP
    sheet, top = Image.new("RGB", (width, height), "white"), GAP
    for line in lines:
        left = GAP
        for panel in line:
            sheet.paste(panel, (left, top))
            left += panel.width + GAP
        top += max(p.height for p in line) + GAP
    sheet.paste(heat, (GAP, top))
    return sheet


def mask_of(kept: Kept) -> Mask:
    """What is kept of all grids of an image, `[n]`; newline tokens have no place in it."""
    return np.concatenate([mask.ravel() for mask in kept.masks])


@dataclass
class SelectionOptions:
    """Options of a comparison; the command line's defaults.

    ``image`` is a picture (with ``question``), else ``images`` pictures of ``data`` are taken, each with its first
    question unless ``question`` says one.
    """

    cells: Sequence[Cell]
    out: Path
    image: Image.Image | None = None
    images: int = 1
    data: Path | None = None
    question: str | None = None
    as_json: bool = False
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuse what can't be compared.

    Raises
    ------
    ValueError
        For fewer than two settings, more than there are letters, or the same one twice.
    """
    specs = [cell.spec for cell in cells]
    twice = next((spec for spec in specs if specs.count(spec) > 1), None)
    if not 2 <= len(specs) <= len(LETTERS):
        raise ValueError(f"--pruner: give 2 to {len(LETTERS)} methods to compare, got {len(specs)}")
    if twice is not None:
        raise ValueError(f"--pruner {twice!r} is given twice; with another seed or parameter it would be another one")


def asked(options: SelectionOptions) -> list[tuple[Image.Image, str]]:
    """The pictures with their questions.

    Raises
    ------
    ValueError
        If there are fewer than asked for.
    """
    if options.image is not None:
        return [(options.image, options.question or QUESTION)]
    tasks = load_tasks(options.data or bundled_data())
    first: dict[str, Any] = {}
    for q in tasks.subset().questions:
        if q.kind == "image" and len(q.media) == 1:
            first.setdefault(q.image_id, q)
    if len(first) < options.images:
        raise ValueError(f"--images {options.images} is out of range: {tasks.name} has {len(first)} pictures")
    chosen = list(first.values())[: options.images]
    return [(tasks.image(q.image_id), options.question or q.question) for q in chosen]


def compare_selections(
    loaded: Loaded, options: SelectionOptions, console: Console
) -> tuple[Comparison, list[Image.Image]]:
    """Compare what every setting keeps at the end for every question; with the panels of the first image."""
    given = asked(options)
    panels: list[Image.Image] = []
    masks: list[list[Mask]] = []
    with plain_progress(console, disable=len(given) == 1 or options.as_json) as progress:
        for picture, question in progress.track(given, description="comparing"):
            longest = 16 if len(given) == 1 else 1
            found = [find_kept(loaded, cell, picture, question, longest) for cell in options.cells]
            masks.append([mask_of(kept) for kept, _ in found])
            if not panels:
                titled = [replace(kept, title=f"{LETTERS[i]}  {kept.title}") for i, (kept, _) in enumerate(found)]
                panels = [draw_panel(pictures, kept) for kept, (_, pictures) in zip(titled, found, strict=True)]
    return compare([cell.spec for cell in options.cells], masks), panels


def run_selections(options: SelectionOptions, console: Console | None = None) -> Comparison:
    """Compare, print the table and a line per pair (or JSON), and write the PNG.

    Raises
    ------
    ValueError, FileNotFoundError, NotImplementedError
        For an option or a model that does not work; the message is one line.
    """
    console = console or make_console()
    check_cells(options.cells)
    if options.images < 1:
        raise ValueError(f"--images {options.images} is out of range: at least 1")
    loaded = load_model(options.model, options.device, options.dtype)
    found, panels = compare_selections(loaded, options, console)
    data = io.BytesIO()
    draw_sheet(panels, found).save(data, format="PNG")
    write_atomic(options.out, data.getvalue())
    if options.as_json:
        say(console, json.dumps(as_json(found), indent=1))
        return found
    console.print(as_table(found))
    say(console, *(in_words(found, pair) for pair in found.pairs))
    if found.images == 1:
        say(console, "One image says little about two methods: --images 30 averages over some.")
    say(console, f"written: {options.out}")
    return found
