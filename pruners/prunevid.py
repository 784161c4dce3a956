"""PruneVid: scenes of a video, what stands still in each once, look-alikes merged; then what the question looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.pruners.primitives.best_per_part import best, budgets_of, columns_of, part_sizes, per_token, rank_in_part
from vtc.pruners.primitives.budget_over_stops import scaled_layer
from vtc.pruners.primitives.clustering import dpc_knn
from vtc.pruners.primitives.crops_and_frames import Frames, frames_of
from vtc.pruners.primitives.merging import channel_blocks, group_sums, take
from vtc.pruners.primitives.precision import exact, exact_dtype, settled, wide
from vtc.pruners.primitives.repeats import Windows, merge_repeats, parts_of_repeats

from .base import Merged, Pruner, Stop
from .registry import register_pruner
from .signals import DecoderAttention, Signal
from .visual_tokens import VisualTokens

LOOKS = DecoderAttention(queries="text", heads="max")
LAYER = 11, 32  # behind layer 10 of PLLaVA-7B
WHOLE = 14  # parts of so many tokens at most stay as they are in the authors' code


@register_pruner("prunevid")
@dataclass(kw_only=True)
class PruneVid(Pruner):
    """PruneVid (Huang et al., ACL 2025, arXiv 2412.16117): merging in time and space, then the question.

    Parameters
    ----------
    keep : int or float, optional
        Tokens left behind `layer`, exactly, per span. The input stage leaves ``keep / tail`` of them, all where that is
        more than there are. The authors' 0.162 on PLLaVA would be 0.405 and then 0.4 of it. `official` does without.
    tail : float
        Share of the merged tokens that is left behind `layer`; 1 leaves the decoder stage out. The authors' alpha, 0.4.
    layer : int, optional
        Decoder layer to prune before. By default behind the authors' layer 10 of 32, scaled to the depth.
    tau : float
        A place stands still in a scene if its tokens' mean cosine is above it. The authors' is 0.8.
    scenes : float
        Clusters of frames, as a share of the frames. The authors' is 0.25.
    neighbours : int
        Nearest frames or tokens that a density looks at, itself included. The authors' is 7.
    cluster : float
        What is left of the tokens that are merged in space, with `official` only. The authors' is 0.5.
    official : bool
        As the authors count: of a part of more than 14 tokens ``int(cluster n)`` clusters, smaller ones stay whole; in
        the decoder ``int(tail n)`` of each part, which may be none. `keep` is not read then, but 1.0 keeps all.

    Notes
    -----
    Input stage, projected features `[T, P, D]`; merges. DPC-kNN clusters the frames' means into ``max(1, int(scenes
    T))``, by the largest ``exp(-mean of the 7 smallest d^2) * distance to the nearest denser``, d = Euclidean /
    sqrt(D). Of each cluster its longest run of two or more frames stays (all that are as long), and from left to right
    frames between such runs join the longer neighbour, the left one of equals: scenes. In a scene of W frames a place i
    stands still where ``2 / (W (W - 1)) sum_{s < t} cos(x_si, x_ti) > tau``, and becomes its mean over the scene, at
    its first frame. Then the means of each scene, and what else each of its frames has, are parts: each is clustered by
    DPC-kNN, and a cluster becomes its mean, where its centre stands. Decoder stage: of each part those tokens stay that
    get the most attention from the text behind the span in the layer before, maximum over heads and text. O(N P D).

    Exact counts: all parts keep the same share, by the largest remainder; where more is to be kept than parts have, the
    still tokens of later frames come back. Where the input stage leaves all, the frames are the parts in the decoder.
    The authors' noise on densities breaks ties, here the lowest index does. They put the means of a scene before its
    other tokens and number anew; here tokens stay where they stood. After the prompt they also take the dropped tokens
    out of the cache of the layers before; here those keep them, so that text generated later still sees them there.
    A picture, or a video's frame that the model takes as one, is one frame: clustered, then chosen from. A span without
    text behind it has nothing to choose by: the first of each part stay. The paper was read as far as its repository
    and summaries say.
    """

    tail: float = 0.4
    layer: int | None = None
    tau: float = 0.8
    scenes: float = 0.25
    neighbours: int = 7
    cluster: float = 0.5
    official: bool = False

    paper: ClassVar[str] = "arXiv 2412.16117"
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tail", "cluster", "scenes"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"prunevid.{name}={getattr(self, name)} is out of range: it must be in (0, 1]")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"prunevid.tau={self.tau} is out of range: it must be in [0, 1]")
        if self.neighbours < 1:
            raise ValueError(f"prunevid.neighbours={self.neighbours!r} is out of range; it must be an int >= 1")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    @property
    def uses_text(self) -> bool:  # type: ignore[override]
        """Only in the decoder."""
        return self.tail != 1

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The text's attention, for the decoder stage."""
        return (LOOKS,) if self.uses_text else ()

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """Features alone at the input stage."""
        return () if stop.stage == "input" else self.signals

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The input stage and, unless `tail` is 1, a decoder layer."""
        first, last = self._kept()
        if self.tail == 1:
            return (Stop("input", None, first),)
        layer = scaled_layer(*LAYER, depth) if self.layer is None else self.layer
        return Stop("input", None, first), Stop("decoder", layer, last)

    def _kept(self) -> tuple[int | float | None, int | float | None]:
        """What each stop keeps; of the authors' counts something that lets both happen."""
        if self.official and self.keep != 1.0:
            return 0.5, 1
        if self.keep is None:
            return None, None
        first = self.keep / self.tail
        return (min(1.0, first) if isinstance(self.keep, float) else int(first + 0.5)), self.keep

    @torch.no_grad()
    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """Centres in ascending order with their clusters' means; in the decoder what the text looks at."""
        frames = frames_of(tokens)
        if tokens.stage != "input":
            return self._looked_at(tokens, frames, k)
        begin = self._scenes(tokens.features, frames)
        windows = Windows(begin, still_places(tokens.features, frames, begin, self.tau))
        count = frames.there.shape[1]
        part = parts_of_repeats(frames, windows, tokens.valid)
        # what comes back of the still tokens of later frames is one of its frame
        part = torch.where(part == 2 * count, frames.frame, part)
        for i, (span, n) in enumerate(zip(tokens.span, tokens.counts, strict=True)):
            tokens.state.setdefault("parts", {})[span] = tokens.ids[i, :n], part[i, :n]
        official, spare = None, 1
        if self.official:
            k, official, spare = int(self.cluster * max(tokens.counts)), self._clusters, WHOLE
        return merge_repeats(tokens, k, frames, windows, None, self.neighbours, lambda n: 1 / (n + 1), official, spare)

    def _clusters(self, sizes: Tensor, share: Tensor, frames: int) -> Tensor:
        return torch.where(sizes > WHOLE, (exact(sizes) * self.cluster).floor(), sizes)

    def _scenes(self, x: Tensor, frames: Frames) -> Tensor:
        """First frame of each frame's scene, `[B, T]`."""
        count, real = frames.there.shape[1], frames.there.any(2)
        sums, sizes = group_sums(x.detach(), frames.frame, count, frames.frame < count, dtype=exact_dtype(x.device))
        wanted = [max(1, int(n * self.scenes)) for n in frames.sizes]
        clusters = torch.tensor(wanted, device=x.device)
        most = max(self.neighbours, *wanted)
        means = sums / sizes.clamp(min=1)[..., None].to(sums)
        return scenes_of(dpc_knn(means, clusters, self.neighbours, most, real).owner, real)

    def _looked_at(self, tokens: VisualTokens, frames: Frames, k: int) -> Tensor:
        """Of each part its share of the most looked at, in ascending order."""
        rows = wide(tokens.read(LOOKS))[:, 0]
        behind = tokens.text_valid(after=True).to(rows.device)
        # one more row, for a prompt without any text
        score = pad(rows.masked_fill(~behind[..., None], 0), (0, 0, 0, 1)).amax(1)
        count, part = 2 * frames.there.shape[1], frames.frame.clone()
        for i, span in enumerate(tokens.span):
            if span in tokens.state.get("parts", {}):
                ids, noted = (found.to(part.device) for found in tokens.state["parts"][span])
                part[i] = noted[torch.searchsorted(ids, tokens.ids[i]).clamp(max=len(ids) - 1)]
        part = part.masked_fill(~tokens.valid, count)
        sizes, place = part_sizes(part, count), rank_in_part(score.to(part.device), part, count)
        if self.official:
            chosen = (place < per_token((exact(sizes) * self.tail).floor(), part)) & tokens.valid
            return columns_of(chosen, chosen.shape[1], exact=False)
        quota = exact(budgets_of(tokens)) * sizes / sizes.sum(1, keepdim=True)
        return columns_of(best(per_token(quota, part) - place, budgets_of(tokens), tokens.valid), k)


