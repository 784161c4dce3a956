"""VScan: tokens from every window of the picture and from all of it, the others merged in; then a decoder step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    at_least_one,
    best,
    columns_of,
    part_sizes,
    parts_of,
    per_token,
    rank_in_part,
    windows,
    within_budgets,
)
from vtc.pruners.primitives.budget_over_stops import scaled_layer
from vtc.pruners.primitives.merging import channel_blocks, cosine, membership, nearest, take
from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.ranking import top_k

from .base import Merged, Pruner, Stop
from .registry import register_pruner
from .signals import AttentionAhead, EncoderAttention, Signal
from .visual_tokens import VisualTokens

PAPER = 16, 32  # layer and depth of LLaVA-1.5-7B
SHALLOW = 5 / 24  # layer and depth of CLIP-L
ROWS = 8192  # tokens that are compared with the kept ones at a time


@register_pruner("vscan")
@dataclass(kw_only=True)
class VScan(Pruner):
    """VScan (Zhang et al., 2025, arXiv 2505.22654): local and global scans of the encoder, then pruning in the middle.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span in the end, exactly.
    ratio : float
        How many times `keep` the input stage keeps; 1 leaves the stage in the language model out. The authors' script
        goes from 96 to 32 tokens (3), Qwen2.5-VL's from 16.7% to a third of them.
    layer : int, optional
        Decoder layer to prune before. By default the authors' 16 of 32, scaled to the depth (14 of Qwen's 28).
    shallow : int, optional
        Encoder layer of the local scan, from 0. By default the authors' 5 of CLIP's 24, scaled to the depth.
    window : int
        Side of a window in tokens. The authors' is 6: 16 windows of a 24 x 24 picture.
    global_ratio : float
        Share of the input stage's tokens that the global scan chooses. The authors' is 0.5.
    official : bool
        As the authors' code: every window keeps the same whole number of tokens, so fewer than asked are kept where
        that leaves a rest, but one at least.

    Notes
    -----
    Input stage, T tokens of N; merges. Local scan: every window keeps its share of the ``int(T (1 - global_ratio))``
    tokens, those with the largest ``mean_h A_shallow[h, i]``, A `[H, N]` the class token's attention (elsewhere the
    mean attention received); shares go by the windows' sizes and the largest remainder. Global scan: the others of T
    are those left with the largest attention in the layer that the projector reads. Each dropped token joins the kept
    one with the largest cosine of projected features `[N, D]`; a kept token becomes the mean of itself and those that
    joined it. O(N T D), an N x T matrix.

    Decoder stage: the `keep` tokens with the largest attention of the last prompt token, mean over heads, in the
    pruning layer itself on the states that enter it. Windows begin anew in every crop and frame. Positions stay, which
    the authors renumber. A bare line of tokens (no known grid) is cut into runs of `window`.
    """

    ratio: float = 3.0
    layer: int | None = None
    shallow: int | None = None
    window: int = 6
    global_ratio: float = 0.5
    official: bool = False

    paper: ClassVar[str] = "arXiv 2505.22654"
    merges: ClassVar[bool] = True
    uses_text: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio >= 1:
            raise ValueError(f"vscan.ratio={self.ratio} is out of range: it must be 1 (one stage) or more")
        if not 0 <= self.global_ratio <= 1:
            raise ValueError(f"vscan.global_ratio={self.global_ratio} is out of range: it must be in [0, 1]")
        if self.window < 1:
            raise ValueError(f"vscan.window={self.window!r} is out of range; it must be an int >= 1")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]
        self.uses_text = self.ratio != 1  # type: ignore[misc]

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Attention of two encoder layers, and of the decoder layer where the second stage is."""
        shallow = SHALLOW if self.shallow is None else self.shallow
        encoder = EncoderAttention(layer=shallow), EncoderAttention()
        return encoder if self.ratio == 1 else (*encoder, AttentionAhead())

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """The encoder's at the input stage, the decoder's behind it."""
        return self.signals[:2] if stop.stage == "input" else self.signals[2:]

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The input stage and, unless `ratio` is 1, a decoder layer."""
        if self.keep is None or self.ratio == 1:
            return (Stop("input", None, self.keep),)
        scaled = self.keep * self.ratio
        first = min(1.0, scaled) if isinstance(self.keep, float) else int(scaled + 0.5)
        layer = scaled_layer(*PAPER, depth) if self.layer is None else self.layer
        return Stop("input", None, first), Stop("decoder", layer, self.keep)

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """Columns in ascending order with their merged vectors; in the decoder the best by attention."""
        if tokens.stage == "decoder":
            columns = top_k(wide(tokens.read(self.signals[2])).mean(1)[:, 0], k, tokens.valid)
            return within_budgets(columns, tokens) if self.official else columns
        chosen = self._scan(tokens)
        index = columns_of(chosen, k, exact=False)
        real = index >= 0
        index_ = index.clamp(min=0)
        kept = take(tokens.features, index_)
        owner = torch.cat([nearest(cosine(some, kept), real)[1] for some in tokens.features.split(ROWS, 1)], 1)
        joined = membership(owner, k, tokens.valid & ~chosen).to(wide_dtype(tokens.features))
        merged = tokens.features.new_empty(*index.shape, tokens.features.shape[-1])
        for c in channel_blocks(merged.shape[-1], given=merged.dtype):
            x = wide(tokens.features[..., c])
            merged[..., c] = (take(x, index_) + joined @ x) / (1 + joined.sum(2, keepdim=True))
        return Merged(index, merged)

    def _scan(self, tokens: VisualTokens) -> Tensor:
        """`[B, N]` bool: what the local and the global scan choose."""
        shallow, deep = (wide(tokens.read(s)).mean(1) for s in self.signals[:2])
        device, valid = tokens.ids.device, tokens.valid
        near = [int(b * (1 - self.global_ratio)) for b in tokens.budgets]
        local = torch.tensor(near, device=device)[:, None]
        rest = torch.tensor([b - n for b, n in zip(tokens.budgets, near, strict=True)], device=device)[:, None]
        part, count = parts_of(tokens, lambda layout: windows(layout, self.window))
        rank, sizes = rank_in_part(shallow, part, count), part_sizes(part, count)
        if self.official:
            chosen = (rank < local // (sizes > 0).sum(1, keepdim=True)) & valid
        else:
            quota = local * sizes / sizes.sum(1, keepdim=True)
            chosen = best(per_token(quota, part) - rank, local, valid)
        return at_least_one(chosen | best(deep, rest, valid & ~chosen), deep, valid)
