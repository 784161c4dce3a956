"""Prompts of named shapes for every family, and their samples one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .media import Family, Media
from .tokens import BOS, IMAGE, VIDEO, pad, words

# pictures (i) and videos (v) of each sample; "ii" touch, "i.i" have text between them
SHAPES: dict[str, tuple[str, ...]] = {
    "one": ("i",),
    "ragged": ("i", "i.i", "i"),
    "text_row": ("i", "", "i.i"),
    "touching": ("ii", "i"),
    "sizes": ("i", "i.i", "i", "i"),
    "video": ("v", "i.v", "v.v"),
    "right": ("i", "i.i", "i"),
    "text": ("", ""),
    "pair": ("i", "i"),
    "singles": ("i", "", "i"),
    "clip": ("v",),
    "ends": ("i", "i.i", ""),  # the last token is a visual one
    "long_text": ("i", "", "i.i"),  # the longest row has no picture
}
BATCHES = ("ragged", "text_row", "touching", "sizes", "video")
BEFORE, AFTER = (5, 3, 9, 4), (6, 8, 4, 7)  # "pair" comes out without padding


def shapes_of(family: Family, among: tuple[str, ...] = tuple(SHAPES)) -> list[str]:
    """The shapes that make sense for `family`."""
    skip = {
        "touching": not family.touching,
        "sizes": len(family.sizes) < 2,
        "video": not family.clips,
        "clip": not family.clips,
    }
    return [s for s in among if not skip.get(s, False)]


@dataclass
class Prompt:
    """A batch: the rows of token ids, the media of each sample, and the model inputs made of them."""

    family: Family
    rows: list[list[int]]
    media: list[list[Media]]
    side: str = "left"
    padding: int = 0  # columns more than the longest row needs

    @property
    def inputs(self) -> dict[str, Any]:
        """Fresh inputs for ``model(**inputs)`` and ``model.generate(**inputs)``."""
        return with_types(self.family, {**pad(self.rows, self.side, self.padding), **self.family.collate(self.media)})

    def alone(self, sample: int) -> Prompt:
        """One sample by itself, without padding."""
        return Prompt(self.family, [self.rows[sample]], [self.media[sample]])

    def copies(self, n: int) -> Prompt:
        """`n` copies of each sample, next to each other."""
        return Prompt(
            self.family,
            [row for row in self.rows for _ in range(n)],
            [media for media in self.media for _ in range(n)],
            self.side,
            self.padding,
        )


def make_prompt(family: Family, shape: str, seed: int = 0) -> Prompt:
    """The prompt of `shape` for `family`; the same call gives the same prompt."""
    g = torch.Generator().manual_seed(seed)
    several = shape in ("sizes", "text_row")
    rows, media = [], []
    seen = {"i": 0, "v": 0}
    for s, plan in enumerate(SHAPES[shape]):
        row, own = [BOS, *words(BEFORE[s], g)], []
        for mark in plan:
            if mark == ".":
                row += words(2, g)
                continue
            sizes = family.sizes if mark == "i" else family.clips
            size = sizes[seen[mark] % len(sizes)] if several or mark == "v" else sizes[0]
            size = min(sizes) if shape == "singles" else size  # InternVL: one tile
            seen[mark] += 1
            own.append(family.picture(size, plan.count("i") == 1, g) if mark == "i" else family.video(size, g))
            row += own[-1].ids
        row += words(AFTER[s] + (90 if shape == "long_text" and not plan else 0), g)
        if shape == "ends" and own:
            row = row[: max(i for i, token in enumerate(row) if token in (IMAGE, VIDEO)) + 1]
        rows.append(row)
        media.append(own)
    return Prompt(family, rows, media, "right" if shape == "right" else "left")


def free_prompt(
    family: Family,
    plan: Sequence[Sequence[int | str]],
    g: torch.Generator,
    side: str = "left",
    padding: int = 0,
    fresh: bool = True,
) -> Prompt:
    """A prompt of any plan: of each row the pieces, a number of words or a picture (``"i0"``) or video (``"v0"``).

    The number is the size's, among ``sizes`` or ``clips``. A row that begins or ends with a picture does so with its
    placeholder: marks before and behind are left out there. `fresh`: rows begin with ``BOS``, if with words.
    """
    rows, media = [], []
    for pieces in plan:
        row: list[int] = []
        own: list[Media] = []
        pictures = sum(str(p).startswith("i") for p in pieces)
        for piece in pieces:
            if isinstance(piece, int):
                row += words(piece, g)
                continue
            sizes = family.sizes if piece[0] == "i" else family.clips
            size = sizes[int(piece[1:]) % len(sizes)]
            own.append(family.picture(size, pictures == 1, g) if piece[0] == "i" else family.video(size, g))
            row += own[-1].ids
        visual = [i for i, token in enumerate(row) if token in (IMAGE, VIDEO)]
        if isinstance(pieces[-1], str):
            row = row[: visual[-1] + 1]
        if isinstance(pieces[0], str):
            row = row[visual[0] :]
        elif fresh:
            row[0] = BOS
        rows.append(row)
        media.append(own)
    return Prompt(family, rows, media, side, padding)


def with_types(family: Family, inputs: dict[str, Any]) -> dict[str, Any]:
    """`inputs` with the token types of ``input_ids``, where `family` wants them."""
    if family.marked:
        ids = inputs["input_ids"]
        inputs[family.marked] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    return inputs
