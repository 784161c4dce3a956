"""FastVID: cut a video into segments, keep what the encoder attends to, and merge the rest around density peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, pad

from vtc.pruners.primitives.best_per_part import at_least_one, best, budgets_of, columns_of, per_token, rank_in_part
from vtc.pruners.primitives.clustering import peaks_in_blocks
from vtc.pruners.primitives.crops_and_frames import BLOCK, Frames, frames_of
from vtc.pruners.primitives.merging import (
    add_weighted,
    combine,
    cosine,
    mean_of_patches,
    membership,
    nearest,
    take,
)
from vtc.pruners.primitives.precision import exact_dtype, settled, wide

from .base import Merged, Pruner
from .registry import register_pruner
from .signals import EncoderAttention, PreProjector, Signal
from .visual_tokens import VisualTokens

NEIGHBOURS = 4  # of the density, as in the authors' code


@register_pruner("fastvid")
@dataclass(kw_only=True)
class FastVid(Pruner):
    """FastVID (Shen et al., NeurIPS 2025, arXiv 2503.11187): dynamic density pruning.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    segments : int
        c: at least this many segments (as far as there are frames).
    threshold : float
        tau: frames less alike than this are cut, too.
    context : float
        d: the share of a frame's tokens that is context, the others are salient.
    every : int
        p: every p-th frame of a segment, counted from its end, is an anchor frame.
    weight : float
        beta: the least weight of an anchor beside the mean of its group.
    official : bool
        As the authors count: ``m = int(keep P)`` tokens of every frame, ``int(d m)`` of them context. Where that leaves
        none, the most attended token of all.

    Notes
    -----
    Stage: input; merges. T frames of P tokens; defaults c = 8, tau = 0.9, d = 0.4, p = 4, beta = 0.6 are the paper's.
    Segments: cuts at the c - 1 lowest cosines of neighbouring frames' global features, and at all below tau. Each frame
    keeps its ``m - int(d m)`` tokens of largest encoder attention (salient). The context budget of a segment goes to
    its anchor frames in equal parts: among their other tokens those with the highest density peaks, ``exp(-mean of the
    4 smallest d^2) * distance to the nearest denser``, d = Euclidean / sqrt(D) of features `[P, D]`. Every other token
    of the segment joins the anchor of largest cosine: ``x = w x_anchor + (1 - w) mean(anchor and joined)``, ``w = max(1
    / (joined + 1), beta)``. O(T P^2 D), a matrix `[N, anchors]`, and distances for some rows of `[T, P, P]` at a time.

    Exact counts: the budget is divided equally over the frames (the first ones one more), and what an anchor frame is
    too small for goes to the most attended tokens that are left. Attention is the class token's, or the mean received
    where the tower has none. (The authors: SigLIP's pooling head for LLaVA-OneVision, which stock models leave out; the
    frame's global feature comes from there too. Here it is the mean of what the projector reads.) An image is one frame
    and one segment: its most attended tokens, and density peaks that the others merge into; so is each frame of a video
    that the model takes as single pictures (InternVL). Ties go to the lowest index (the authors add noise to the
    densities); what is not finite comes last.
    """

    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    every: int = 4
    weight: float = 0.6
    official: bool = False

    paper: ClassVar[str] = "arXiv 2503.11187"
    merges: ClassVar[bool] = True
    signals: ClassVar[tuple[Signal, ...]] = (EncoderAttention(), PreProjector())
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("segments", "every"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"fastvid.{name}={value!r} is out of range: an int >= 1")
        for name, low in (("threshold", -1), ("context", 0), ("weight", 0)):
            value = getattr(self, name)
            if not low <= value <= 1:
                raise ValueError(f"fastvid.{name}={value!r} is out of range; it must be in [{low}, 1]")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Salient tokens and merged anchors in reading order; official: another number, -1 in unused columns."""
        frames, valid = frames_of(tokens), tokens.valid
        frame, count = frames.frame, frames.there.shape[1]
        attention = wide(tokens.read(self.signals[0]).to(frame.device)).mean(1)
        share, most = self._shares(tokens, frames)
        context = (share.double() * self.context).long()
        salient = valid & (rank_in_part(attention, frame, count) < per_token(share - context, frame))
        segment, quota = self.plan(self.similarities(tokens, frames), context, frames)
        anchor = valid & ~salient & (self._peaks(tokens, frames, salient) < per_token(quota, frame))
        kept = salient | anchor
        if self.official:
            kept = at_least_one(kept, attention, valid)
        else:  # what an anchor frame is too small for
            turn = rank_in_part(attention, torch.where(valid, 0, 1), 1)
            kept = best((1 + kept.long()) * turn.shape[1] - turn, budgets_of(tokens), valid)
        index = columns_of(kept, most, exact=not self.official)
        there = index.clamp(min=0)
        features = take(tokens.features, there)
        room = min(int(most * self.context) + 1, valid.shape[1])
        columns = (~anchor).to(torch.int8).sort(dim=1, stable=True).indices[:, :room]
        made = self._merge(tokens, columns, anchor.gather(1, columns), valid & ~kept, per_token(segment, frame))
        slots = torch.arange(room, device=frame.device).expand_as(columns)
        made = take(made.to(features.dtype), torch.zeros_like(frame).scatter(1, columns, slots).gather(1, there))
        return Merged(index, torch.where(anchor.gather(1, there)[..., None], made, features))

    def _shares(self, tokens: VisualTokens, frames: Frames) -> tuple[Tensor, int]:
        """Tokens of each frame, `[B, T]` int64, and the most that a row keeps."""
        device, turn = frames.there.device, torch.arange(frames.there.shape[1], device=frames.there.device)
        size = torch.tensor(list(frames.sizes), device=device)[:, None]
        if not self.official:
            budget = budgets_of(tokens)
            return (budget // size + (turn < budget % size)) * (turn < size), max(tokens.budgets)
        each = []
        for p, b, n in zip(frames.places, tokens.budgets, tokens.counts, strict=True):
            each.append(int(p * self.keep) if isinstance(self.keep, float) else p * b // n)
        most = max(m * t for m, t in zip(each, frames.sizes, strict=True))
        return torch.tensor(each, device=device)[:, None] * (turn < size), max(most, *tokens.budgets)

    def similarities(self, tokens: VisualTokens, frames: Frames) -> Tensor:
        """Cosine of each frame's global feature and the next one's, `[B, T - 1]`."""
        x = mean_of_patches(tokens.read(self.signals[1]).to(frames.frame.device))
        inside = membership(frames.frame, frames.there.shape[1], tokens.valid)
        means = combine(inside, x, exact_dtype(x.device)) / inside.sum(2, keepdim=True).clamp(min=1)
        return settled(cosine_similarity(means[:, 1:], means[:, :-1], dim=-1))

    def plan(self, likeness: Tensor, context: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
        """The segment of each frame and how many anchors it gets, `[B, T]` int64."""
        turn = torch.arange(context.shape[1], device=context.device)
        size = torch.tensor(list(frames.sizes), device=context.device)[:, None]
        pair = turn[1:] < size
        order = likeness.masked_fill(~pair, float("inf")).sort(dim=1, stable=True).indices
        cut = torch.zeros_like(pair.expand_as(order)).scatter(
            1, order, (turn[1:] <= self.segments - 1).expand_as(order)
        )
        cut = pad((cut | (likeness < self.threshold)) & pair, (1, 0))
        segment = cut.long().cumsum(1)
        alike = (segment[:, :, None] == segment[:, None]) & (turn < size)[:, None] & (turn < size)[..., None]
        back = (alike & (turn > turn[:, None])).sum(2)  # frames behind it in its segment
        holds = (turn < size) & (back % self.every == 0)
        total, among = ((alike * x[:, None]).sum(2) for x in (context, holds.long()))
        each = total // among.clamp(min=1)
        if not self.official:
            each = each + (back // self.every < total % among.clamp(min=1))
        return segment, each * holds

    def _peaks(self, tokens: VisualTokens, frames: Frames, salient: Tensor) -> Tensor:
        """Rank of each token as a density peak among its frame's tokens that are not salient, `[B, N]`."""
        free = frames.there & ~frames.spread(salient[..., None])[..., 0]
        block = max(1, BLOCK // (len(free) * free.shape[2]))  # some frames at a time: no copy of the whole video
        scores = []
        for columns, mask in zip(frames.column.split(block, 1), free.split(block, 1), strict=True):
            x = take(tokens.features.detach(), columns.flatten(1)).view(*mask.shape, -1)
            scores.append(peaks_in_blocks(x.flatten(0, 1), mask.flatten(0, 1), NEIGHBOURS).view(mask.shape))
        return rank_in_part(frames.collect(torch.cat(scores, 1)), frames.frame, free.shape[1])

    def _merge(self, tokens: VisualTokens, columns: Tensor, used: Tensor, others: Tensor, segment: Tensor) -> Tensor:
        """The anchors `columns [B, A]` with what joins them, `[B, A, D]` float32."""
        anchors = take(tokens.features, columns)
        allowed = (segment[..., None] == segment.gather(1, columns)[:, None]) & used[:, None]
        likeness, group = nearest(cosine(tokens.features, anchors), allowed)
        inside = membership(group, columns.shape[1], others & ~likeness.isinf())
        size = inside.sum(2, keepdim=True) + 1
        own = (1 / size).clamp(min=self.weight)
        mean = (1 - own) / size
        return add_weighted(combine(inside, tokens.features).mul_(mean), anchors, own + mean)