def scenes_of(label: Tensor, real: Tensor) -> Tensor:
    """First frame of each frame's scene, `[B, T]` int64, where clusters `label [B, T]` tell which frames are alike.

    `real [B, T]` bool: False is padding, at the end of a row.
    """
    count, turn = label.shape[1], torch.arange(label.shape[1], device=label.device)
    starts = pad(label[:, 1:] != label[:, :-1], (1, 0), value=True)
    run = starts.cumsum(1) - 1
    length = part_sizes(run, count).gather(1, run)
    longest = torch.where(label[:, None] == label[:, :, None], length[:, None], 0).amax(2)
    stays = (length == longest) & (length > 1) & real
    # the run that stays at or behind each frame; none: no frames long
    behind = torch.where(stays, turn, count).flip(1).cummin(1).values.flip(1)
    length, label = (pad(x, (0, 1), value=v).gather(1, behind) for x, v in ((length, 0), (label, -1)))
    scene, size = torch.full_like(label[:, 0], -1), torch.zeros_like(label[:, 0])
    first, found = size, []
    for t in range(count):
        joins_left = ~stays[:, t] & (size >= length[:, t])
        here = torch.where(joins_left, scene, label[:, t])
        goes_on = here == scene
        size = torch.where(goes_on, size + 1, 1)
        scene, first = here, torch.where(goes_on, first, t)
        found.append(first)
    return torch.stack(found, 1)


