"""The classes of a picture's projected tokens (``embedlens``), drawn over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vtc.eval.vlm.loading import Loaded
from vtc.pruners.embedlens import EmbedLens
from vtc.pruners.layout import Layout
from vtc.pruners.visual_tokens import VisualTokens

from .kept_tokens import GAP, Painted, draw_panel, font, grid_pictures, write_png
from .watch_projected_tokens import look

ALIVE, SINK, DEAD = 0, 1, 2
NAMES = {ALIVE: "alive", SINK: "sink", DEAD: "dead"}
# Okabe and Ito's colours, hatched in different directions as well
COLOURS = {SINK: (213, 94, 0), DEAD: (0, 114, 178)}
KEY = 24  # height of a line of the legend
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ClassMap:
    """The class of every token of one image, `[rows, cols]` per grid; newline tokens are left out."""

    title: str
    maps: list[Labels]

    @property
    def counts(self) -> dict[str, int]:
        """Tokens of each class."""
        return {name: int(sum((m == kind).sum() for m in self.maps)) for kind, name in NAMES.items()}

    @property
    def note(self) -> str:
        """The counts in words."""
        parts = ", ".join(f"{n} {name}" for name, n in self.counts.items())
        return f"{parts} of {sum(self.counts.values())} visual tokens"

    @property
    def drawn(self) -> Painted:
        """Its maps, and what draws one over its picture."""
        return self.maps, draw_classes

    @property
    def legend(self) -> Image.Image:
        """What the colours mean, and how many tokens have each."""
        return draw_legend(self)


def find_classes(
    loaded: Loaded, image: Image.Image, classes: str | None = None, pruner: EmbedLens | None = None
) -> tuple[ClassMap, list[Image.Image]]:
    """The classes of the tokens of `image`, and the pictures behind its grids.

    Parameters
    ----------
    loaded : Loaded
        The model.
    image : Image
        The picture.
    classes : str, optional
        The model's calibration; what ``embedlens`` knows of the model if left out.
    pruner : EmbedLens, optional
        Says the classes instead.

    Raises
    ------
    FileNotFoundError, ValueError
        As ``embedlens``: for a file of another model, or a model whose classes nobody knows.
    """
    lens = pruner or EmbedLens(classes=classes)
    found: list[tuple[list[int], Tensor, Tensor]] = []

    def see(tokens: VisualTokens) -> None:
        sink, dead, _ = lens.likeness(tokens)
        found.append((list(tokens.span), (sink * SINK + dead * DEAD).cpu(), tokens.ids.cpu()))

    row, report = look(loaded, image, see)
    maps = label_maps(report.layouts, *found[0])
    pictures = grid_pictures(image, row.vision.get("pixel_values"), len(maps), loaded.processor)
    return ClassMap("sink (orange) and dead (blue) tokens", maps), pictures


def label_maps(layouts: Sequence[Layout], spans: Sequence[int], labels: Tensor, ids: Tensor) -> list[Labels]:
    """Labels of tokens as one `[rows, cols]` per grid of each span's layout.

    Parameters
    ----------
    layouts : sequence of Layout
        Of all spans.
    spans : sequence of int
        Those that were looked at; one of a single token is not, and counts as alive.
    labels, ids : Tensor
        `[len(spans), N]` each: the classes, and which tokens of the span they are of (-1 is padding).
    """
    maps: list[Labels] = []
    for i, layout in enumerate(layouts):
        mine = [np.full((grid.rows, grid.cols), ALIVE, dtype=np.int64) for grid in layout.grids]
        if i in spans:
            row = list(spans).index(i)
            real = ids[row] >= 0
            places = layout.coordinates[ids[row][real]].tolist()
            for (grid, r, c), kind in zip(places, labels[row][real].tolist(), strict=True):
                mine[grid][r, c] = kind
        maps += mine
    return maps


def draw_classes(picture: Image.Image, labels: Labels, patch: int) -> Image.Image:
    """The picture at `patch` pixels per token, sinks and dead tokens tinted and hatched, alive ones as they are."""
    rows, cols = labels.shape
    size = (cols * patch, rows * patch)
    shown = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=float)
    large = labels.repeat(patch, 0).repeat(patch, 1)
    y, x = np.indices(large.shape)
    for kind, colour in COLOURS.items():
        line = ((x + y) if kind == SINK else (x - y)) % 6 < 2
        tinted = 0.35 * shown + 0.65 * np.array(colour, dtype=float)
        tinted[line] = 0.5 * tinted[line] + 0.5 * 255
        shown = np.where((large == kind)[..., None], tinted, shown)
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def draw_legend(found: ClassMap) -> Image.Image:
    """What the colours mean, and how many tokens have each."""
    letters, total = font(14), sum(found.counts.values())
    counts = [(name, found.counts[name]) for name in NAMES.values()]
    texts = [f"{name}: {count} of {total} tokens ({100 * count / total:.1f}%)" for name, count in counts]
    width = 26 + math.ceil(max(letters.getlength(text) for text in texts))
    legend = Image.new("RGB", (width, KEY * len(NAMES)), "white")
    pen = ImageDraw.Draw(legend)
    for line, (kind, text) in enumerate(zip(NAMES, texts, strict=True)):
        sample = draw_classes(Image.new("RGB", (18, 18), (190, 190, 190)), np.full((1, 1), kind), 18)
        legend.paste(sample, (0, KEY * line))
        pen.text((26, KEY * line + 1), text, fill=(40, 40, 40), font=letters)
    return legend


def show_classes(loaded: Loaded, image: Image.Image, out: Path, classes: str | None = None) -> ClassMap:
    """Draw the classes over `image` into the PNG `out`; see ``find_classes``."""
    found, pictures = find_classes(loaded, image, classes)
    panel = draw_panel(pictures, found)
    sheet = Image.new("RGB", (panel.width + 2 * GAP, panel.height + 2 * GAP), "white")
    sheet.paste(panel, (GAP, GAP))
    write_png(out, sheet)
    return found
