"""Samples that flipped, a few per method, and the tokens that were kept of them."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..compare import CHANGE
from ..matching import keep_text
from ..summary import CellSummary
from ..tasks import Question, TaskSet

Mask = NDArray[np.bool_]
Kept = tuple[Sequence[Mask], Sequence[Image.Image]]  # a mask and a picture per grid
Finder = Callable[[str, Question], Kept | None]
SHOWCASE = 0.25  # the keep nearest to it is shown: differences are seen there, and not everything is lost
WANTED = {"down": 2, "up": 1}  # examples per method
QUESTIONS, PANELS = 12, 6
WIDTH, QUALITY = 216, 74


@dataclass(frozen=True)
class Panel:
    """One method's answer to a question, with a picture if there is one."""

    method: str
    keep: str
    direction: str
    prediction: str
    picture: str = ""
    alt: str = ""
    note: str = ""


@dataclass
class Example:
    """A question whose answer flipped under some methods."""

    task: str
    question: str
    answer: str
    before: str
    was_right: bool
    picture: str = ""
    panels: list[Panel] = field(default_factory=list)


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
    from ..show import draw_grid

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


def recorded(row: Mapping[str, Any], picture: Image.Image) -> Kept | None:
    """Kept tokens of a result row that has them: ``kept`` is a list of ``[rows, cols, [ids in row-major order]]``."""
    grids = row.get("kept")
    if not grids:
        return None
    masks = []
    for rows, cols, ids in grids:
        mask = np.zeros(rows * cols, dtype=bool)
        mask[ids] = True
        masks.append(mask.reshape(rows, cols))
    return masks, [picture] * len(masks)


def kept_finder(loaded: Any, cells: Iterable[Any], tasks: TaskSet) -> Finder:
    """Recomputes what a cell keeps of a question's image, by asking the model again.

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
        from ..show import find_kept

        kept, pictures = find_kept(loaded, of[spec], tasks.image(question.image_id), question.question, 1)
        return kept.masks, pictures

    return find


def showcase(cells: Sequence[CellSummary]) -> list[CellSummary]:
    """One cell per method, most of them at the same keep."""
    shares = {c.spec: c.tokens_kept / c.tokens_total if c.tokens_total else 1.0 for c in cells}
    pruned = [c for c in cells if not c.is_unpruned]
    common = Counter(c.keep for c in pruned if c.keep is not None)
    most = max(common.values(), default=0)
    keeps = {k for k, n in common.items() if n == most}
    best: dict[str, CellSummary] = {}
    for c in sorted(pruned, key=lambda c: (c.keep not in keeps, abs(shares[c.spec] - SHOWCASE))):
        best.setdefault(c.method, c)
    order = list(dict.fromkeys(c.method for c in pruned))
    return sorted(best.values(), key=lambda c: order.index(c.method))


def choose(cells: Sequence[CellSummary], rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Questions that flipped, with the (spec, direction) of each method that did; few questions for many methods.

    Parameters
    ----------
    cells : sequence of CellSummary
        One per method, and the unpruned one.
    rows : iterable of mappings
        All result rows.
    """
    wanted = {c.spec: dict(WANTED) for c in cells if not c.is_unpruned}
    score: dict[str, dict[str, float]] = {}
    image_of: dict[str, str] = {}
    for row in rows:
        if row["cell"] in wanted or row["cell"] == "unpruned":
            score.setdefault(row["cell"], {})[row["question_id"]] = row["score"]
            image_of[row["question_id"]] = row["image_id"]
    base = score.get("unpruned", {})
    flipped: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()  # images: a new one is worth more than the same again
    for spec in wanted:
        for q, s in score.get(spec, {}).items():
            if q in base and abs(s - base[q]) > CHANGE:
                flipped.setdefault(q, []).append((spec, "down" if s < base[q] else "up"))

    def useful(q: str) -> int:
        return sum(wanted[spec][direction] > 0 for spec, direction in flipped[q])

    chosen: list[tuple[str, list[tuple[str, str]]]] = []
    while flipped and len(chosen) < QUESTIONS:
        best = max(sorted(flipped), key=lambda q: useful(q) - 1.5 * (image_of[q] in seen))
        if useful(best) == 0:
            break
        seen.add(image_of[best])
        # those that still need an example come first; a stable sort keeps the methods' order
        shown = sorted(flipped.pop(best), key=lambda flip: wanted[flip[0]][flip[1]] <= 0)[:PANELS]
        for spec, direction in shown:
            wanted[spec][direction] -= 1
        chosen.append((best, shown))
    return chosen


def make_examples(
    cells: Sequence[CellSummary], tasks: TaskSet, rows: Iterable[Mapping[str, Any]], find: Finder | None = None
) -> list[Example]:
    """Draw them.

    Parameters
    ----------
    cells : sequence of CellSummary
        All cells.
    tasks : TaskSet
        Questions and images.
    rows : iterable of mappings
        All result rows; those with ``kept`` need no `find`.
    find : callable, optional
        Gives the masks and pictures of a cell's spec and a question, or None; see ``kept_finder``.
    """
    shown = {c.spec: c for c in showcase(cells)}
    plain = [c for c in cells if c.is_unpruned]
    rows = [row for row in rows if row["cell"] in shown or row["cell"] == "unpruned"]
    row_of = {(row["cell"], row["question_id"]): row for row in rows}
    question_of = {q.question_id: q for q in tasks.questions}
    examples = []
    for q, flips in choose([*shown.values(), *plain], (r for r in rows if r["question_id"] in question_of)):
        question, base = question_of[q], row_of["unpruned", q]
        picture = _picture(tasks, question)
        example = Example(question.task, question.question, question.answer, base["prediction"], base["score"] > 0.5)
        example.picture = jpeg(shrink(picture)) if picture else ""
        for spec, direction in flips:
            cell, row = shown[spec], row_of[spec, q]
            kept = picture and (recorded(row, picture) or (find(spec, question) if find else None))
            made = {"picture": jpeg(draw_kept(kept))} if kept else {}
            if kept:
                n, total = sum(int(m.sum()) for m in kept[0]), sum(m.size for m in kept[0])
                made["alt"] = f"The image with the {n} of {total} patches that {cell.label} keeps, the others darkened"
                made["note"] = f"{n} of {total} patches"
            prediction = str(row["prediction"])
            example.panels.append(Panel(cell.method, keep_text(cell.keep), direction, prediction, **made))
        examples.append(example)
    return examples


def _picture(tasks: TaskSet, question: Question) -> Image.Image | None:
    """A question's image; None for a video, or one that does not decode: the words are shown then."""
    if getattr(question, "kind", "image") != "image":
        return None
    try:
        return tasks.image(question.image_id)
    except (ValueError, KeyError, OSError):
        return None
