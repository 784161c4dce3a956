"""The parts of LangDC (arXiv 2509.00969): pooled video tokens, what its captioner sees, and caption tokens.

Written from a description of the authors' inference code, whose vectors hold; ``langdc`` is made of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, gelu


class Projector(nn.Module):
    """Linear, GELU, linear, `[..., source]` to `[..., width]`."""

    def __init__(self, source: int, width: int):
        super().__init__()
        self.first, self.second = nn.Linear(source, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.second(gelu(self.first(x)))
        return found


class LightProjector(nn.Module):
    """LDPv2: a ``Projector``, pooling of the square map to `side x side`, and a depthwise convolution added to it."""

    def __init__(self, source: int, width: int, side: int = 4):
        super().__init__()
        self.side, self.project = side, Projector(source, width)
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """`[n, G^2, source]` to `[n, side^2, width]`."""
        pooled = pool_square(self.project(x), self.side)
        grid = pooled.transpose(1, 2).unflatten(2, (self.side, self.side))
        found: Tensor = (grid + self.near(grid)).flatten(2).transpose(1, 2)
        return found


def pool_square(x: Tensor, side: int) -> Tensor:
    """Average pooling of square maps `[n, G^2, D]`, row by row, to `[n, side^2, D]`."""
    size = math.isqrt(x.shape[1])
    if size * size != x.shape[1]:
        raise ValueError(f"{x.shape[1]} tokens are no square map")
    return pool_grid(x, (size, size), (side, side))


def pool_grid(x: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Average pooling of maps `[n, rows * cols, D]` of this `grid` to the rows and columns of `to`."""
    maps = x.transpose(1, 2).unflatten(2, grid)
    return adaptive_avg_pool2d(maps, to).flatten(2).transpose(1, 2)


def pool_centres(grid: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """The patch nearest to the middle of each window of ``pool_grid``, `[rows * cols]`, ascending."""

    def along(n: int, s: int) -> np.ndarray:
        i = np.arange(s)
        return (i * n // s - (-(i + 1) * n // s) - 1) // 2

    return (along(grid[0], to[0])[:, None] * grid[1] + along(grid[1], to[1])).reshape(-1)


def pooled_shape(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns, as a square grid's are, of at most so many windows, and of no more than there are patches."""
    rows = min(grid[0], max(1, round(math.sqrt(most * grid[0] / grid[1]))))
    return rows, min(grid[1], max(1, most // rows))


def pooled_video(frames: Tensor, video: Tensor, slots: int, sides: tuple[int, int] = (6, 4)) -> Tensor:
    """All of a video's pooled tokens in their order: every frame, segment by segment, and then every segment.

    Parameters
    ----------
    frames : Tensor
        `[segments * slots, G^2, D]`, projected: one map a frame.
    video : Tensor
        `[segments, slots * H^2, D]`, projected: what a video encoder makes of each segment, one map a frame slot.
    slots : int
        Frames of a segment.
    sides : tuple of int
        To which frames and slots are pooled.

    Returns
    -------
    Tensor
        `[n, D]`.
    """
    still = pool_square(frames, sides[0]).flatten(0, 1)
    return torch.cat([still, pool_square(_by_slot(video, slots), sides[1]).flatten(0, 1)])


def captioner_input(frames: Tensor, video: Tensor, slots: int, sides: tuple[int, int] = (12, 8)) -> Tensor:
    """What the captioner is shown of each segment, `[segments, n, D]`: its frames, and then its slots."""
    still = pool_square(frames, sides[0]).unflatten(0, (-1, slots)).flatten(1, 2)
    moving = pool_square(_by_slot(video, slots), sides[1]).unflatten(0, (-1, slots)).flatten(1, 2)
    return torch.cat([still, moving], 1)


def _by_slot(video: Tensor, slots: int) -> Tensor:
    return video.unflatten(1, (slots, -1)).flatten(0, 1)


def caption_lengths(ids: Tensor, end: int, pad: int, official: bool = True) -> list[int]:
    """How many steps of each segment's caption become tokens.

    Parameters
    ----------
    ids : Tensor
        `[segments, T]` of the captions, `end` and then `pad` behind those that ended.
    end, pad : int
        Their ids.
    official : bool
        As the authors' code counts, by the first `pad`: the step of the end is included, and a caption that fills all
        of T loses its last step, whether it ended there or not. False is the paper's: up to the end, all T without one.
    """
    steps, found = ids.shape[1], []
    for row in ids.tolist():
        if official:
            found.append(row.index(pad) if pad in row else steps - 1)
        else:
            found.append(row.index(end) + 1 if end in row else steps)
    return found


def caption_states(states: Sequence[Tensor], lengths: Sequence[int], layer: int | str) -> Tensor:
    """Soft tokens of all captions, segment by segment, `[sum(lengths), D]`.

    Parameters
    ----------
    states : sequence of Tensor
        By layer, the embeddings first, `[segments, T, D]`: what each step of the generation ends with at its last
        place, which is the state that the step's token is predicted from.
    lengths : sequence of int
        Steps of each segment.
    layer : int or "embedding"
        Which of them. ``"embedding"`` is the first, as in the published code: the embedding of the token before. The
        paper says 15.
    """
    chosen = states[0] if layer == "embedding" else states[int(layer)]
    return torch.cat([row[:n] for row, n in zip(chosen, lengths, strict=True)])
