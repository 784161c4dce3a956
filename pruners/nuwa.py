"""Nuwa: the best tokens of every small region of the picture take in their neighbours; then the question chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    best,
    budgets_of,
    by_id,
    columns_of,
    part_sizes,
    parts_of,
    per_token,
    rank_in_part,
    windows,
)
from vtc.pruners.primitives.budget_over_stops import scaled_layer, two_stage
from vtc.pruners.primitives.merging import combine, cosine, cosine_of, inner, mean_of_patches, take
from vtc.pruners.primitives.precision import exact_dtype, settled, vector_lengths, wide, wide_dtype
from vtc.pruners.primitives.projector import project_anew
from vtc.pruners.primitives.ranking import rankable, top_k

from .base import Merged, Pruner, Stop
from .layout import Layout
from .registry import register_pruner
from .signals import (
    DecoderAttention,
    EncoderAttention,
    EncoderFeatures,
    EncoderKeys,
    PreProjector,
    Projected,
    Signal,
    TextEmbeddings,
)
from .visual_tokens import VisualTokens

BLOCK = 64  # anchors whose distances are computed together
LAYER = 16, 32  # layer and depth of LLaVA-1.5-7B
LATE = tuple(EncoderFeatures(layer=i / 24) for i in range(15, 24))  # layers of CLIP-L that the authors' code averages
ATTENTION, KEYS, TEXT = EncoderAttention(), EncoderKeys(), (Projected(), TextEmbeddings())


def places(layout: Layout) -> np.ndarray:
    """Grid, row, column and the grid's squared diagonal of each token, `[n, 4]` int64."""
    grid = layout.array[:, 0]
    diagonal = np.array([(g.rows - 1) ** 2 + (g.cols - 1) ** 2 for g in layout.grids], dtype=np.int64)
    return np.concatenate([layout.array, diagonal[grid][:, None]], 1)


