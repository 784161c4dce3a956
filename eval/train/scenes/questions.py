"""Questions about a scene; each answer follows from the scene record alone."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .palette import EXTREMES, IMAGE_SIZE, LETTERS, SYMBOL_SHAPES
from .scene import Entity, Scene

_MIDDLE = IMAGE_SIZE / 2
_LEAST_FROM_MIDDLE = 12.0
_LEAST_GAP = 14.0
_LEAST_MORE = 2


@dataclass(frozen=True)
class Question:
    """One question with its only right answer."""

    task: str
    text: str
    answer: str


def ask_color(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask for the colour of each lettered object."""
    return [Question("color", f"what color is {e.label}?", e.color) for e in scene.of_kind("lettered")]


def ask_shape(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask for the shape of each lettered object."""
    return [Question("shape", f"what shape is {e.label}?", e.shape) for e in scene.of_kind("lettered")]


def ask_quadrant(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask in which quarter each lettered object lies (those near a middle line are left out)."""
    return [
        Question("quadrant", f"where is {e.label}?", f"{_row(e)}-{_column(e)}")
        for e in scene.of_kind("lettered")
        if _clear(e.x) and _clear(e.y)
    ]


def ask_side(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask in which half each lettered object lies."""
    questions = []
    for e in scene.of_kind("lettered"):
        if _clear(e.x):
            questions.append(Question("side", f"is {e.label} left or right?", _column(e)))
        if _clear(e.y):
            questions.append(Question("side", f"is {e.label} top or bottom?", _row(e)))
    return questions


def ask_exist(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask whether a letter is there: as many yes as no."""
    present = [e.label for e in scene.of_kind("lettered")]
    absent = [letter for letter in LETTERS if letter not in present]
    count = min(len(present), len(absent), 4)
    letters = [(name, "yes") for name in rng.sample(present, count)]
    letters += [(name, "no") for name in rng.sample(absent, count)]
    return [Question("exist", f"is {name} in the image?", answer) for name, answer in letters]


def ask_count(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask how many rings, hearts and moons there are."""
    symbols = [e.shape for e in scene.of_kind("symbol")]
    return [
        Question("count", f"how many shapes are {shape}?", str(symbols.count(shape)))
        for shape in SYMBOL_SHAPES
        if symbols.count(shape) > 0
    ]


def ask_more(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask which of two kinds of symbols is there often, the other only once or so."""
    counts = Counter(e.shape for e in scene.of_kind("symbol"))
    return [
        Question("more", f"which are many, {first} shapes or {second}?", max((first, second), key=lambda s: counts[s]))
        for first, second in itertools.permutations(SYMBOL_SHAPES, 2)
        if abs(counts[first] - counts[second]) >= _LEAST_MORE
    ]


def ask_spatial(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask for the colour of the plate that lies farthest to one side."""
    plates = scene.of_kind("plate")
    questions = []
    for word, (axis, sign) in EXTREMES.items():
        ranked = sorted(plates, key=lambda e: sign * float(getattr(e, axis)))
        if len(ranked) < 2:
            continue
        first, second = (float(getattr(e, axis)) for e in ranked[:2])
        if abs(first - second) >= _LEAST_GAP:
            text = f"what color plate is {word}?"
            questions.append(Question("spatial", text, ranked[0].color))
    return questions


def ask_ocr(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask for the number on each colour (only plates bear numbers)."""
    return [Question("ocr", f"what number is on {e.color}?", e.label) for e in scene.of_kind("plate")]


def ask_reading(rng: random.Random, scene: Scene) -> list[Question]:
    """Ask for the number whose left digit is given (where only one plate has it)."""
    numbers = [e.label for e in scene.of_kind("plate")]
    tens = [number[0] for number in numbers]
    return [
        Question("reading", f"what number has left {number[0]}?", number)
        for number in numbers
        if tens.count(number[0]) == 1
    ]


ASKERS: dict[str, Callable[[random.Random, Scene], list[Question]]] = {
    "color": ask_color,
    "shape": ask_shape,
    "exist": ask_exist,
    "count": ask_count,
    "more": ask_more,
    "spatial": ask_spatial,
    "quadrant": ask_quadrant,
    "ocr": ask_ocr,
    "reading": ask_reading,
    "side": ask_side,
}
"""Task name -> function that lists all its questions about a scene."""

FIRST_SHARES = {
    "color": 7,
    "shape": 7,
    "exist": 8,
    "count": 3,
    "more": 4,
    "spatial": 4,
    "quadrant": 8,
    "ocr": 6,
    "side": 4,
}
"""How many questions of each task one training image gets (fewer if the scene has fewer)."""

LATER_SHARES = {
    "color": 4,
    "shape": 4,
    "exist": 6,
    "count": 3,
    "more": 4,
    "spatial": 4,
    "quadrant": 5,
    "ocr": 6,
    "reading": 4,
    "side": 3,
}
"""Shares once look-ups by letter are learnt."""

_EARLY_WORDINGS = {
    "count": ("how many shapes are {}?", "how many {} shapes are there?"),
    "spatial": ("what color plate is {}?", "what color is the {} plate?"),
    "ocr": ("what number is on {}?", "what number is on the {} plate?"),
}
"""Task -> wording of the evaluation set and the longer one of the first training steps."""


def early_wording(question: Question) -> Question:
    """Return a question in the longer wording that training starts with."""
    if question.task not in _EARLY_WORDINGS:
        return question
    wording, longer = _EARLY_WORDINGS[question.task]
    before, after = wording.split("{}")
    key = question.text.removeprefix(before).removesuffix(after)
    return Question(question.task, longer.format(key), question.answer)


def sample_questions(rng: random.Random, scene: Scene, shares: dict[str, int]) -> list[Question]:
    """Draw up to ``shares[task]`` questions of each task about one scene, in random order.

    Parameters
    ----------
    rng : random.Random
        Source of every random choice.
    scene : Scene
        What to ask about.
    shares : dict of str to int
        Largest number of questions per task.

    Returns
    -------
    list of Question
        No question occurs twice.
    """
    chosen: list[Question] = []
    for task, share in shares.items():
        pool = ASKERS[task](rng, scene)
        chosen += rng.sample(pool, min(share, len(pool)))
    rng.shuffle(chosen)
    return chosen


def _clear(value: float) -> bool:
    return abs(value - _MIDDLE) >= _LEAST_FROM_MIDDLE


def _column(entity: Entity) -> str:
    return "left" if entity.x < _MIDDLE else "right"


def _row(entity: Entity) -> str:
    return "top" if entity.y < _MIDDLE else "bottom"
