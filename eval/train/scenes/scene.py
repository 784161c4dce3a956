"""What is in a scene: entities, their layout, and how dense a scene is."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass

from .palette import COLORS, IMAGE_SIZE, LETTERED_SHAPES, LETTERS, PATCH_SIZE, SYMBOL_SHAPES

_CELL = 3 * PATCH_SIZE
_CELLS_PER_SIDE = IMAGE_SIZE // _CELL - 1
_SHIFTS = 4
_JITTER = 2.0


@dataclass(frozen=True)
class Entity:
    """One thing that questions can ask about.

    Attributes
    ----------
    kind : str
        ``"lettered"`` (a shape with a letter on it), ``"symbol"`` (a ring, heart or moon) or
        ``"plate"`` (a coloured plate with a two-digit number).
    color, shape : str
        Words of :mod:`vtc.eval.train.scenes.palette`; the shape of a plate is ``"plate"``.
    label : str
        The letter, the number, or ``""`` for a symbol.
    x, y, radius, angle : float
        Centre and size in pixels, rotation in radians.
    """

    kind: str
    color: str
    shape: str
    label: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """The entities of one image and the seed of its background."""

    entities: tuple[Entity, ...]
    backdrop_seed: int

    def of_kind(self, kind: str) -> list[Entity]:
        """Return the entities of one kind."""
        return [entity for entity in self.entities if entity.kind == kind]

    def fingerprint(self) -> str:
        """Return a hash of what is shown and where; equal scenes have equal fingerprints."""
        record = json.dumps([asdict(entity) for entity in self.entities], sort_keys=True)
        return hashlib.sha256(record.encode()).hexdigest()


@dataclass(frozen=True)
class Density:
    """How many entities a scene holds; each pair is an inclusive range.

    ``symbols`` is the range for each of the three symbol shapes, ``least`` the smallest total;
    with ``few_or_many`` a symbol shape occurs as often as one of the two ends of its range.
    """

    letters: tuple[int, int]
    plates: tuple[int, int]
    symbols: tuple[int, int]
    least: int = 1
    few_or_many: bool = False


DENSE = Density(letters=(22, 22), plates=(8, 8), symbols=(1, 4), few_or_many=True)
"""Evaluation scenes: questions ask about 33 to 42 entities; 5% of 576 leaves 29 tokens."""


def sample_scene(rng: random.Random, density: Density) -> Scene:
    """Draw the entities of one scene and place them on a jittered grid.

    Parameters
    ----------
    rng : random.Random
        Source of every random choice.
    density : Density
        How many entities of each kind.

    Returns
    -------
    Scene
        Letters are unique within a scene, and so are the colours of its plates.
    """
    kinds = _sample_kinds(rng, density)
    places = _sample_places(rng, len(kinds))
    letters = rng.sample(LETTERS, len(LETTERS))
    plate_colors = rng.sample(list(COLORS), len(COLORS))
    entities = []
    for (kind, shape), (left, top) in zip(kinds, places, strict=True):
        # A glyph of a shape sits in one patch; the two digits of a plate in two adjacent ones.
        aside = rng.choice((-0.5, 0.5)) * PATCH_SIZE if kind == "plate" else 0.0
        color = plate_colors.pop() if kind == "plate" else rng.choice(list(COLORS))
        label = ""
        if kind == "plate":
            label = str(rng.randint(10, 99))
        elif kind == "lettered":
            label = letters.pop()
        entities.append(
            Entity(
                kind=kind,
                color=color,
                shape=shape,
                label=label,
                x=round(left + _CELL / 2 + aside + rng.uniform(-_JITTER, _JITTER), 2),
                y=round(top + _CELL / 2 + rng.uniform(-_JITTER, _JITTER), 2),
                radius=round(rng.uniform(14.0, 16.0), 2),
                angle=round(rng.uniform(-0.25, 0.25), 3),
            )
        )
    return Scene(tuple(entities), rng.randrange(2**31))


def _sample_kinds(rng: random.Random, density: Density) -> list[tuple[str, str]]:
    while True:
        letters = rng.randint(*density.letters)
        plates = rng.randint(*density.plates)
        draw = rng.choice if density.few_or_many else lambda ends: rng.randint(*ends)
        symbols = [draw(density.symbols) for _ in SYMBOL_SHAPES]
        if letters + plates + sum(symbols) >= density.least:
            break
    kinds = [("lettered", rng.choice(LETTERED_SHAPES)) for _ in range(letters)]
    kinds += [("plate", "plate")] * plates
    for shape, count in zip(SYMBOL_SHAPES, symbols, strict=True):
        kinds += [("symbol", shape)] * count
    return kinds


def _sample_places(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Top-left corners of ``count`` cells of a grid whose rows are shifted by whole patches."""
    top = rng.randrange(_SHIFTS) * PATCH_SIZE
    shifts = [rng.randrange(_SHIFTS) * PATCH_SIZE for _ in range(_CELLS_PER_SIDE)]
    cells = [
        (shift + column * _CELL, top + row * _CELL)
        for row, shift in enumerate(shifts)
        for column in range(_CELLS_PER_SIDE)
    ]
    return rng.sample(cells, count)
