"""Videos whose windows of frames repeat at some places: what repeats becomes one token, and all shares a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.pruners.base import Merged
from vtc.pruners.visual_tokens import VisualTokens

from .best_per_part import at_least_one, best, budgets_of, columns_of, part_sizes, per_token, rank_in_part
from .clustering import peaks_in_blocks
from .crops_and_frames import BLOCK, Frames
from .merging import add_weighted, combine, group_sums, membership, nearest, squared_distances, take
from .precision import exact, held_together
from .ranking import rankable

CHANNELS = 256  # widened together


class Windows(NamedTuple):
    """``begin [B, T]`` is the first frame of each frame's window, ``still [B, T, P]`` which places repeat in it."""

    begin: Tensor
    still: Tensor


def merge_repeats(
    tokens: VisualTokens,
    k: int,
    frames: Frames,
    windows: Windows,
    score: Tensor | None,
    neighbours: int,
    own: Callable[[Tensor], Tensor],
    official: Callable[[Tensor, Tensor, int], Tensor] | None = None,
    spare: int = 1,
) -> Merged:
    """Choose of what moves and of what repeats, and merge.

    Each place that repeats becomes the mean over its window, at the window's first frame. A part is what moves in a
    frame, or the means of a window: each keeps the same share, by the largest remainder. Means are kept by density
    peaks, and each other mean joins the nearest of its window. If more is asked than is left after the first step, the
    repeated tokens of later frames come back.

    Parameters
    ----------
    tokens : VisualTokens
        Videos; a picture is one frame.
    k : int
        ``max(tokens.budgets)``.
    frames : Frames
        ``frames_of(tokens)``.
    windows : Windows
        Which places repeat.
    score : Tensor or None
        `[B, N]`: of what moves, the largest stay; None: it is kept by density peaks and merged, too, frame by frame.
    neighbours : int
        Nearest tokens that a density looks at, at most as many as there are clusters where `score` is given.
    own : callable
        How many others join a token `[B, k, 1]`, to its weight beside their mean.
    official : callable, optional
        ``official(sizes [B, 2 T], share [B, 1], T)``: counts of the parts, what moves first, that need not sum up to
        the budget; then columns are -1 behind them.
    spare : int
        How many more than its share a part keeps then at most.
    """
    x, count = tokens.features, frames.there.shape[1]
    still, first = windows.still, _first(windows)
    part = parts_of_repeats(frames, windows, tokens.valid)
    sizes = part_sizes(part, 2 * count + 1)[:, : 2 * count]
    share = exact(budgets_of(tokens)) / sizes.sum(1, keepdim=True)
    quota = sizes * share.clamp(max=1)
    kept = quota if official is None else official(sizes, share, count)
    means = _means(x, frames, windows, tokens.valid) if count > 1 else x
    wanted = quota.round() if official is None else kept
    peaks = torch.zeros_like(frames.frame, dtype=torch.float32)
    if count > 1:  # else nothing can repeat
        limit = neighbours if score is None else wanted[:, count:].clamp(1, neighbours).long()
        peaks = _peaks(means, frames, still & first, limit, neighbours)
    clustered = (part >= count) & (part < 2 * count)
    if score is None:
        moving = _peaks(means, frames, frames.there & ~still, neighbours, neighbours)
        peaks, clustered = torch.where(clustered, peaks.to(moving), moving), part < 2 * count
    else:
        peaks = torch.where(clustered, peaks, rankable(score).to(peaks))
    place = rank_in_part(peaks, part, 2 * count + 1)
    if official is None:
        key = per_token(pad(quota, (0, 1)), part) - place
        chosen = best(
            torch.where(part == 2 * count, -part.shape[1] - 1.0 - place, key), budgets_of(tokens), tokens.valid
        )
        columns = columns_of(chosen, k)
    else:
        chosen = at_least_one((place < per_token(pad(kept, (0, 1)), part)) & tokens.valid, peaks, tokens.valid)
        columns = columns_of(chosen, min(part.shape[1], k + 1 + 2 * count * spare), exact=False)
    centres = columns.clamp(min=0)
    if count == 1 and score is not None:
        return Merged(columns, take(x, centres))
    return Merged(columns, _join(means, centres, chosen, clustered, part, own))


