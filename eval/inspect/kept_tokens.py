"""``vtc show``: the kept tokens drawn over the picture, as the model saw it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vtc.eval.files.atomic import write_atomic
from vtc.eval.sweep.answer import answer_plain
from vtc.eval.sweep.sweep_run import pruned
from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import make_row
from vtc.eval.vlm.pruning_settings import Cell

Mask = NDArray[np.bool_]
Painted = tuple[Sequence[NDArray[Any]], Callable[[Image.Image, Any, int], Image.Image]]
PANEL = 480  # width of a panel's largest picture, roughly
DIM, VEIL = 0.30, 24.0  # a dropped patch is grey, at this contrast, on this floor
GAP, TITLE = 12, 44


class Shown(Protocol):
    """What a panel shows: a title, a note, and something `[rows, cols]` to paint over each grid's picture."""

    @property
    def title(self) -> str:
        """The heading."""

    @property
    def note(self) -> str:
        """The line below it."""

    @property
    def drawn(self) -> Painted:
        """An array per grid, and what draws one over its picture at so many pixels per token."""

    @property
    def legend(self) -> Image.Image | None:
        """What the colours mean, drawn below the pictures."""


@dataclass(frozen=True)
class Kept:
    """What one setting kept of one image: a mask per grid, the counts, and the answer."""

    title: str
    masks: list[Mask]
    kept: int
    total: int
    where: str
    answer: str

    @property
    def note(self) -> str:
        """What stands below the title."""
        answer = f"; answer: {self.answer}" if self.answer else ""
        return f"{self.kept} of {self.total} visual tokens{self.where}{answer}"

    @property
    def drawn(self) -> Painted:
        """Its masks, and what draws one over its picture."""
        return self.masks, draw_grid

    @property
    def legend(self) -> None:
        """None: what is clear is kept."""


def grid_masks(layout: Any, kept: torch.Tensor) -> list[Mask]:
    """Kept tokens of a span as one boolean `[rows, cols]` per grid of its ``Layout``; newline tokens are left out."""
    masks = [np.zeros((grid.rows, grid.cols), dtype=bool) for grid in layout.grids]
    for grid, row, col in layout.coordinates[kept].tolist():
        if col >= 0:
            masks[grid][row, col] = True
    return masks


