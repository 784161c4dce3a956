"""Positions of pruned prompts under multi-dimensional rotary embeddings, from grids alone.

A pruned picture leaves gaps: text behind it, and every new token, stand where they would stand behind the whole
picture. So positions are asked of the engine's own function for the prompt as it was before pruning, and then narrowed.
Which tokens of a picture are left is known only once it is encoded; their places travel with its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DIGIT = 128  # whole numbers below are exact in every floating type that models run in, bfloat16 included
CHANNELS = 4  # two digits each of row and column
LARGEST = DIGIT**2 - 1


class Run(NamedTuple):
    """The placeholders of one picture: where they begin in the pruned prompt, how many are left, and of how many."""

    start: int
    kept: int
    full: int


def widened(tokens: Sequence[int], runs: Sequence[Run]) -> tuple[list[int], list[int]]:
    """The prompt before pruning, and where each run begins in it.

    Parameters
    ----------
    tokens : sequence of int
        The pruned prompt.
    runs : sequence of Run
        In order; the token at a run's start is the placeholder.
    """
    found: list[int] = []
    starts, done = [], 0
    for run in runs:
        found += tokens[done : run.start]
        starts.append(len(found))
        found += [tokens[run.start]] * run.full
        done = run.start + run.kept
    found += tokens[done:]
    return found, starts


def narrowed(positions: Tensor, runs: Sequence[Run]) -> tuple[Tensor, int]:
    """Positions of the pruned prompt, and what a new token's position has over the number of tokens before it.

    Parameters
    ----------
    positions : Tensor
        `[3, L]` of the prompt before pruning.
    runs : sequence of Run
        In the pruned prompt.

    Returns
    -------
    positions : Tensor
        `[3, l]`: exact, but for the pictures' tokens, which all stand at their picture's origin.
    delta : int
        The next token's position less `l`.
    """
    pieces, done, gone = [], 0, 0
    for run in runs:
        pieces.append(positions[:, done + gone : run.start + gone])
        origin = positions[:, run.start + gone : run.start + gone + 1]
        pieces.append(origin.expand(-1, run.kept))
        done, gone = run.start + run.kept, gone + run.full - run.kept
    pieces.append(positions[:, done + gone :])
    found = torch.cat(pieces, 1)
    return found, int(positions.max()) + 1 - found.shape[1]


def as_channels(ids: Tensor, cols: int, like: Tensor) -> Tensor:
    """Rows and columns of tokens `ids` `[k]` of a grid `cols` wide, as channels `[k, 4]` of the type of `like`."""
    rows, cols_of = ids // cols, ids % cols
    digits = [rows // DIGIT, rows % DIGIT, cols_of // DIGIT, cols_of % DIGIT]
    return torch.stack(digits, 1).to(like.device, like.dtype)


def from_channels(channels: Tensor) -> Tensor:
    """`[2, k]` int64: the rows and columns that ``as_channels`` wrote."""
    high_row, low_row, high_col, low_col = channels.long().unbind(1)
    return torch.stack([high_row * DIGIT + low_row, high_col * DIGIT + low_col])


def placed(positions: Tensor, slots: np.ndarray, channels: Tensor) -> Tensor:
    """`positions` `[3, l]` with pictures' tokens at `slots` put where `channels` `[k, 4]` say; in time all stand still.

    The first row of `positions` holds each picture's origin, before and after.
    """
    where = torch.from_numpy(slots).to(positions.device)
    found = positions.clone()
    offsets = from_channels(channels).to(positions.device)
    found[1:, where] = (found[0, where] + offsets).to(found.dtype)
    return found


def slots_from(tokens: Sequence[int] | Tensor, placeholder: int, start: int, count: int) -> np.ndarray:
    """The first `count` places of `placeholder` in `tokens` at or behind `start`."""
    ids = tokens.cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    found = np.flatnonzero(ids == placeholder)
    return found[found >= start][:count]
