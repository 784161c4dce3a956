"""PruneVid: merge what stays the same over a stretch of a video, and then what is alike in each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.clustering import dpc_knn
from vtc.pruners.primitives.crops_and_frames import Frames, frames_of
from vtc.pruners.primitives.merging import combine, group_sums, membership, take
from vtc.pruners.primitives.precision import exact, vector_lengths
from vtc.pruners.primitives.repeats import CHANNELS, Windows, merge_repeats

from .base import Merged, Pruner
from .registry import register_pruner
from .visual_tokens import VisualTokens

WHOLE = 14  # tokens that the authors don't cluster


@register_pruner("prunevid")
@dataclass(kw_only=True)
class PruneVid(Pruner):
    """PruneVid (Huang et al., ACL 2025, arXiv 2412.16117): spatial-temporal merging, what happens before the decoder.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly; with `official` their cluster ratio, 0.5 by default there.
    segments : float
        Clusters of frames, as a share of them. The authors' is 0.25.
    tau : float
        A place stays the same over a segment if the mean cosine of all pairs of its tokens is above it. The authors'
        is 0.8.
    neighbours : int
        Nearest ones that a density looks at, itself included. The authors' is 7.
    official : bool
        As the authors count: ``int(keep n)`` of each part of n tokens, all where n is at most 14.

    Notes
    -----
    Stage: input; merges. Frames `[T, P, D]` of projected features. Their means are clustered (DPC-kNN) into
    ``int(segments T)``; of each cluster the longest runs of frames stay (none of single frames), and what lies between
    joins the longer one of its neighbours, the left on ties. In a segment a place that stays the same becomes one
    token, its mean, at the first frame. Then the means of each segment, and the other tokens of each frame, are
    clustered (DPC-kNN), and each cluster is one token, its mean, at the place of its centre. Parts share the budget in
    proportion, so the count is exact. O(N P D) time.

    As in LightCompress (Apache-2.0), whose port of the first stage the vectors come from; the authors' own repository
    has no licence. The second stage, choosing by the question's attention inside the decoder (their layer 10), is left
    out: add ``fastv(layer=10)``. Their noise on densities breaks ties, here the lowest index does; they need seven
    frames at least. They put the means of a segment before its other tokens; here each stays where its centre was.
    """

    segments: float = 0.25
    tau: float = 0.8
    neighbours: int = 7
    official: bool = False

    paper: ClassVar[str] = "arXiv 2412.16117"
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("segments", "tau"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"prunevid.{name}={getattr(self, name)} is out of range: it must be in [0, 1]")
        if self.neighbours < 1:
            raise ValueError(f"prunevid.neighbours={self.neighbours!r} is out of range; it must be an int >= 1")
        if self.official:
            if isinstance(self.keep, int):
                raise ValueError("prunevid.official is the count for a fraction keep")
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """The centres of all clusters, as the means of these."""
        x, frames = tokens.features, frames_of(tokens)
        count = frames.there.shape[1]
        inside = membership(frames.frame, count, tokens.valid)
        means = combine(inside, x) / inside.sum(2, keepdim=True).clamp(min=1)
        there = frames.there.any(2)
        wanted = [max(1, int(n * self.segments)) for n in frames.sizes]
        clusters = dpc_knn(
            means, torch.tensor(wanted, device=x.device), self.neighbours, max(*wanted, self.neighbours), there
        )
        begin = runs(clusters.owner, there)
        windows = Windows(begin, self._still(x, frames, begin, tokens.valid))
        official = self._counts if self.official else None
        return merge_repeats(tokens, k, frames, windows, None, self.neighbours, lambda n: 1 / (n + 1), official, WHOLE)

    def _counts(self, sizes: Tensor, share: Tensor, frames: int) -> Tensor:
        keep = 1.0 if self.keep is None else self.keep
        return torch.where(sizes > WHOLE, (exact(sizes) * keep).floor(), sizes)

    def _still(self, x: Tensor, frames: Frames, begin: Tensor, valid: Tensor) -> Tensor:
        """Which places stay the same over the segment that starts at ``begin [B, T]``; `[B, T, P]`."""
        rows, count, width = frames.there.shape
        slots = count * width
        slot = (begin.gather(1, frames.frame.clamp(max=count - 1)) * width + frames.place).clamp(max=slots - 1)
        length = torch.stack([vector_lengths(row) for row in x]).clamp(min=1e-12)
        square = x.new_zeros(rows, slots, dtype=torch.float32)
        for c in (slice(start, start + CHANNELS) for start in range(0, x.shape[-1], CHANNELS)):
            sums, size = group_sums(x[..., c] / length[..., None], slot, slots, valid)
            square += sums.square().sum(-1)
        # of all pairs but those of a token with itself, whose cosines are 1
        alike = (square - size) / (size * (size - 1)).clamp(min=1)
        frames_in = (begin[:, :, None] == begin[:, None]).sum(2)
        still = (alike > self.tau).view(rows, count, width)
        still = still & (
            size.view(rows, count, width) == torch.zeros_like(begin).scatter(1, begin, frames_in)[..., None]
        )
        still = take(still, begin) & (frames_in > 1)[..., None]
        return still & frames.there


def runs(label: Tensor, there: Tensor) -> Tensor:
    """First frame of each frame's segment, `[B, T]`, from the clusters `label [B, T]` of frames that are `there`."""
    turn = torch.arange(label.shape[1], device=label.device)
    new = torch.ones_like(label, dtype=torch.bool)
    new[:, 1:] = label[:, 1:] != label[:, :-1]
    run = new.cumsum(1)
    long = (run[:, :, None] == run[:, None]).sum(2)
    longest = (long[:, None] * (label[:, :, None] == label[:, None])).amax(2)
    stays = (long == longest) & (longest > 1) & there
    # where the next run that stays begins, and how long it is
    start = torch.where(stays & new, turn, label.shape[1])
    ahead = start.flip(1).cummin(1).values.flip(1)
    after = torch.nn.functional.pad(long, (0, 1)).gather(1, ahead)
    named = torch.nn.functional.pad(label, (0, 1), value=-1).gather(1, ahead)
    begins, size, mine = [], torch.zeros_like(label[:, 0]), torch.full_like(label[:, 0], -1)
    begin, right = torch.zeros_like(size), torch.zeros_like(size, dtype=torch.bool)
    for t in range(label.shape[1]):
        # a stretch between such runs is decided at its first frame
        fresh = ~stays[:, t] & (stays[:, t - 1] if t else torch.ones_like(right))
        right = torch.where(fresh, after[:, t] > size, right)
        joins = torch.where(stays[:, t], label[:, t], torch.where(right, named[:, t], mine))
        begin = torch.where(joins == mine, begin, t) if t else begin
        size, mine = torch.where(joins == mine, size + 1, 1), joins
        begins.append(begin)
    return torch.where(there, torch.stack(begins, 1), turn)
