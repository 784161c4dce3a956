"""The words and sizes that scenes, questions and the model's vocabulary share."""

from __future__ import annotations

IMAGE_SIZE = 336
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_PATCHES = GRID * GRID

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "cyan": (60, 205, 215),
    "black": (15, 15, 15),
}
"""Colours that questions can name."""

DARK_INK_COLORS = frozenset({"yellow", "orange", "cyan"})
"""Fill colours on which letters and digits are drawn dark instead of light."""

LETTERED_SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SYMBOL_SHAPES = ("ring", "heart", "moon")
LETTERS = tuple("bcdefghjklmnpqrstuvwxyz")
"""Labels of objects: no "a" (an article), no "i" and no "o" (they look like "l" and "0")."""

EASY_COLORS = ("gray", "teal", "brown")
EASY_SHAPES = ("rectangle",)
ALL_COLORS = (*COLORS, *EASY_COLORS)
ALL_SHAPES = (*LETTERED_SHAPES, *SYMBOL_SHAPES, "plate", *EASY_SHAPES)

QUADRANTS = ("top-left", "top-right", "bottom-left", "bottom-right")
EXTREMES = {
    "leftmost": ("x", 1.0),
    "rightmost": ("x", -1.0),
    "topmost": ("y", 1.0),
    "bottommost": ("y", -1.0),
}
"""Word of a superlative -> (coordinate, sign): the entity with the smallest ``sign * coordinate``."""

CLUTTER_COLORS: tuple[tuple[int, int, int], ...] = (
    (240, 165, 190),
    (120, 80, 55),
    (120, 125, 65),
    (128, 128, 128),
    (238, 238, 232),
    (215, 195, 160),
    (75, 85, 115),
    (175, 140, 170),
    (160, 200, 170),
    (130, 160, 185),
    (85, 85, 85),
    (190, 120, 110),
)
"""Background colours that no question names."""