def grid_pictures(image: Image.Image, pixels: Any, grids: int, processor: Any) -> list[Image.Image]:
    """The picture behind each grid.

    Where the processor made as many pictures as there are grids (LLaVA-1.5, tiles) these are shown, so that resizing
    and cropping are seen as they were; elsewhere the grid spans the whole image.
    """
    settings = getattr(processor, "image_processor", None)
    if not isinstance(pixels, torch.Tensor) or pixels.dim() not in (4, 5) or pixels.shape[-3] != 3 or settings is None:
        return [image] * grids
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).float()
    if len(pixels) != grids:
        return [image] * grids
    mean, std = (
        torch.tensor(getattr(settings, name, None) or default)
        for name, default in (("image_mean", [0.0] * 3), ("image_std", [1.0] * 3))
    )
    plain = (pixels * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255
    return [Image.fromarray(p.permute(1, 2, 0).round().to(torch.uint8).numpy()) for p in plain]


def draw_grid(picture: Image.Image, mask: Mask, patch: int) -> Image.Image:
    """The picture at `patch` pixels per token: kept patches as they are, the others dark grey with a grid on them."""
    rows, cols = mask.shape
    clear = np.asarray(
        picture.convert("RGB").resize((cols * patch, rows * patch), Image.Resampling.BICUBIC), dtype=float
    )
    grey = clear @ np.array([0.299, 0.587, 0.114])
    dim = np.repeat((VEIL + DIM * grey)[..., None], 3, axis=2)
    dim[::patch] *= 0.6
    dim[:, ::patch] *= 0.6
    shown = np.where(mask.repeat(patch, 0).repeat(patch, 1)[..., None], clear, dim)
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def font(size: int) -> Any:
    """Pillow's own font."""
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow 10.0
        return ImageFont.load_default()


def _fit(text: str, font: Any, width: int) -> str:
    """`text`, cut where it would leave the panel."""
    while len(text) > 4 and font.getlength(text) > width:
        text = text[:-4] + "..."
    return text


def draw_panel(pictures: Sequence[Image.Image], shown: Shown) -> Image.Image:
    """All grids of one setting below its title."""
    arrays, paint = shown.drawn
    across = 1 if len(arrays) == 1 else math.ceil(math.sqrt(len(arrays)))
    patch = patch_size(arrays, across)
    drawn = [paint(p, a, patch) for p, a in zip(pictures, arrays, strict=True)]
    lines = [drawn[i : i + across] for i in range(0, len(drawn), across)]
    heights = [max(d.height for d in line) for line in lines]
    width = max(sum(d.width + GAP for d in line) - GAP for line in lines)
    legend = shown.legend
    width = max(width, 300, legend.width if legend else 0)
    below = legend.height + GAP if legend else 0
    panel = Image.new("RGB", (width, TITLE + sum(h + GAP for h in heights) - GAP + below), "white")
    pen = ImageDraw.Draw(panel)
    pen.text((0, 0), _fit(shown.title, font(16), width), fill="black", font=font(16))
    pen.text((0, 22), _fit(shown.note, font(13), width), fill=(70, 70, 70), font=font(13))
    top = TITLE
    for line, height in zip(lines, heights, strict=True):
        left = 0
        for picture in line:
            panel.paste(picture, (left, top))
            left += picture.width + GAP
        top += height + GAP
    if legend:
        panel.paste(legend, (0, top))
    return panel


def kept_masks(report: Any) -> list[Mask]:
    """What is left behind the last step of a prefill's report, a mask per grid of its spans."""
    masks: list[Mask] = []
    for i, layout in enumerate(report.layouts):
        ids = report.steps[-1].kept[i] if report.steps else torch.arange(layout.tokens)
        masks += grid_masks(layout, ids)
    return masks


def where_pruned(report: Any) -> str:
    """Where the last step of a prefill's report was, as an addition to a sentence; empty where nothing was pruned."""
    if not report.steps:
        return ""
    last = report.steps[-1]
    if last.loan:
        return f" in decoder layer {last.layer} (the others go round it)"
    at = {"input": " before the language model", "vision": f" inside the vision encoder (layer {last.layer})"}
    return at.get(last.stage, f" from decoder layer {last.layer} on")


def patch_size(masks: Sequence[NDArray[Any]], across: int = 1) -> int:
    """Pixels per token of a panel."""
    return max(4, PANEL // (max(mask.shape[1] for mask in masks) * min(across, 2)))


def find_kept(
    loaded: Loaded, cell: Cell, image: Image.Image, question: str, max_new_tokens: int
) -> tuple[Kept, list[Image.Image]]:
    """Ask `question` under one setting and read off what was kept of the (first) image."""
    row = make_row(loaded.processor, loaded.model.config, image, Question("show", "", "image", question, ""))
    with pruned(loaded.model, cell) as model:
        answer = answer_plain(model, loaded.processor, [row], None, max_new_tokens)[0]
        report = model.vtc.report
    masks = kept_masks(report)
    where = where_pruned(report)
    merges = any(getattr(p, "merges", False) for p in model_pipeline(cell))
    title = (
        f"{cell.method}"
        + ("" if cell.keep is None else f", keep={cell.keep}")
        + (" (kept tokens are averages)" if merges else "")
    )
    pictures = grid_pictures(image, row.vision.get("pixel_values"), len(masks), loaded.processor)
    return Kept(title, masks, answer.measured.kept, answer.measured.total, where, answer.text), pictures


def model_pipeline(cell: Cell) -> Sequence[Any]:
    """The methods of a cell."""
    from vtc.pipeline_text import parse

    return parse(cell.spec)


def show_kept(
    loaded: Loaded,
    cells: Sequence[Cell],
    image: Image.Image,
    question: str,
    out: Path,
    max_new_tokens: int = 16,
    beside: Sequence[tuple[Shown, Sequence[Image.Image]]] = (),
) -> list[Kept]:
    """Draw what each setting keeps of `image`, side by side, into the PNG `out`.

    `beside` are panels to the left of them, each with the pictures of its grids.
    """
    found = [find_kept(loaded, cell, image, question, max_new_tokens) for cell in cells]
    panels = [draw_panel(pictures, shown) for shown, pictures in (*beside, *found)]
    foot = 26
    width = sum(p.width + GAP for p in panels) + GAP
    sheet = Image.new("RGB", (width, max(p.height for p in panels) + 2 * GAP + foot), "white")
    left = GAP
    for panel in panels:
        sheet.paste(panel, (left, GAP))
        left += panel.width + GAP
    text = _fit(f"question: {question}", font(13), width - 2 * GAP)
    ImageDraw.Draw(sheet).text((GAP, sheet.height - foot), text, fill=(70, 70, 70), font=font(13))
    write_png(out, sheet)
    return [kept for kept, _ in found]


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture in one go."""
    data = io.BytesIO()
    picture.save(data, format="PNG")
    write_atomic(path, data.getvalue())
