"""VidCom2: give distinctive frames of a video a larger share, and keep their distinctive tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import at_least_one, per_token, rank_in_part
from vtc.pruners.primitives.crops_and_frames import Frames, frames_of
from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.ranking import rankable

from .base import Pruner
from .registry import register_pruner
from .visual_tokens import VisualTokens

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # the authors' Gaussian kernels
TEMPERATURE = 0.01


class Scores(NamedTuple):
    """What VidCom2 decides by.

    ``video [B, N]`` and ``frame [B, N]`` are each token's nearness to the video's and its frame's mean, high where it
    is common; ``weight [B, T]`` is each frame's share as a multiple of an equal one.
    """

    video: Tensor
    frame: Tensor
    weight: Tensor


@register_pruner("vidcom2")
@dataclass(kw_only=True)
class VidCom2(Pruner):
    """VidCom2 (Liu et al., EMNLP 2025, arXiv 2505.14454): video compression commander.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The paper's R; its headline setting is 0.25.
    official : bool
        As the authors' code counts: ``round(min(1, keep w_t) P)`` tokens of frame t, whose sum is only near ``keep``.

    Notes
    -----
    Stage: input, on projected features `[T, P, D]`. Of the `D` channels the half with the lowest variance over the
    video is used, each token scaled to length 1. With ``g(x, c) = sum_a exp(-|x - c|^2 / 2a)``, a in {1/8, 1/4, 1/2, 1,
    2}: ``g_v = g(x, mean of the video)``, ``g_f = g(x, mean of its frame)``. A frame is distinctive if its mean ``g_v``
    is low: ``p = softmax(-mean g_v / 0.01)`` over the frames, weight ``w_t = 1 + p_t - 1 / T``. Each frame keeps its
    tokens with the lowest ``g_v + g_f``. O(N D), no text, no attention. Constants are those of the authors' code.

    The authors round frame by frame and cut a frame's share at all its tokens. Here the count is exact: the budget is
    divided over the frames by the weights as seats in a parliament (Webster: the `k` smallest of ``(j + 1/2) / w_t``, j
    the place of a token in its frame), which is their rounding wherever that adds up. An image is one frame: its tokens
    farthest from its mean stay; so it is with each frame of a video that the model takes as single pictures (InternVL).
    What is not finite counts as 0 in the means, and its token comes last in its frame. LLaVA-Video's newline tokens,
    which the authors keep, are no candidates here. Ties go to the lowest index.
    """

    official: bool = False

    paper: ClassVar[str] = "arXiv 2505.14454"
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def scores(self, tokens: VisualTokens, frames: Frames) -> Scores:
        """Nearness of the tokens and weights of the frames."""
        x, valid = tokens.features.detach(), tokens.valid[..., None]
        whole, counts = x.isfinite().all(-1), valid.sum(1, keepdim=True)
        centred = x.to(wide_dtype(x), copy=True).nan_to_num_(0, 0, 0)  # in place: a video is long
        variance = centred.sub_(centred.sum(1, keepdim=True) / counts).mul_(valid).square_().sum(1)
        del centred
        calm = rankable(-variance).sort(dim=1, descending=True, stable=True).indices[:, : max(1, x.shape[2] // 2)]
        used = wide(x.gather(2, calm[:, None].expand(-1, x.shape[1], -1))).nan_to_num_(0, 0, 0)
        used = used.div_(used.norm(dim=-1, keepdim=True).clamp(min=1e-12)).mul_(valid)
        video = _nearness(used - used.sum(1, keepdim=True) / counts)
        there = frames.there[..., None]
        placed = frames.spread(used).mul_(there)
        placed.sub_(placed.sum(2, keepdim=True) / there.sum(2, keepdim=True).clamp(min=1))
        frame = frames.collect(_nearness(placed))
        real = frames.there.any(2)
        total = frames.spread(video[..., None])[..., 0].masked_fill(~frames.there, 0).sum(2)
        rarity = rankable(-total / frames.there.sum(2).clamp(min=1)).masked_fill(~real, float("-inf"))
        share = ((rarity - rarity.amax(1, keepdim=True)) / TEMPERATURE).softmax(1)
        weight = (1 + share - 1 / real.sum(1, keepdim=True)).masked_fill(~real, 0)
        return Scores(video.masked_fill(~whole, float("inf")), frame, weight)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """`[B, k]`; official: another number, frame by frame, -1 in unused columns."""
        frames = frames_of(tokens)
        scores = self.scores(tokens, frames)
        count = frames.there.shape[1]
        place = rank_in_part(-(scores.video + scores.frame), frames.frame, count)
        if not self.official:
            turn = (place + 0.5) / per_token(scores.weight, frames.frame).clamp(min=1e-6)
            return turn.masked_fill(~tokens.valid, float("inf")).sort(dim=1, stable=True).indices[:, :k]
        seats = (self.shares(tokens, scores) * frames.there.sum(2)).round()
        kept = tokens.valid & (place < per_token(seats, frames.frame))
        kept = at_least_one(kept, -(scores.video + scores.frame), tokens.valid)
        columns = (~kept).to(torch.int8).sort(dim=1, stable=True).indices
        return torch.where(torch.arange(kept.shape[1], device=kept.device) < kept.sum(1, keepdim=True), columns, -1)

    def shares(self, tokens: VisualTokens, scores: Scores) -> Tensor:
        """The part of each frame that the authors keep, `[B, T]`."""
        pairs = zip(tokens.budgets, tokens.counts, strict=True)
        keep = [self.keep if isinstance(self.keep, float) else k / n for k, n in pairs]
        return (torch.tensor(keep, device=scores.weight.device)[:, None] * scores.weight).clamp(max=1)


def _nearness(offset: Tensor) -> Tensor:
    """Sum of the Gaussian kernels of vectors `[..., D]`, `[...]`; `offset` is used up."""
    distance = offset.square_().sum(-1)
    return torch.stack([torch.exp(-distance / (2 * a)) for a in WIDTHS]).sum(0)
