"""DyCoke's temporal merging: of a video, drop what the frame beside already shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import rank_in_part
from vtc.pruners.primitives.crops_and_frames import Frames, frames_of, similarity

from .base import Pruner, Stop
from .registry import register_pruner
from .visual_tokens import VisualTokens

LAST = torch.iinfo(torch.int64).max


@register_pruner("dycoke")
@dataclass(kw_only=True)
class DyCoke(Pruner):
    """DyCoke (Tao et al., CVPR 2025, arXiv 2411.15024): temporal token merging (TTM), the prefill stage.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span, exactly. `official` does without.
    ratio : float
        The paper's K, with `official` only: what is dropped of a compared frame. The authors' command line says 0.7,
        which is the default here; their model builder, asked without one, 0.3.
    official : bool
        As the authors' code counts: ``int((1 - ratio) P)`` tokens of every compared frame and all of the others.

    Notes
    -----
    Stage: input, on projected features `[T, P, D]`. In groups of four frames a, b, c, d the second is compared with the
    first, the third with the first and the fourth with the third, place by place by cosine; of a compared frame the
    tokens LEAST similar to their counterpart stay, the first frame of a group stays whole. The similar ones are dropped
    (the paper's word is merged; the code averages nothing). O(N D), no text, no attention.

    The authors keep what the ratio gives, 0.25 + 0.75 (1 - ratio) of the tokens, at least a quarter, and their loop
    leaves out the third frame of the last group. Here the count is exact for every `keep`: frames that are not compared
    come first, the compared ones share the rest equally (the first ones one more). A budget below the uncompared frames
    is shared equally by those, each sampled evenly (``spread_order``). An image is one frame that is not
    compared: it is sampled evenly, for which ``uniform`` is the plain way, and kept whole with `official`; so is each
    frame of a video that the model takes as single pictures (InternVL). Ties go to the lowest index; a token whose
    cosine is not finite is dropped first. Left out: DyCoke's second stage, which changes the visible part of the cache
    at every decode step.
    """

    ratio: float = 0.7
    official: bool = False

    paper: ClassVar[str] = "arXiv 2411.15024"
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"dycoke.ratio={self.ratio!r} is out of range; it must be in [0, 1]")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the language model; the official count needs no `keep`."""
        return (Stop(self.stage, None, 0.5 if self.official and self.keep is None else self.keep),)

    def _compared(self, frames: Frames, row: int) -> list[bool]:
        """Which frames of a row are compared with an earlier one."""
        size = frames.sizes[row]
        third = [not self.official or t - 2 < size - 4 for t in range(size)]
        return [t % 2 == 1 or (t % 4 == 2 and third[t]) for t in range(size)]

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """`[B, k]`, frame by frame, the compared frames least similar first; official: -1 in unused columns."""
        frames = frames_of(tokens)
        device, (count, size) = tokens.ids.device, frames.there.shape[1:]
        compared = torch.zeros(len(frames.sizes), count + 1, dtype=torch.bool)
        for row in range(len(frames.sizes)):
            compared[row, : frames.sizes[row]] = torch.tensor(self._compared(frames, row))
        later = compared.to(device).gather(1, frames.frame)
        reference = [t - 1 if t % 2 else t - 2 if t % 4 == 2 else t for t in range(count)]
        likeness = frames.collect(similarity(tokens.features, reference, frames))
        place = torch.where(later, rank_in_part(-likeness, frames.frame, count), frames.turn)
        if self.official:
            quota = torch.tensor([int((1 - self.ratio) * p) for p in frames.places], device=device)[:, None]
            kept = tokens.valid & (~later | (place < quota))
        else:
            turn = (place + size * later) * count + frames.frame  # the uncompared frames, then the compared ones
            chosen = turn.masked_fill(~tokens.valid, LAST).sort(dim=1, stable=True).indices[:, :k]
            budget = torch.tensor(list(tokens.budgets), device=device)[:, None]
            kept = torch.zeros_like(later).scatter(1, chosen, torch.arange(k, device=device) < budget)
        order = frames.frame * size + torch.where(later, place, frames.place)
        columns = order.masked_fill(~kept, LAST).sort(dim=1, stable=True).indices
        if not self.official:
            return columns[:, :k]
        return torch.where(torch.arange(kept.shape[1], device=device) < kept.sum(1, keepdim=True), columns, -1)
