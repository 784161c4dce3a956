"""EVS: of a video, keep what changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.crops_and_frames import frames_of, similarity
from vtc.pruners.primitives.ranking import rankable, top_k
from vtc.pruners.primitives.score_pruner import ScorePruner

from .registry import register_pruner
from .visual_tokens import VisualTokens


@register_pruner("evs")
@dataclass(kw_only=True)
class Evs(ScorePruner):
    """EVS (Bagrov et al. 2025, arXiv 2510.14624; in vLLM as ``--video-pruning-rate``): efficient video sampling.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. vLLM's pruning rate is ``q = 1 - keep``.
    official : bool
        As in vLLM: ``max(P, int(T P keep))`` tokens of `T` frames with `P` tokens each, never less than a whole frame
        (so all of an image).

    Notes
    -----
    Stage: input, on projected features `[T, P, D]`. Score of the token at place p of frame t: ``1 - cos(x[t, p],
    x[t - 1, p])``; tokens without a predecessor (the first frame; vLLM gives them 255) come before all others. The `k`
    best are kept, ties go to the lowest index. O(N D), no text, no attention. Positions stay, M-RoPE's too.

    vLLM never splits the first frame. Here the count is exact: where it is smaller than the first frame, that frame's
    tokens are sampled evenly (``spread_order``). An image is one frame, so all of it is new: it is sampled
    evenly, for which ``uniform`` is the plain way; so is each frame of a video that the model takes as single pictures
    (InternVL). A token whose predecessor an earlier method dropped counts as new; one whose cosine is not finite comes
    last.
    """

    official: bool = False

    paper: ClassVar[str] = "arXiv 2510.14624"
    order_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def score(self, tokens: VisualTokens) -> Tensor:
        """Dissimilarity to the frame before, in [0, 2], `[B, N]`; new tokens above it, the first turns first."""
        frames = frames_of(tokens)
        count, places = frames.there.shape[1:]
        before = [max(t - 1, 0) for t in range(count)]
        found = 1 - similarity(tokens.features, before, frames)
        known = torch.nn.functional.pad(frames.there[:, 1:] & frames.there[:, :-1], (0, 0, 1, 0))
        return torch.where(frames.collect(known), frames.collect(rankable(found)), 2.0 + places - frames.turn)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The best columns, best first; official: another number of them, -1 in unused columns."""
        if not self.official:
            return super().select(tokens, k)
        frames = frames_of(tokens)
        counts = []
        for n, k_i, t, p in zip(tokens.counts, tokens.budgets, frames.sizes, frames.places, strict=True):
            asked = int(t * p * self.keep) if isinstance(self.keep, float) else k_i
            counts.append(min(n, max(p, asked)))
        most = max(k, *counts)
        columns = top_k(self.score(tokens), most, tokens.valid)
        used = torch.arange(most, device=columns.device) < torch.tensor(counts, device=columns.device)[:, None]
        return columns.masked_fill(~used, -1)
