"""The outside data: images and questions of the ``easy-vqa`` package (MIT licence)."""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .palette import ALL_COLORS, ALL_SHAPES, GRID, IMAGE_SIZE, NUM_PATCHES
from .questions import Question
from .render import IGNORE, PatchLabels

TASK = "easyvqa"
_LEAST_CONTRAST = 90
_LEAST_COVER = 60


@dataclass(frozen=True)
class EasyImage:
    """One image with its questions and the colour and shape that its questions give away."""

    path: Path
    questions: tuple[Question, ...]
    color: str | None
    shape: str | None


def load_split(split: str) -> list[EasyImage]:
    """Read one split of the installed ``easy-vqa`` package.

    Parameters
    ----------
    split : {"train", "test"}
        Which of the package's own splits.

    Returns
    -------
    list of EasyImage
        In the order of the image numbers.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("easy_vqa is missing; install it with: pip install easy-vqa==1.0")
    folder = Path(spec.origin).parent / "data" / split
    rows = json.loads((folder / "questions.json").read_text())
    questions: dict[int, list[Question]] = defaultdict(list)
    for text, answer, image in rows:
        questions[image].append(Question(TASK, text, answer))
    loaded = []
    for image in sorted(questions):
        color, shape = _what_is_shown(questions[image])
        path = folder / "images" / f"{image}.png"
        loaded.append(EasyImage(path, tuple(questions[image]), color, shape))
    return loaded


def upscaled(image: EasyImage) -> Image.Image:
    """Return the image at the model's size, as the processor would resize it."""
    picture = Image.open(image.path).convert("RGB")
    return picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def patch_labels(image: EasyImage) -> PatchLabels:
    """Say which patches the single shape covers, by contrast to the plain background."""
    pixels = np.asarray(Image.open(image.path).convert("RGB")).astype(np.int16)
    distinct = np.abs(pixels - pixels[0, 0]).sum(axis=-1) > _LEAST_CONTRAST
    small = Image.fromarray(distinct.astype(np.uint8) * 255).resize((GRID, GRID), Image.Resampling.BOX)
    mine = (np.asarray(small) > _LEAST_COVER).reshape(-1)
    row, column = np.divmod(np.arange(NUM_PATCHES), GRID)
    nothing = np.full(NUM_PATCHES, IGNORE, dtype=np.int64)
    color, shape = nothing.copy(), nothing.copy()
    offset = np.zeros((NUM_PATCHES, 2), dtype=np.float32)
    if mine.any():
        offset[mine, 0] = column[mine].mean() - column[mine]
        offset[mine, 1] = row[mine].mean() - row[mine]
    if image.color is not None:
        color[mine] = ALL_COLORS.index(image.color)
    if image.shape is not None:
        shape[mine] = ALL_SHAPES.index(image.shape)
    return PatchLabels(
        color=color,
        shape=shape,
        letter=nothing,
        first_digit=nothing,
        second_digit=nothing,
        offset=offset,
        owner=np.where(mine, 0, -1),
    )


def _what_is_shown(questions: list[Question]) -> tuple[str | None, str | None]:
    """Colour and shape of the image as far as its questions tell them."""
    color = shape = None
    for question in questions:
        told = [question.answer]
        negated = any(word in question.text.split() for word in ("not", "no"))
        if question.answer in ("yes", "no") and (question.answer == "yes") != negated:
            told = question.text.strip("?").split()
        for word in told:
            color = word if word in ALL_COLORS else color
            shape = word if word in ALL_SHAPES else shape
    return color, shape
