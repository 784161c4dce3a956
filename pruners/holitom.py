"""HoliTom: cut a video where most repeats, merge what repeats, and keep of the rest what the encoder looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    at_least_one,
    best,
    budgets_of,
    columns_of,
    part_sizes,
    per_token,
    rank_in_part,
)
from vtc.pruners.primitives.clustering import density_peaks, pair_distances
from vtc.pruners.primitives.crops_and_frames import BLOCK, Frames, frames_of, similarity
from vtc.pruners.primitives.greedy import barred
from vtc.pruners.primitives.merging import (
    add_weighted,
    combine,
    group_sums,
    membership,
    nearest,
    squared_distances,
    take,
)
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.ranking import rankable

from .base import Merged, Pruner
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens

PAIRS = 2**20  # distances between tokens of some frames at a time
CHANNELS = 256  # widened together


class Windows(NamedTuple):
    """``begin [B, T]`` is the first frame of each frame's window, ``still [B, T, P]`` which places repeat in it."""

    begin: Tensor
    still: Tensor


@register_pruner("holitom")
@dataclass(kw_only=True)
class HoliTom(Pruner):
    """HoliTom (Shao et al., NeurIPS 2025, arXiv 2505.21334): holistic token merging, what happens before the decoder.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The authors report 0.1 to 0.25.
    tau : float
        Frames repeat at a place if their tokens' cosine is above it. The authors' is 0.8.
    beta : float
        Weight of a cluster's centre beside the mean of its others, in [0, 1]. The authors' is 0.6.
    neighbours : int
        Nearest tokens that a density looks at, itself included. The authors' is 7.
    official : bool
        As the authors count: ``ceil(r P)`` of a frame's P tokens that move, ``round(r S)`` of a window's S that don't.

    Notes
    -----
    Stage: input; merges. Frames `[T, P, D]` of projected features are cut into windows so that ``sum_w (l_w - 1) S_w``
    is largest, l the frames of a window and S its places at which every two neighbouring frames are alike (dynamic
    programming, shorter windows on ties). Those S places become one token each, their mean over the window, at its
    first frame; all others move. What is left, ``N' = N - sum_w (l_w - 1) S_w``, keeps its share ``r = keep N / N'``
    of every part: of the moving tokens of a frame those with the largest attention received (SigLIP; elsewhere the
    class token's), of the S means of a window as many centres by density peaks, each ``beta`` times itself and ``1 -
    beta`` times the mean of the others that are nearest to it. O(N P D) time.

    Parts share the budget by the largest remainder, so counts are exact; if `keep` is more than N', the repeated tokens
    of later frames come back by attention. The authors' second part, merging inside the decoder (their layer 18, half
    of the tokens), is left out; so is their option, off by default, to cluster moving tokens. Their noise on
    densities breaks ties, here the lowest index does. An image, or a video's frame that the model takes as a picture
    of its own, is one frame, of which the most attended tokens stay.
    """

    tau: float = 0.8
    beta: float = 0.6
    neighbours: int = 7
    official: bool = False

    paper: ClassVar[str] = "arXiv 2505.21334"
    merges: ClassVar[bool] = True
    signals: ClassVar[tuple[Signal, ...]] = (EncoderAttention(),)
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"holitom.{name}={getattr(self, name)} is out of range: it must be in [0, 1]")
        if self.neighbours < 1:
            raise ValueError(f"holitom.neighbours={self.neighbours!r} is out of range; it must be an int >= 1")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Moving tokens as they are, and centres of what repeats, at the first frame of their window."""
        x, frames = tokens.features, frames_of(tokens)
        attention = wide(tokens.read(self.signals[0]).to(tokens.ids.device)).mean(1)
        attention = attention.masked_fill(barred(x) < 0, float("nan"))
        budget = budgets_of(tokens)
        count = frames.there.shape[1]
        windows = windows_of(similarity(x, [0, *range(count - 1)], frames) > self.tau)
        turn = torch.arange(count, device=x.device)
        still, first = windows.still, (windows.begin == turn)[..., None]
        # moving tokens of a frame, means of a window, and what these stand for
        named = torch.where(still, torch.where(first, count + windows.begin[..., None], 2 * count), turn[:, None])
        part = frames.collect(named).masked_fill(~tokens.valid, 2 * count + 1)
        sizes = part_sizes(part, 2 * count + 1)[:, : 2 * count]
        quota, kept = self._shares(tokens, sizes, budget)
        means, peaks = x, torch.zeros_like(attention)
        if count > 1:  # else nothing can repeat
            means = self._means(x, frames, windows, tokens.valid)
            peaks = self._peaks(means, frames, still & first, kept[:, count:])
        mean = (part >= count) & (part < 2 * count)
        place = rank_in_part(torch.where(mean, peaks, rankable(attention).to(peaks)), part, 2 * count + 1)
        if self.official:
            chosen = (place < per_token(torch.nn.functional.pad(kept, (0, 1)), part)) & tokens.valid
            chosen = at_least_one(chosen, attention, tokens.valid)
            # rounding adds less than a token to each part
            columns = columns_of(chosen, min(part.shape[1], k + 1 + 2 * count), exact=False)
        else:
            key = per_token(torch.nn.functional.pad(quota, (0, 1)), part) - place
            key = torch.where(part == 2 * count, -part.shape[1] - 1.0 - place, key)
            chosen = best(key, budget, tokens.valid)
            columns = columns_of(chosen, k)
        centres = columns.clamp(min=0)
        made = self._merge(means, centres, chosen, mean, part) if count > 1 else take(x, centres)
        return Merged(columns, made.to(x.dtype))

    def _shares(self, tokens: VisualTokens, sizes: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """What each part `[B, 2 T]` keeps, as a number with its fraction, and rounded as the authors do."""
        left = sizes.sum(1, keepdim=True)
        counts = torch.tensor(list(tokens.counts), device=sizes.device)[:, None]
        ratio = self.keep if self.official and isinstance(self.keep, float) else budget.double() / counts
        quota = sizes * (ratio / (left.double() / counts)).clamp(max=1)
        moving = sizes.shape[1] // 2
        return quota, torch.cat([quota[:, :moving].ceil(), quota[:, moving:].round()], 1)

    @staticmethod
    def _means(x: Tensor, frames: Frames, windows: Windows, valid: Tensor) -> Tensor:
        """`x`, but at the first frame of a window the means over it of the places that repeat."""
        width = windows.still.shape[2]
        begin = windows.begin.gather(1, frames.frame.clamp(max=windows.begin.shape[1] - 1))
        member = frames.collect(windows.still) & valid
        slot, first = begin * width + frames.place, (member & (begin == frames.frame))[..., None]
        made = torch.empty_like(x)
        for c in (slice(start, start + CHANNELS) for start in range(0, x.shape[-1], CHANNELS)):
            sums, size = group_sums(x[..., c], slot, windows.begin.shape[1] * width, member)
            made[..., c] = torch.where(
                first, take(sums / size.clamp(min=1)[..., None], slot.clamp(max=sums.shape[1] - 1)), x[..., c]
            )
        return made

    def _peaks(self, means: Tensor, frames: Frames, free: Tensor, kept: Tensor) -> Tensor:
        """Each mean's score as a density peak of its window, of which `kept [B, T]` are asked for; `[B, N]`."""
        rows, count, width = free.shape
        wanted = kept.clamp(1, self.neighbours).long()
        some, scores = max(1, min(PAIRS // width, BLOCK) // (rows * width)), []
        for start in range(0, count, some):
            here = slice(start, start + some)
            seen = take(means, frames.column[:, here].flatten(1)).view(-1, width, means.shape[-1])
            mask = free[:, here].flatten(0, 1)
            found = density_peaks(pair_distances(seen, mask), wanted[:, here].flatten(), mask, self.neighbours)
            scores.append(rankable(found, mask).view(rows, -1, width))
        return frames.collect(torch.cat(scores, 1))

    def _merge(self, means: Tensor, columns: Tensor, chosen: Tensor, mean: Tensor, part: Tensor) -> Tensor:
        """The chosen `columns [B, k]` with what joins them, `[B, k, D]` float32."""
        centres = take(means, columns)
        allowed = (part[..., None] == part.gather(1, columns)[:, None]) & (chosen & mean).gather(1, columns)[:, None]
        likeness, group = nearest(-squared_distances(means, centres), allowed)
        inside = membership(group, columns.shape[1], mean & ~chosen & ~likeness.isinf())
        size = inside.sum(2, keepdim=True)
        own = torch.where(size > 0, self.beta, 1.0)
        return add_weighted(combine(inside, means).mul_((1 - own) / size.clamp(min=1)), centres, own)


def windows_of(alike: Tensor) -> Windows:
    """The windows that save most tokens, where ``alike [B, T, P]`` says which places repeat the frame before."""
    rows, count, _ = alike.shape
    run, saved = alike[:, 1:], alike.new_zeros(rows, count, count, dtype=torch.long)
    for length in range(1, count):
        saved[:, torch.arange(count - length), torch.arange(length, count)] = run.sum(2) * length
        run = run[:, :-1] & alike[:, length + 1 :]
    # most that the frames up to each save, and where the last window begins then
    most, starts = [torch.zeros_like(saved[:, 0, 0])], []
    for last in range(count):
        before = torch.stack(most[: last + 1], 1).flip(1)  # of windows that begin at `last`, one before it, ...
        found = before + saved[:, : last + 1, last].flip(1)
        back = found.argmax(1)
        most.append(found.gather(1, back[:, None])[:, 0])
        starts.append(last - back)
    begin, end, start = [], torch.full_like(most[0], count - 1), torch.zeros_like(most[0])
    for frame in reversed(range(count)):
        start = torch.where(end == frame, starts[frame], start)
        begin.append(start)
        end = torch.where(start == frame, frame - 1, end)
    begins = torch.stack(begin[::-1], 1)
    turn = torch.arange(count, device=alike.device)
    together = begins[:, :, None] == begins[:, None]
    moved = together.float() @ (~alike & (turn != begins)[..., None]).float()
    return Windows(begins, (moved == 0) & (together.sum(2) > 1)[..., None])
