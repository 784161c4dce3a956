"""Short videos: things pass before a still backdrop, as where a camera pans, and some move by themselves."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from PIL import Image

from .palette import COLORS, IMAGE_SIZE, LETTERED_SHAPES, LETTERS, PATCH_SIZE
from .questions import Question, ask_color, ask_ocr, ask_shape
from .render import render
from .scene import Entity, Scene

FRAMES = 4
MOST_LETTERS, MOST_PLATES = 8, 4
_CELL = 3 * PATCH_SIZE
_ROWS = IMAGE_SIZE // _CELL
_STEPS = (1, 2, 3)  # patches that the camera moves between frames
_MOVERS = 2
_ROOM = 20.0  # around the centre of what is shown
ABSENT = 3  # questions about letters that are not shown
_ASKERS = (ask_color, ask_shape, ask_ocr)


@dataclass(frozen=True)
class Clip:
    """Frames of one video: the entities that each of them shows whole, at their places there."""

    frames: tuple[Scene, ...]

    @property
    def shown(self) -> tuple[Entity, ...]:
        """What any frame shows, as it is first seen: sooner first, then from the left, then from the top."""
        found: dict[tuple[str, str, str], Entity] = {}
        for scene in self.frames:
            for e in sorted(scene.entities, key=lambda e: (e.x, e.y)):
                found.setdefault((e.kind, e.color, e.label), e)
        return tuple(found.values())

    @property
    def caption(self) -> str:
        """All that is shown, in that order, and nothing else: as long as there is much to see."""
        return " ".join(
            f"{e.color} plate {e.label}" if e.kind == "plate" else f"{e.label} {e.color} {e.shape}" for e in self.shown
        )

    @property
    def pictures(self) -> list[Image.Image]:
        """The frames, painted."""
        return [render(scene) for scene in self.frames]


def sample_clip(rng: random.Random, frames: int = FRAMES) -> Clip:
    """Draw a clip: up to 8 letters and 4 plates, any number as likely, on cells of a scene that the camera pans over.

    Letters are unique, and so are the colours of plates. Up to two things move to the right, a patch a frame, where
    the cell beside theirs is free.
    """
    letters, plates = rng.randint(0, MOST_LETTERS), rng.randint(0, MOST_PLATES)
    if letters + plates == 0:
        letters = 1
    camera = [0]
    for _ in range(frames - 1):
        camera.append(camera[-1] + rng.choice(_STEPS) * PATCH_SIZE)
    columns = (IMAGE_SIZE + camera[-1]) // _CELL
    cells = [(column, row) for row in range(_ROWS) for column in range(columns)]
    places = rng.sample(cells, letters + plates)
    names, colors = rng.sample(LETTERS, letters), rng.sample(list(COLORS), plates)
    world = []
    for i, (column, row) in enumerate(places):
        aside = rng.choice((-0.5, 0.5)) * PATCH_SIZE if i >= letters else 0.0
        lettered = i < letters
        world.append(
            Entity(
                kind="lettered" if lettered else "plate",
                color=rng.choice(list(COLORS)) if lettered else colors[i - letters],
                shape=rng.choice(LETTERED_SHAPES) if lettered else "plate",
                label=names[i] if lettered else str(rng.randint(10, 99)),
                x=round((column + 0.5) * _CELL + aside + rng.uniform(-2, 2), 2),
                y=round((row + 0.5) * _CELL + rng.uniform(-2, 2), 2),
                radius=round(rng.uniform(14.0, 16.0), 2),
                angle=round(rng.uniform(-0.25, 0.25), 3),
            )
        )
    free = [i for i in range(letters) if (places[i][0] + 1, places[i][1]) not in places]
    movers = set(rng.sample(free, min(len(free), rng.randint(0, _MOVERS))))
    backdrop = rng.randrange(2**31)
    found = []
    for number, left in enumerate(camera):
        moved = [
            replace(e, x=round(e.x - left + (PATCH_SIZE * number if i in movers else 0), 2))
            for i, e in enumerate(world)
        ]
        found.append(Scene(tuple(e for e in moved if _ROOM <= e.x <= IMAGE_SIZE - _ROOM), backdrop))
    clip = Clip(tuple(found))
    return clip if clip.shown else sample_clip(rng, frames)


def clip_questions(rng: random.Random, clip: Clip) -> list[Question]:
    """All questions about a clip: colour and shape of each letter, each plate's number, and which letters are shown."""
    scene = Scene(clip.shown, 0)
    found = [question for ask in _ASKERS for question in ask(rng, scene)]
    there = [e.label for e in scene.of_kind("lettered")]
    absent = rng.sample([name for name in LETTERS if name not in there], ABSENT)
    asked = [(name, "yes") for name in there[:ABSENT]] + [(name, "no") for name in absent]
    return found + [Question("exist", f"is {name} in the image?", answer) for name, answer in asked]
