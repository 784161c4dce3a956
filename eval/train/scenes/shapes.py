"""Outlines of the objects and how they are painted."""

from __future__ import annotations

import math
from typing import Any

from PIL import ImageDraw

Point = tuple[float, float]

_STRETCH = {"square": 1.18, "triangle": 1.3, "diamond": 1.3, "star": 1.3, "cross": 1.12}


def paint_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, angle: float, fill: Any
) -> None:
    """Paint one filled shape.

    Parameters
    ----------
    draw : PIL.ImageDraw.ImageDraw
        Where to paint (an RGB image or a label map).
    shape : str
        A name of :mod:`vtc.eval.train.scenes.palette`.
    x, y, radius : float
        Centre and size in pixels.
    angle : float
        Small rotation in radians (round shapes ignore it).
    fill : colour or int
        Anything Pillow accepts for the image's mode.
    """
    box = [x - radius, y - radius, x + radius, y + radius]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=max(4, int(radius * 0.38)))
    else:
        draw.polygon(_outline(shape, x, y, radius, angle), fill=fill)


def _outline(shape: str, x: float, y: float, radius: float, angle: float) -> list[Point]:
    unit = _UNIT_OUTLINES[shape]
    scale = radius * _STRETCH.get(shape, 1.0)
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + scale * (u * cos - v * sin), y + scale * (u * sin + v * cos)) for u, v in unit]


def _regular(corners: int, start: float, shift: float = 0.0) -> list[Point]:
    steps = [start + 2 * math.pi * i / corners for i in range(corners)]
    return [(math.cos(a), math.sin(a) + shift) for a in steps]


def _star() -> list[Point]:
    radii = [1.0 if i % 2 == 0 else 0.48 for i in range(10)]
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]


def _cross() -> list[Point]:
    a, b = 0.36, 1.0
    return [
        (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
        (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
    ]  # fmt: skip


def _heart() -> list[Point]:
    points = []
    for i in range(28):
        t = 2 * math.pi * i / 28
        v = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -v / 16 - 0.1))
    return points


def _moon() -> list[Point]:
    outer = [math.pi * (0.3 + 1.4 * i / 16) for i in range(17)]
    inner = [math.pi * (1.62 - 1.24 * i / 12) for i in range(13)]
    crescent = [(math.cos(a) + 0.1, math.sin(a)) for a in outer]
    return crescent + [(0.78 * math.cos(a) + 0.5, 0.78 * math.sin(a)) for a in inner]


_UNIT_OUTLINES: dict[str, list[Point]] = {
    "square": _regular(4, math.pi / 4),
    "diamond": [(u * 0.82, v) for u, v in _regular(4, 0.0)],
    "triangle": _regular(3, -math.pi / 2, shift=0.12),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "moon": _moon(),
}
