"""Pictures of the report: a sample as it is, and with the tokens that a cell kept of it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.eval.tasks.questions import Question, TaskSet

Mask = NDArray[np.bool_]
Kept = tuple[Sequence[Mask], Sequence[Image.Image]]  # a mask and a picture per grid
Finder = Callable[[str, Question], Kept | None]
WIDTH, QUALITY = 216, 74  # px and JPEG's scale: about 10 kB each


def jpeg(picture: Image.Image) -> str:
    """A small picture as a data URI."""
    data = io.BytesIO()
    picture.convert("RGB").save(data, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def shrink(picture: Image.Image, width: int = WIDTH) -> Image.Image:
    """A picture at the width of a panel; tall ones are held to the same area."""
    scale = min(width / picture.width, 1.4 * width / picture.height)
    return picture.convert("RGB").resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )


def draw_kept(kept: Kept, width: int = WIDTH) -> Image.Image:
    """The grids of one sample beside each other, kept tokens in colour, the others dark."""
    from vtc.eval.inspect.kept_tokens import draw_grid

    masks, pictures = kept
    across = 1 if len(masks) == 1 else math.ceil(math.sqrt(len(masks)))
    widest = max(mask.shape[1] for mask in masks) * across
    patch = max(4, math.ceil(2 * width / widest))  # drawn larger, so that the pattern survives the shrinking
    drawn = [draw_grid(p, m, patch) for p, m in zip(pictures, masks, strict=True)]
    lines = [drawn[i : i + across] for i in range(0, len(drawn), across)]
    heights = [max(d.height for d in line) for line in lines]
    sheet = Image.new("RGB", (max(sum(d.width for d in line) for line in lines), sum(heights)), (24, 24, 24))
    for i, line in enumerate(lines):
        for k, part in enumerate(line):
            sheet.paste(part, (sum(d.width for d in line[:k]), sum(heights[:i])))
    return shrink(sheet, width)


def kept_finder(loaded: Any, cells: Iterable[Any], tasks: TaskSet) -> Finder:
    """Recomputes what a cell keeps of a question's image, by asking the model again for one token.

    Parameters
    ----------
    loaded : Loaded
        The model.
    cells : iterable of Cell
        Of the sweep.
    tasks : TaskSet
        Whose questions are asked.
    """
    of = {cell.spec: cell for cell in cells}

    def find(spec: str, question: Question) -> Kept | None:
        from vtc.eval.inspect.kept_tokens import find_kept

        if of[spec].small:  # every token of a smaller picture is there
            return None
        kept, pictures = find_kept(loaded, of[spec], tasks.image(question.media[0]), question.question, 1)
        return kept.masks, pictures

    return find


def picture_of(tasks: TaskSet, question: Question) -> Image.Image | None:
    """A question's image; None for several, a video, or one that does not decode: the words are shown then."""
    if question.kind != "image" or len(question.media) > 1:
        return None
    try:
        return tasks.image(question.media[0])
    except (ValueError, KeyError, OSError):
        return None