@register_pruner("nuwa")
@dataclass(kw_only=True)
class Nuwa(Pruner):
    """Nuwa (Huang et al., ICLR 2026, arXiv 2602.02951): anchors spread over the picture, then those of the question.

    Parameters
    ----------
    keep : int or float
        What a decoder layer sees on AVERAGE, per span, as the paper counts. From it and `tail` follows what the input
        stage keeps (``budget_over_stops.two_stage``): 112 tokens, then 16, are 64 on average.
    tail : float
        Share of `keep` that is left behind `layer`; 1 leaves the decoder stage out. The paper's is 1/4 for LLaVA, and
        for Qwen2.5-VL 0.6, 0.8 and 0.87 at averages of 25, 50 and 75%.
    layer : int, optional
        Decoder layer to prune before. By default the 16 of 32 in the authors' code, scaled to the depth.
    region : int
        Side of a region in tokens. 2 in the authors' code.
    per_region : int, optional
        Candidates of each region. By default, and wherever these are too few, the least number that is enough: 1, 2 and
        3 at averages of 64, 128 and 192 of 576.
    pillars : float, optional
        Share of the anchors that take nothing in. By default the paper's 0.25; with `official` 0.45 (LLaVA-1.5 in their
        code; 0.5 for LLaVA-NeXT, 0.9 for Qwen2.5-VL).
    reach : float
        Where a neighbour's weight gets to zero, its squared distance as a share of the grid's squared diagonal. The
        authors' is 280/1058, for Qwen2.5-VL 0.64.
    merge : {"encoder", "projected"}
        What is merged: what the projector reads, which is projected anew (the authors for LLaVA), or projected features
        (theirs for Qwen2.5-VL, and the one for models whose tokens can't be projected one by one).
    official : bool
        The authors' code where it is not the paper's equations, see below.

    Notes
    -----
    Input stage, K tokens of N; merges. a `[N]` is the class token's attention, mean over heads, in the layer that the
    projector reads (elsewhere the mean attention received), k that layer's keys, v `[N, D]` what is merged, and p the
    places in the grid with its diagonal d::

        S_i = a_i ||k_i||        anchors: of the best tokens by S of each region the K best       (eq. 3, algorithm 1)
        pillars: the anchors of largest ||k_i||, as many as reach the 0.75 quantile                            (eq. 4)
        W_ij = relu(cos(v_i, v_j)) (1 - min(1, |p_i - p_j| / sqrt(reach d^2)))                            (eq. 5 to 7)
        anchor i becomes sum_j W_ij v_j / sum_j W_ij over the tokens of its grid; a pillar stays

    Decoder stage: of the anchors those of largest ``cos(x_i, q)`` stay, x what entered the language model and q the
    mean input embedding of the text behind the span, else of all its text (eq. 8 and 9). O(K N D) and K x N matrices.

    The paper's eq. 6 has max where only min can be meant, and calls the best reach 26% of the largest DISTANCE: its
    table 7 and the code compare squares, which is 51%. Code and equations part further, and the published figures are
    of the code. ``official=True`` does as the code: ``S = a``, which chooses the pillars as well; cosines are of the
    mean of nine late encoder layers; a collector adds the others' ``W_ij v_j / sum_j W_ij`` to ALL of itself, which is
    counted in the sum; and the last prompt token's attention in the layer before `layer`, mean over heads, chooses in
    the decoder.

    Each grid of a span (thumbnail, mosaic of crops, frame) keeps its share of K by size. Regions begin anew at every
    crop and are smaller at borders, where the authors leave an odd row or column out. OURS is which text is meant.
    Positions stay, also the authors'. Ties go to the lowest index, what is not finite comes last and gives nothing.
    """

    tail: float = 0.25
    layer: int | None = None
    region: int = 2
    per_region: int | None = None
    pillars: float | None = None
    reach: float = 280 / 1058
    merge: str = "encoder"
    official: bool = False

    paper: ClassVar[str] = "arXiv 2602.02951"
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tail <= 1:
            raise ValueError(f"nuwa.tail={self.tail} is out of range: it must be in (0, 1], a share of keep")
        if self.pillars is not None and not 0 <= self.pillars <= 1:
            raise ValueError(f"nuwa.pillars={self.pillars} is out of range: it must be in [0, 1]")
        if not self.reach > 0:
            raise ValueError(f"nuwa.reach={self.reach} is out of range; it must be above 0")
        for name in ("region", "per_region"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"nuwa.{name}={value!r} is out of range; it must be an int >= 1")
        if self.merge not in ("encoder", "projected"):
            raise ValueError(f"nuwa.merge={self.merge!r} is unknown; allowed are encoder, projected")

    @property
    def uses_text(self) -> bool:  # type: ignore[override]
        """Only in the decoder."""
        return self.tail != 1

    @property
    def projects(self) -> bool:  # type: ignore[override]
        """Only what is merged before the projector."""
        return self.merge == "encoder"

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Those of both stages."""
        return (*self._first, *(self._second if self.uses_text else ()))

    @property
    def _first(self) -> tuple[Signal, ...]:
        read = (ATTENTION, *LATE) if self.official else (ATTENTION, KEYS)
        return (*read, PreProjector()) if self.projects else read

    @property
    def _second(self) -> tuple[Signal, ...]:
        return (DecoderAttention(),) if self.official else TEXT

    def signals_at(self, stop: Stop) -> tuple[Signal, ...]:
        """Each stage its own."""
        return self._first if stop.stage == "input" else self._second

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The input stage and, unless `tail` is 1, a decoder layer."""
        if self.keep is None or self.tail == 1:
            return (Stop("input", None, self.keep),)
        layer = scaled_layer(*LAYER, depth) if self.layer is None else self.layer
        left = self.keep * self.tail
        tail = left if isinstance(self.keep, float) else max(1, int(left + 0.5))
        counts = two_stage(self.keep, depth, layer, tail)
        return Stop("input", None, counts.first), Stop("decoder", layer, counts.tail)

    def select(self, tokens: VisualTokens, k: int) -> Tensor | Merged:
        """Anchors in ascending order with what they took in; in the decoder the best for the question."""
        if tokens.stage != "input":
            return top_k(self._relevance(tokens), k, tokens.valid)
        device = tokens.ids.device  # a tower may be spread over devices
        attention = wide(tokens.read(ATTENTION).to(device)).mean(1)
        norms = None if self.official else self._key_norms(tokens).to(device)
        chosen = self._anchors(tokens, attention if norms is None else attention * norms)
        pillar = self._pillars(tokens, attention if norms is None else norms, chosen)
        index = columns_of(chosen, k)
        patches = tokens.read(PreProjector()).to(device) if self.projects else tokens.features[:, :, None]
        made = combine(self._weights(tokens, patches, index), patches.flatten(2)).unflatten(-1, patches.shape[2:])
        made = made.to(patches.dtype)
        made = project_anew(tokens, made, self.name) if self.projects else made[:, :, 0]
        stays = pillar.gather(1, index)[..., None]
        features = torch.where(stays, take(tokens.features, index), made.to(tokens.features.dtype))
        entered = tokens.state.setdefault("entered", {})
        for i, (span, budget) in enumerate(zip(tokens.span, tokens.budgets, strict=True)):
            entered[span] = tokens.ids[i, index[i, :budget]], features[i, :budget].detach()
        return Merged(index, features)

    @staticmethod
    def _key_norms(tokens: VisualTokens) -> Tensor:
        """Mean over the patches of a token, `[B, N]`."""
        keys = tokens.read(KEYS)
        return vector_lengths(keys.flatten(0, 2)).view(keys.shape[:3]).mean(2)

    def _anchors(self, tokens: VisualTokens, score: Tensor) -> Tensor:
        """Which tokens are anchors, `[B, N]` bool."""
        valid, budget, n = tokens.valid, budgets_of(tokens), score.shape[1]
        rank = rank_in_part(score, *parts_of(tokens, lambda layout: windows(layout, self.region)))
        enough = rank.masked_fill(~valid, n).sort(1).values.gather(1, budget - 1)
        candidate = rank <= enough.clamp(min=(self.per_region or 1) - 1)
        order = rankable(score, valid).sort(dim=1, descending=True, stable=True).indices
        place = torch.zeros_like(order).scatter(1, order, torch.arange(n, device=order.device).expand_as(order))
        grid, count = parts_of(tokens, lambda layout: layout.array[:, 0])
        turn = rank_in_part(-(place + n * ~candidate).to(score.dtype), grid, count)
        sizes = part_sizes(grid, count)
        quota = (budget * sizes).to(score.dtype) / sizes.sum(1, keepdim=True)
        return best(per_token(quota, grid) - turn, budget, valid)

    def _pillars(self, tokens: VisualTokens, score: Tensor, chosen: Tensor) -> Tensor:
        """Which anchors take nothing in, `[B, N]` bool: those from the quantile of `score` on."""
        share = (0.45 if self.official else 0.25) if self.pillars is None else self.pillars
        # equal ones by position: a quantile would take all of them
        counts = [[b - math.ceil(round((1 - share) * (b - 1), 9)) if share else 0] for b in tokens.budgets]
        return best(score, torch.tensor(counts, device=chosen.device), chosen)

    def _weights(self, tokens: VisualTokens, patches: Tensor, index: Tensor) -> Tensor:
        """How much each token gives to each anchor, `[B, k, N]`."""
        x = mean_of_patches(patches)
        if self.official:
            x = x.new_zeros(mean_of_patches(tokens.read(LATE[0])).shape, dtype=wide_dtype(x))
            for signal in LATE:
                x += mean_of_patches(tokens.read(signal)).to(x.device)
        weights = cosine(take(x, index), x).clamp_(min=0)
        del x
        table = [places(layout) for layout in tokens.layouts]
        grid, row, col, diagonal = (by_id(tokens, [t[:, i] for t in table]).to(weights.dtype) for i in range(4))
        grid = grid.masked_fill(~tokens.valid, -1)
        for start in range(0, index.shape[1], BLOCK):
            some = index[:, start : start + BLOCK]
            down, across = ((p.gather(1, some)[..., None] - p[:, None]).square_() for p in (row, col))
            near = down.add_(across).div_((self.reach * diagonal[:, None]).clamp(min=1e-12)).sqrt_().clamp_(max=1)
            weights[:, start : start + BLOCK] *= near.neg_().add_(1)
            weights[:, start : start + BLOCK] *= grid.gather(1, some)[..., None] == grid[:, None]
        weights.scatter_(2, index[..., None], 1.0)
        weights /= weights.sum(2, keepdim=True)
        return weights.scatter_(2, index[..., None], 1.0) if self.official else weights

    def _relevance(self, tokens: VisualTokens) -> Tensor:
        """How much the decoder stage wants each token, `[B, N]`."""
        if self.official:
            return wide(tokens.read(DecoderAttention())).mean(1)[:, 0]
        x, text = self._entered(tokens), tokens.text(TEXT[1])[tokens.sample]
        behind = tokens.text_valid(after=True)
        asks = torch.where(behind.any(1, keepdim=True), behind, tokens.text_valid()[tokens.sample])
        share = asks.to(wide_dtype(text)) / asks.sum(1, keepdim=True).clamp(min=1)
        question = combine(share[:, None], text)
        return settled(cosine_of(*inner(x, question, exact_dtype(x.device))))[..., 0]

    def _entered(self, tokens: VisualTokens) -> Tensor:
        """What entered the language model, `[B, N, D]`: merged, but for spans that the input stage left alone."""
        rows, merged = tokens.read(TEXT[0]).clone(), tokens.state.get("entered", {})
        for i, span in enumerate(tokens.span):
            if span in merged:
                ids, features = merged[span]
                rows[i] = features[torch.searchsorted(ids, tokens.ids[i]).clamp(max=len(ids) - 1)]
        return rows
