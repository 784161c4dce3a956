"""Products in bfloat16, and how far they are off: float32's work in half of the time, but for what comes out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .rows import ALIKE, Rows

LONGEST = 1e15  # a token whose products stay far from overflowing
SHORTEST = 1e-5  # length of a token as a share of the longest one (or of 1): below it products may vanish
HALF_STEP = 2.0**-8  # of bfloat16, as a share of a number
ROUNDED = HALF_STEP / (1 - HALF_STEP)  # the same, as a share of a number plus or less it
SLACK = 6e-6  # more than two products in float32 are off by, and what counts as equal
GROUP = 64  # pairs made wide together
PARTS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 0, 1, 0)  # which parts of two numbers are multiplied: all but the tiny products


def bears_products(rows: Rows) -> bool:
    """Whether products in bfloat16 of all pairs of tokens neither overflow nor vanish."""
    longest = float(rows.length.max())
    return rows.all_usable and longest < LONGEST and float(rows.length.min()) > SHORTEST * max(1.0, longest)


def left_channels(number: Tensor) -> Tensor:
    """`[n, 6]` bfloat16 whose products with ``right_channels`` are those of the numbers `[n]`, float32."""
    return _in_parts(number)[:, PARTS[0]]


def right_channels(number: Tensor) -> Tensor:
    """See ``left_channels``."""
    return _in_parts(number)[:, PARTS[1]]


def _in_parts(number: Tensor) -> Tensor:
    parts = []
    for _ in range(3):
        parts.append(number.bfloat16())
        number = number - parts[-1].float()
    return torch.stack(parts, 1)


def exact_cosines(rows: Rows, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines of some tokens to some others, one to one, in float32; the same in either order."""
    made = np.empty(len(one), dtype=np.float32)
    for start in range(0, len(one), GROUP):
        part = slice(start, start + GROUP)
        pair = torch.from_numpy(np.concatenate([one[part], other[part]]))
        left, right = rows.x.index_select(0, pair).float().chunk(2)
        made[part] = left.mul_(right).sum(1).numpy()
    length = rows.length.numpy()
    made /= length[one] * length[other]
    made[made > ALIKE] = 1
    return made
