"""From a scene to pixels and to what each patch shows."""

from __future__ import annotations

import functools
import io
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .backdrop import draw_backdrop
from .palette import ALL_COLORS, ALL_SHAPES, COLORS, DARK_INK_COLORS, GRID, IMAGE_SIZE, LETTERS, PATCH_SIZE
from .scene import Entity, Scene
from .shapes import paint_shape

IGNORE = -100
_LETTER_SIZE = 18
_DIGIT_SIZE = 20
_PLATE_BOX = (17.0, 13.5)
_LEAST_COVER = 0.15
_LEAST_GLYPH_COVER = 0.4


@dataclass(frozen=True)
class PatchLabels:
    """Class of each patch under several headings (``IGNORE`` where none applies)."""

    color: np.ndarray
    shape: np.ndarray
    letter: np.ndarray
    first_digit: np.ndarray
    second_digit: np.ndarray
    offset: np.ndarray
    owner: np.ndarray


def render(scene: Scene) -> Image.Image:
    """Paint a scene.

    Parameters
    ----------
    scene : Scene
        What to paint.

    Returns
    -------
    PIL.Image.Image
        RGB image of 336 pixels; the same scene always gives the same pixels.
    """
    rng = random.Random(scene.backdrop_seed)
    image = draw_backdrop(rng)
    draw = ImageDraw.Draw(image)
    for entity in scene.entities:
        fill = tuple(min(255, max(0, c + rng.randint(-18, 18))) for c in COLORS[entity.color])
        _paint(draw, entity, fill)
    return image


def compress(image: Image.Image, quality: int) -> bytes:
    """Return the image as JPEG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def patch_labels(scene: Scene, grid: int = GRID) -> PatchLabels:
    """Say what each patch shows.

    Colour and shape are given to every patch that an entity covers by at least 15%; its letter
    or digits only to those that it covers by at least 40%.

    Parameters
    ----------
    scene : Scene
        The scene that was rendered.
    grid : int
        Patches along a side; the image's is a multiple.

    Returns
    -------
    PatchLabels
        Arrays over the patches in raster order; ``offset`` is the vector in patches from the
        patch centre to the centre of its entity.
    """
    owner, cover = _owners(scene, grid)
    side = IMAGE_SIZE / grid
    row, column = np.divmod(np.arange(grid * grid), grid)
    names = ("color", "shape", "letter", "first_digit", "second_digit")
    labels = {name: np.full(grid * grid, IGNORE, dtype=np.int64) for name in names}
    offset = np.zeros((grid * grid, 2), dtype=np.float32)
    for index, entity in enumerate(scene.entities):
        mine = owner == index
        labels["color"][mine] = ALL_COLORS.index(entity.color)
        labels["shape"][mine] = ALL_SHAPES.index(entity.shape)
        offset[mine, 0] = entity.x / side - 0.5 - column[mine]
        offset[mine, 1] = entity.y / side - 0.5 - row[mine]
        core = mine & (cover >= _LEAST_GLYPH_COVER)
        if entity.kind == "lettered":
            labels["letter"][core] = LETTERS.index(entity.label)
        elif entity.kind == "plate":
            labels["first_digit"][core] = int(entity.label[0])
            labels["second_digit"][core] = int(entity.label[1])
    return PatchLabels(offset=offset, owner=owner, **labels)


def _paint(draw: ImageDraw.ImageDraw, entity: Entity, fill: tuple[int, ...]) -> None:
    x, y = entity.x, entity.y
    ink = (20, 20, 20) if entity.color in DARK_INK_COLORS else (245, 245, 245)
    if entity.kind == "plate":
        half_width, half_height = _PLATE_BOX
        box = [x - half_width, y - half_height, x + half_width, y + half_height]
        draw.rectangle(box, fill=fill, outline=ink)
        for digit, place in zip(entity.label, (x - PATCH_SIZE / 2, x + PATCH_SIZE / 2), strict=True):
            draw.text((place, y), digit, fill=ink, font=_font(_DIGIT_SIZE), anchor="mm")
        return
    paint_shape(draw, entity.shape, x, y, entity.radius, entity.angle, fill)
    if entity.kind == "lettered":
        draw.text(
            (x, y),
            entity.label.upper(),
            fill=ink,
            font=_font(_LETTER_SIZE),
            anchor="mm",
            stroke_width=2,
            stroke_fill=fill,
        )


def _owners(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the entity that covers most of each patch (or -1), and the share it covers."""
    count, side, patches = len(scene.entities), IMAGE_SIZE // grid, grid * grid
    canvas = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE), 0)
    draw = ImageDraw.Draw(canvas)
    for index, entity in enumerate(scene.entities):
        if entity.kind == "plate":
            half_width, half_height = _PLATE_BOX
            x, y = entity.x, entity.y
            box = [x - half_width, y - half_height, x + half_width, y + half_height]
            draw.rectangle(box, fill=index + 1)
        else:
            shape = "circle" if entity.shape == "ring" else entity.shape
            paint_shape(draw, shape, entity.x, entity.y, entity.radius, entity.angle, index + 1)
    pixels = np.asarray(canvas).reshape(grid, side, grid, side).transpose(0, 2, 1, 3)
    pixels = pixels.reshape(patches, -1).astype(np.int64)
    flat = pixels + (np.arange(patches) * (count + 1))[:, None]
    cover = np.bincount(flat.ravel(), minlength=patches * (count + 1))
    cover = cover.reshape(patches, count + 1)[:, 1:]
    share = cover.max(axis=1) / side**2
    return np.where(share >= _LEAST_COVER, cover.argmax(axis=1), -1), share


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
