"""Pictures of scikit-learn's digits for a small classifier: one digit of any size anywhere, among scraps of others."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate, max_pool2d

SIDE = 48  # pixels
SCRAPS = 4  # pieces of other digits beside each one
WINDOW = 4  # of the 8 x 8 pixels of a digit that a scrap shows
SIZES = (24, 42)  # pixels that the 8 x 8 of a digit cover
TURN = 0.2  # radians
TOTAL, HELD_OUT = 1797, 450  # digits
CLASSES = tuple("0123456789")


class Digits(NamedTuple):
    """Digits `[n, 8, 8]` in [0, 1], their labels `[n]`, and their places in scikit-learn's data set."""

    pixels: Tensor
    labels: Tensor
    where: NDArray[np.int64]


def load_split() -> tuple[Digits, Digits]:
    """The digits to train on and the held-out ones, the same split every time.

    Raises
    ------
    ImportError
        Without scikit-learn, which ships them.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits come with scikit-learn: pip install 'vtc[digits]'") from None
    found = load_digits()
    pixels, labels = torch.tensor(found.images).float() / 16, torch.tensor(found.target).long()
    order = np.random.default_rng(0).permutation(len(labels))
    parts = (np.sort(order[HELD_OUT:]), np.sort(order[:HELD_OUT]))
    train, test = (Digits(pixels[i], labels[i], i) for i in parts)
    return train, test


def _place(pixels: Tensor, size: Tensor, x: Tensor, y: Tensor, turn: Tensor) -> Tensor:
    """Each of `[n, 8, 8]` turned and drawn `size` pixels wide at the centre `x`, `y` in pixels: `[n, SIDE, SIDE]`."""
    zoom = SIDE / size
    cos, sin = turn.cos() * zoom, turn.sin() * zoom
    right, down = 2 * x / SIDE - 1, 2 * y / SIDE - 1
    rows = (cos, -sin, sin * down - cos * right, sin, cos, -sin * right - cos * down)
    grid = affine_grid(torch.stack(rows, 1).view(-1, 2, 3), [len(pixels), 1, SIDE, SIDE], align_corners=False)
    drawn = grid_sample(pixels[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
    return ((drawn - 0.25) * 2).clamp(0, 1)


def render(pixels: Tensor, pool: Tensor, generator: torch.Generator) -> Tensor:
    """Draw digits.

    Parameters
    ----------
    pixels : Tensor
        `[n, 8, 8]` digits in [0, 1].
    pool : Tensor
        `[m, 8, 8]` digits that the scraps are torn from.
    generator : torch.Generator
        Sizes, places, scraps and backgrounds.

    Returns
    -------
    Tensor
        `[n, SIDE, SIDE]` uint8 grey pictures: a digit of 24 to 42 pixels, scraps of others around it, on a smooth
        uneven background.
    """
    n = len(pixels)

    def draw(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    size = draw(n, low=SIZES[0], high=SIZES[1])
    x, y = (size / 2 + draw(n) * (SIDE - size) for _ in "xy")
    ink = _place(pixels, size, x, y, draw(n, low=-TURN, high=TURN))
    free = 1 - max_pool2d(ink[:, None], 5, 1, 2)[:, 0]  # scraps don't touch the digit
    corner = torch.arange(8)
    for _ in range(SCRAPS):
        torn = pool[torch.randint(len(pool), (n,), generator=generator)]
        top, left = (torch.randint(1, 8 - WINDOW, (n, 1), generator=generator) for _ in "yx")
        shown = ((corner >= top) & (corner < top + WINDOW))[:, :, None]
        shown = shown & ((corner >= left) & (corner < left + WINDOW))[:, None]
        x, y, turn = draw(n, high=SIDE), draw(n, high=SIDE), draw(n, high=6.28)
        ink = torch.maximum(ink, 0.8 * free * _place(torn * shown, size * 0.8, x, y, turn))
    ground = interpolate(draw(n, 1, 4, 4, low=0.05, high=0.45), size=SIDE, mode="bicubic")[:, 0].clamp(0, 1)
    bright = ground + (draw(n, 1, 1, low=0.8, high=1.0) - ground) * ink
    return (bright * 255).round().to(torch.uint8)


def as_png(picture: Tensor) -> bytes:
    """A grey picture `[H, W]` uint8 as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture.numpy()).save(out, "PNG", optimize=True)
    return out.getvalue()
