"""HoliTom: cut a video where most repeats, merge what repeats, and keep of the rest what the encoder looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.crops_and_frames import frames_of, similarity
from vtc.pruners.primitives.greedy import barred
from vtc.pruners.primitives.precision import exact, wide
from vtc.pruners.primitives.repeats import Windows, merge_repeats

from .base import Merged, Pruner
from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens


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
        frames = frames_of(tokens)
        before = [0, *range(frames.there.shape[1] - 1)]
        windows = windows_of(similarity(tokens.features, before, frames) > self.tau)
        attention = wide(tokens.read(self.signals[0]).to(tokens.ids.device)).mean(1)
        attention = attention.masked_fill(barred(tokens.features) < 0, float("nan"))
        official = self._counts(tokens) if self.official else None
        return merge_repeats(
            tokens, k, frames, windows, attention, self.neighbours, lambda n: torch.full_like(n, self.beta), official
        )

    def _counts(self, tokens: VisualTokens) -> Callable[[Tensor, Tensor, int], Tensor]:
        def counts(sizes: Tensor, share: Tensor, frames: int) -> Tensor:
            if isinstance(self.keep, float):  # not of the rounded budget
                total = torch.tensor(list(tokens.counts), device=sizes.device)[:, None]
                share = self.keep / (exact(sizes.sum(1, keepdim=True)) / total)
            quota = sizes * share.clamp(max=1)
            return torch.cat([quota[:, :frames].ceil(), quota[:, frames:].round()], 1)

        return counts


def windows_of(alike: Tensor) -> Windows:
    """The windows that save most tokens, where ``alike [B, T, P]`` says which places repeat the frame before."""
    rows, count, _ = alike.shape
    run, saved = alike[:, 1:], alike.new_zeros(rows, count, count, dtype=torch.long)
    for length in range(1, count):
        saved.diagonal(length, 1, 2).copy_(run.sum(2) * length)
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
