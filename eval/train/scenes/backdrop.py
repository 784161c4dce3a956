"""Textured, cluttered backgrounds in colours that no question names."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from .palette import CLUTTER_COLORS, IMAGE_SIZE

_BANK_SEED = 7
_NUM_TEXTURES = 48
_NUM_TILES = 600
_MARGIN = 64

Tile = tuple[np.ndarray, np.ndarray]


def draw_backdrop(rng: random.Random) -> Image.Image:
    """Return one random background image.

    Parameters
    ----------
    rng : random.Random
        Source of every random choice.

    Returns
    -------
    PIL.Image.Image
        RGB image of ``IMAGE_SIZE`` pixels.
    """
    textures, tiles = _bank()
    pixels = _crop_texture(rng, textures)
    for _ in range(rng.randint(8, 30)):
        _paste_tile(rng, pixels, tiles[rng.randrange(len(tiles))])
    image = Image.fromarray(pixels)
    _draw_lines(rng, ImageDraw.Draw(image))
    return image


def _crop_texture(rng: random.Random, textures: list[np.ndarray]) -> np.ndarray:
    texture = textures[rng.randrange(len(textures))]
    left, top = rng.randint(0, _MARGIN), rng.randint(0, _MARGIN)
    crop = texture[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE] + rng.randint(105, 205)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop[::-1]
    return np.ascontiguousarray(np.clip(crop, 0, 255).astype(np.uint8))


def _paste_tile(rng: random.Random, pixels: np.ndarray, tile: Tile) -> None:
    texture, mask = tile
    if rng.random() < 0.5:
        texture, mask = texture[:, ::-1], mask[:, ::-1]
    if rng.random() < 0.5:
        texture, mask = texture.transpose(1, 0, 2), mask.T
    height, width = mask.shape
    left = rng.randint(-width // 2, IMAGE_SIZE - width // 2)
    top = rng.randint(-height // 2, IMAGE_SIZE - height // 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, IMAGE_SIZE), min(top + height, IMAGE_SIZE)
    rows, cols = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    visible = mask[rows, cols]
    pixels[y0:y1, x0:x1][visible] = texture[rows, cols][visible]


def _draw_lines(rng: random.Random, draw: ImageDraw.ImageDraw) -> None:
    for _ in range(rng.randint(3, 12)):
        x, y = rng.randint(0, IMAGE_SIZE), rng.randint(0, IMAGE_SIZE)
        extent, width = rng.randint(10, 50), rng.randint(1, 3)
        base = rng.choice(CLUTTER_COLORS)
        color = tuple(min(255, max(0, value + rng.randint(-14, 14))) for value in base)
        if rng.random() < 0.5:
            end = (x + rng.randint(-120, 120), y + rng.randint(-120, 120))
            draw.line([(x, y), end], fill=color, width=width)
        else:
            box = [x - extent, y - extent, x + extent, y + extent]
            draw.arc(box, rng.randint(0, 360), rng.randint(0, 360), fill=color, width=width)


@functools.lru_cache(maxsize=1)
def _bank() -> tuple[list[np.ndarray], list[Tile]]:
    """Build the fixed pool of textures and tiles that backgrounds are composed of."""
    rng = np.random.RandomState(_BANK_SEED)
    textures = [_smooth_texture(rng) for _ in range(_NUM_TEXTURES)]
    tiles = [_tile(rng) for _ in range(_NUM_TILES)]
    return textures, tiles


def _smooth_texture(rng: np.random.RandomState) -> np.ndarray:
    size = IMAGE_SIZE + _MARGIN
    coarse = rng.randint(3, 16)
    channels = [
        np.asarray(
            Image.fromarray(rng.uniform(-1, 1, (coarse, coarse)).astype(np.float32)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
        )
        for _ in range(3)
    ]
    texture = np.stack(channels, axis=-1) * rng.uniform(8, 34)
    texture = texture + rng.normal(0, rng.uniform(2, 9), texture.shape)
    texture = texture + rng.uniform(-18, 18, (1, 1, 3))
    return texture.astype(np.int16)


def _clutter_color(rng: np.random.RandomState) -> np.ndarray:
    base = np.array(CLUTTER_COLORS[rng.randint(len(CLUTTER_COLORS))])
    return np.clip(base + rng.randint(-14, 15, 3), 0, 255)


def _tile(rng: np.random.RandomState) -> Tile:
    width, height = rng.randint(14, 64, 2)
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32)
    texture = _tile_texture(rng, rows[..., None], cols[..., None])
    texture = np.clip(texture + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)
    mask = np.ones((height, width), dtype=bool)
    if rng.rand() < 0.5:
        mask = ((cols - width / 2) / (width / 2)) ** 2 + ((rows - height / 2) / (height / 2)) ** 2 < 1
    return texture, mask


def _tile_texture(rng: np.random.RandomState, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    first, second = _clutter_color(rng), _clutter_color(rng)
    height, width = rows.shape[:2]
    style = rng.randint(5)
    if style == 0:
        return np.ones((height, width, 1)) * first
    if style == 1:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = cols * math.cos(angle) + rows * math.sin(angle)
        ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min() + 1e-3)
        return first * ramp + second * (1 - ramp)
    if style == 2:
        angle, period = rng.uniform(0, math.pi), rng.uniform(4, 13)
        wave = (cols * math.cos(angle) + rows * math.sin(angle)) / period
        return np.where(wave % 1 < rng.uniform(0.3, 0.7), first, second)
    if style == 3:
        period = rng.randint(3, 10)
        return np.where((cols // period + rows // period) % 2 < 1, first, second)
    period = rng.randint(1, 5)
    grain = rng.normal(0, rng.uniform(15, 50), (height // period + 1, width // period + 1, 1))
    return first + np.kron(grain, np.ones((period, period, 1)))[:height, :width]