def _first(windows: Windows) -> Tensor:
    """Whether a frame is the first of its window, `[B, T, 1]` bool."""
    return (windows.begin == torch.arange(windows.begin.shape[1], device=windows.begin.device))[..., None]


def parts_of_repeats(frames: Frames, windows: Windows, valid: Tensor) -> Tensor:
    """Part of each token, `[B, N]` int64: of what moves its frame ``t < T``, of a window's means T + its first frame.

    What the means stand for is in part ``2 T``, padding in ``2 T + 1``.
    """
    count = windows.begin.shape[1]
    turn = torch.arange(count, device=valid.device)[:, None]
    means = torch.where(_first(windows), count + windows.begin[..., None], 2 * count)
    return frames.collect(torch.where(windows.still, means, turn)).masked_fill(~valid, 2 * count + 1)


def _means(x: Tensor, frames: Frames, windows: Windows, valid: Tensor) -> Tensor:
    """`x`, but at the first frame of a window the means over it of the places that repeat."""
    width = windows.still.shape[2]
    begin = windows.begin.gather(1, frames.frame.clamp(max=windows.begin.shape[1] - 1))
    member = frames.collect(windows.still) & valid
    slots = windows.begin.shape[1] * width
    slot, first = begin * width + frames.place, (member & (begin == frames.frame))[..., None]
    made = torch.empty_like(x)
    for c in (slice(start, start + CHANNELS) for start in range(0, x.shape[-1], CHANNELS)):
        sums, size = group_sums(x[..., c], slot, slots, member)
        sums = take(sums / size.clamp(min=1)[..., None], slot.clamp(max=slots - 1))
        made[..., c] = torch.where(first, sums, x[..., c])
    return made


def _peaks(x: Tensor, frames: Frames, free: Tensor, neighbours: int | Tensor, most: int) -> Tensor:
    """Each `free [B, T, P]` token's score as a density peak of its frame, `[B, N]`; `neighbours` may be `[B, T]`."""
    some, scores = max(1, BLOCK // (free.shape[0] * free.shape[2])), []
    for start in range(0, free.shape[1], some):
        here = slice(start, start + some)
        seen = take(x, frames.column[:, here].flatten(1)).view(-1, free.shape[2], x.shape[-1])
        wanted = neighbours if isinstance(neighbours, int) else neighbours[:, here].flatten()
        found = peaks_in_blocks(seen, free[:, here].flatten(0, 1), wanted, most)
        scores.append(found.view(free.shape[0], -1, free.shape[2]))
    return frames.collect(torch.cat(scores, 1))


def _join(
    x: Tensor, columns: Tensor, chosen: Tensor, clustered: Tensor, part: Tensor, own: Callable[[Tensor], Tensor]
) -> Tensor:
    """The chosen `columns [B, k]` of `x` with what joins them, `[B, k, D]` in the dtype of `x`."""
    return torch.cat([_joined(own, *some) for some in held_together(x, columns, chosen, clustered, part)])


def _joined(
    own: Callable[[Tensor], Tensor], x: Tensor, columns: Tensor, chosen: Tensor, clustered: Tensor, part: Tensor
) -> Tensor:
    """``_join`` of rows whose matrices are held together."""
    centres = take(x, columns)
    group, joins = _nearest_of_its_part(x, centres, (chosen & clustered).gather(1, columns), part, columns)
    inside = membership(group, columns.shape[1], joins & clustered & ~chosen)
    size = inside.sum(2, keepdim=True)
    weight = torch.where(size > 0, own(size), 1.0)
    made = combine(inside, x).mul_((1 - weight) / size.clamp(min=1))
    return add_weighted(made, centres, weight).to(x.dtype)


def _nearest_of_its_part(
    x: Tensor, centres: Tensor, allowed: Tensor, part: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest of the `allowed [B, k]` centres in each token's part, and whether there is one, `[B, N]` each."""
    of, groups, joins = part.gather(1, columns), [], []
    for some in (slice(start, start + BLOCK) for start in range(0, x.shape[1], BLOCK)):
        far = squared_distances(x[:, some], centres).neg_()
        like, group = nearest(far, allowed[:, None] & (part[:, some, None] == of[:, None]))
        groups.append(group)
        joins.append(~like.isinf())
    return torch.cat(groups, 1), torch.cat(joins, 1)