def still_places(x: Tensor, frames: Frames, begin: Tensor, tau: float) -> Tensor:
    """Which places stand still in their frame's scene, `[B, T, P]` bool, by the mean cosine of all pairs of its frames.

    `begin [B, T]` are the scenes' first frames. Of unit vectors u the pairs' cosines sum up to ``|sum u|^2 - W``.
    """
    rows, count, places = frames.there.shape
    dtype, column = exact_dtype(x.device), frames.column.flatten(1)
    blocks = channel_blocks(x.shape[-1], dtype, x.dtype)
    squares = sum(take(x[..., c].detach(), column).to(dtype).square().sum(-1) for c in blocks)
    assert isinstance(squares, Tensor)
    usable = frames.there.flatten(1) & (squares > 0) & squares.isfinite()
    scale = torch.where(usable, squares, 1).rsqrt().masked_fill(~usable, 0)
    turn = torch.arange(count, device=x.device)
    inside = ((begin[:, None] == turn[:, None]) & frames.there.any(2)[:, None]).to(dtype)
    total = x.new_zeros(frames.there.shape, dtype=dtype)
    for c in blocks:
        unit = (take(x[..., c].detach(), column).to(dtype) * scale[..., None]).nan_to_num_(0, 0, 0)
        total += (inside @ unit.view(rows, count, -1)).view(rows, count, places, -1).square().sum(-1)
    frames_in = inside.sum(2)[..., None]
    total -= inside @ usable.view(rows, count, places).to(dtype)
    mean = settled(total / (frames_in * (frames_in - 1)).clamp(min=1))
    everywhere = (inside @ frames.there.to(dtype)) == frames_in
    still = (mean > tau) & everywhere & (frames_in > 1)
    return still.gather(1, begin[..., None].expand(-1, -1, places)) & frames.there
