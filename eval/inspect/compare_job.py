"""``vtc compare-selections``: how much of the same several methods keep, beside what chance would give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from vtc.bundled_files import bundled_data
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.terminal.console import make_console, say
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.pruning_settings import Cell

from .kept_tokens import GAP, Kept, draw_panel, find_kept, write_png
from .overlap_report import LETTERS, as_json, as_table, draw_matrices, in_words
from .selection_overlap import Comparison, Mask, compare

QUESTION = "What is in the image?"


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
    return [(tasks.image(q.media[0]), options.question or q.question) for q in chosen]


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
    write_png(options.out, draw_sheet(panels, found))
    if options.as_json:
        say(console, json.dumps(as_json(found), indent=1))
        return found
    console.print(as_table(found))
    say(console, *(in_words(found, pair) for pair in found.pairs))
    if found.images == 1:
        say(console, "One image says little about two methods: --images 30 averages over some.")
    say(console, f"written: {options.out}")
    return found
