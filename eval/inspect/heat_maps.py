"""``vtc show --signal``: a number per visual token, drawn as a heat map over the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vtc.eval.tasks.questions import Question
from vtc.eval.vlm.loading import Loaded
from vtc.eval.vlm.prompts import make_row
from vtc.pruners.explainer import Explainer, predict

from .kept_tokens import Painted, Shown, font, grid_pictures
from .options import TITLES
from .relevance import Explanation, explain, inputs_of
from .token_classes import find_classes

LEAST, MOST = 0.35, 0.85  # how much of a patch is colour, at the coldest and the hottest
SCALE = (64, 4)  # colours of the scale, and pixels of each
HOTTEST = 0.995  # quantile that gets the hottest colour: a single sink should not hide the rest
Map = NDArray[np.float64]


@dataclass(frozen=True)
class Heat:
    """One signal over one image: a map per grid, from 0 to 1, and what is written above.

    ``top`` is what the hottest colour stands for, as a share of the sum over all tokens.
    """

    signal: str
    maps: list[Map]
    half: int
    total: int
    answer: str
    top: float

    @property
    def title(self) -> str:
        """The heading."""
        return TITLES[self.signal]

    @property
    def note(self) -> str:
        """How much it is concentrated, and the answer."""
        return f"half of it on {self.half} of {self.total} visual tokens; answer: {self.answer}"

    @property
    def drawn(self) -> Painted:
        """Its maps, and what draws one over its picture."""
        return self.maps, draw_heat

    @property
    def legend(self) -> Image.Image:
        """The scale of its colours."""
        return draw_scale(self.top)


def draw_heat(picture: Image.Image, heat: Map, patch: int) -> Image.Image:
    """The picture in grey at `patch` pixels per token, under colours from dark (0) to bright yellow (1)."""
    from matplotlib import colormaps

    rows, cols = heat.shape
    size = (cols * patch, rows * patch)
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=float)[..., None]
    large = heat.repeat(patch, 0).repeat(patch, 1)
    share = (LEAST + (MOST - LEAST) * large)[..., None]
    shown = (1 - share) * grey + share * 255 * colormaps["inferno"](large)[..., :3]
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def draw_scale(top: float) -> Image.Image:
    """The colours from cold to hot, and what they stand for.

    Parameters
    ----------
    top : float
        What the hottest colour stands for, as a share of the sum over all tokens. Colours go by the root: the middle
        one stands for a quarter of it.
    """
    cells, patch = SCALE
    bar = draw_heat(Image.new("L", (cells, 1), 128), np.linspace(0, 1, cells)[None], patch)
    marks = ((0.0, "0"), (0.5, f"{25 * top:.2g}%"), (1.0, f"{100 * top:.2g}% or more of the sum, per token"))
    letters = font(12)
    scale = Image.new("RGB", (bar.width + math.ceil(letters.getlength(marks[-1][1])), 34), "white")
    for row in range(3):
        scale.paste(bar, (0, row * patch))
    pen = ImageDraw.Draw(scale)
    for place, text in marks:
        x = place * bar.width
        pen.line([(min(x, bar.width - 1), 0), (min(x, bar.width - 1), 3 * patch + 3)], fill="black")
        pen.text((max(0, x - 12 * bool(place)), 3 * patch + 4), text, fill=(40, 40, 40), font=letters)
    return scale


def hottest(values: Tensor) -> Tensor:
    """What the hottest colour stands for: nearly the largest of `values` `[n]`, a scalar above 0."""
    top = torch.quantile(values.float(), HOTTEST).clamp(min=values.max() * 1e-3)
    return top.clamp(min=torch.finfo(torch.float32).tiny)


def scaled(values: Tensor) -> Tensor:
    """Values `[n]` as colours in [0, 1]: the square root of each as a share of nearly the largest."""
    return (values.float() / hottest(values)).clamp(0, 1).sqrt()


def half_of(values: Tensor) -> int:
    """How many of the largest `values` `[n]` make up half of their sum; 0 if that is zero."""
    if float(values.sum()) <= 0:
        return 0
    running = values.sort(descending=True).values.double().cumsum(0)
    return int((running < running[-1] / 2).sum()) + 1


def grid_maps(layouts: Sequence[Any], values: Sequence[Tensor]) -> list[Map]:
    """Values per token of each image as one `[rows, cols]` per grid of its ``Layout``; newline tokens are left out."""
    maps: list[Map] = []
    for layout, one in zip(layouts, values, strict=True):
        first = len(maps)
        maps += [np.zeros((grid.rows, grid.cols)) for grid in layout.grids]
        for (grid, row, col), value in zip(layout.coordinates.tolist(), one.tolist(), strict=True):
            if col >= 0:
                maps[first + grid][row, col] = value
    return maps


def token_values(found: Explanation, signal: str, weights: str | None = None) -> list[Tensor]:
    """A signal of one prompt: `[n]` float32 per image, 0 at newline tokens.

    Parameters
    ----------
    found : Explanation
        Of the prompt.
    signal : str
        One of ``TITLES``.
    weights : str, optional
        The network behind ``predicted``, as for the ``explainer`` method.
    """
    content = [~layout.newline for layout in found.layouts]
    if signal == "predicted":
        network = Explainer(weights=weights).tensors(torch.device("cpu"), found.heads, found.width)
        values = []
        for attention, real in zip(found.attention, content, strict=True):
            values.append(torch.zeros(len(attention)))
            values[-1][real] = predict(network, attention[real][None])[0].softmax(-1)
        return values
    of = found.relevance if signal == "relevance" else found.attention
    return [x.masked_fill(~real, 0) for x, real in zip(of, content, strict=True)]


def find_heat(
    loaded: Loaded,
    signals: Sequence[str],
    image: Image.Image,
    question: str,
    weights: str | None = None,
    max_new_tokens: int = 16,
) -> list[tuple[Heat, list[Image.Image]]]:
    """Ask the unpruned model `question` and map each signal, with the pictures behind the maps.

    Raises
    ------
    ValueError
        For a network that does not belong to the model.
    """
    row = make_row(loaded.processor, loaded.model.config, image, Question("show", "", "image", question, ""))
    found = explain(loaded.model, inputs_of(row), None, max_new_tokens, backward="relevance" in signals)
    answer = loaded.processor.decode(found.answer, skip_special_tokens=True).strip()
    shown = []
    for signal in signals:
        values = token_values(found, signal, weights)
        every = torch.cat(values)
        colours = scaled(every).split([len(x) for x in values])
        maps = grid_maps(found.layouts, colours)
        pictures = grid_pictures(image, row.vision.get("pixel_values"), len(maps), loaded.processor)
        top = float(hottest(every) / every.sum()) if float(every.sum()) > 0 else 0.0
        shown.append((Heat(signal, maps, half_of(every), len(every), answer, top), pictures))
    return shown


def find_signals(
    loaded: Loaded, signals: Sequence[str], image: Image.Image, question: str, weights: str | None = None
) -> list[tuple[Shown, list[Image.Image]]]:
    """What each of `signals` shows, as ``find_heat`` and ``find_classes``."""
    numbers = [signal for signal in signals if signal in TITLES]
    heats = iter(find_heat(loaded, numbers, image, question, weights) if numbers else ())
    return [next(heats) if signal in TITLES else find_classes(loaded, image) for signal in signals]
