"""LLaVA-PruMerge and PruMerge+: keep the outliers of the class token's attention, and add to each what is like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.pruners.primitives.merging import combine, cosine, largest, take
from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.ranking import masked_arg_top, top_k

from .base import Merged, Pruner, Stop
from .registry import register_pruner
from .signals import EncoderAttention, EncoderKeys, PreProjector, Signal
from .visual_tokens import VisualTokens

NEIGHBOURS = 32
LAST = torch.iinfo(torch.int64).max


@register_pruner("prumerge")
@dataclass(kw_only=True)
class PruMerge(Pruner):
    """LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388): what the class token looks at, its like merged in.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span, exactly. `adaptive` does without; given, it is the most that is kept.
    adaptive : bool
        As many as the image has outliers, the paper's default: about 5.5% of LLaVA-1.5's tokens.
    official : bool
        The authors' fixed count, for a fraction `keep`: ``int(N keep)`` tokens and the merged rest, one more than
        asked.

    Notes
    -----
    Stage: input, before the projector; merges. ``a [N]`` is the class token's row of ``softmax(q k^T /
    sqrt(D_enc))`` of the encoder's LAST layer, without splitting heads. Outliers are ``a_i > Q3 + 1.5 (Q3 - Q1)``
    (linear percentiles); with ``rho`` their fraction, the ``int(N rho)`` tokens with the largest ``a`` are kept. To
    each the 32 tokens whose keys of that layer are nearest by cosine are added, kept ones too: ``x_i += sum_j a_j
    x_j``, not normalised. One more token is ``sum_j a_j x_j`` over all that are not kept. `x [N, D_enc]` is what the
    projector reads; results are projected. O(N k D_enc).

    For an exact `keep` the merged rest counts: ``keep - 1`` tokens by attention and the rest. The authors put the rest
    behind all others; here it stands at the position of the most attended token in it, and the others at theirs. Needs
    a class token: towers without one (SigLIP, Qwen-VL) are refused. Where a token is made of several patches
    (InternVL), attention and keys are their means. What is not finite comes last and is added nowhere.
    """

    adaptive: bool = False
    official: bool = False

    paper: ClassVar[str] = "arXiv 2403.15388"
    merges: ClassVar[bool] = True
    signals: ClassVar[tuple[Signal, ...]] = (
        EncoderAttention(layer=-1, queries="cls", joint_heads=True),
        EncoderKeys(layer=-1),
        PreProjector(),
    )
    projects: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.official and (self.adaptive or isinstance(self.keep, int)):
            raise ValueError(f"{self.name}.official is the count for a fraction keep, without adaptive=True")
        if self.adaptive or self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the language model; outliers are never half of the tokens."""
        return (Stop(self.stage, None, 0.5 if self.adaptive and self.keep is None else self.keep),)

    def attention(self, tokens: VisualTokens) -> Tensor:
        """The class token's attention to each token, `[B, N]` float32."""
        return wide(tokens.read(self.signals[0]).to(tokens.ids.device)).mean(1)

    def outliers(self, attention: Tensor, tokens: VisualTokens) -> Tensor:
        """The fraction of outliers in each row, `[B, 1]` float64."""
        counts = torch.tensor([[n] for n in tokens.counts], device=attention.device)
        ordered = attention.double().masked_fill(~tokens.valid, float("inf")).sort(dim=1).values

        def percentile(share: float) -> Tensor:
            place = (counts - 1) * share
            low = place.floor().long()
            below, above = ordered.gather(1, low), ordered.gather(1, (low + 1).clamp(max=ordered.shape[1] - 1))
            return torch.where(place > low, below + (above - below) * (place - low), below)

        first, third = percentile(0.25), percentile(0.75)
        found = tokens.valid & (attention > third + 1.5 * (third - first))
        return found.sum(1, keepdim=True).double() / counts

    def turns(self, attention: Tensor, tokens: VisualTokens) -> Tensor:
        """`[B, N]` int64: the turn of each token that is kept besides the rest, from 0; ``LAST`` for the others."""
        rank = _ranks(attention, tokens.valid)
        return rank.masked_fill(rank >= self._most_attended(attention, tokens), LAST)

    def _most_attended(self, attention: Tensor, tokens: VisualTokens) -> Tensor:
        """How many tokens of each row are kept for their attention, `[B, 1]`."""
        device = attention.device
        room = torch.tensor([[b - 1] for b in tokens.budgets], device=device)
        if self.adaptive:
            counts = torch.tensor([[n] for n in tokens.counts], device=device)
            found = (self.outliers(attention, tokens) * counts).long()
            return found if self.keep is None else torch.minimum(found, room)
        return self._official(tokens) if self.official else room

    def _official(self, tokens: VisualTokens) -> Tensor:
        assert self.keep is not None
        return torch.tensor([[int(n * self.keep)] for n in tokens.counts], device=tokens.ids.device)

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Kept tokens by turn and the merged rest behind them; adaptive: -1 in unused columns."""
        attention, valid = self.attention(tokens), tokens.valid
        turn = self.turns(attention, tokens)
        kept = turn < LAST
        rest = valid & ~kept
        tail = masked_arg_top(attention, rest)[:, None]
        turn = torch.where(kept, turn, LAST - 1).masked_fill(~valid, LAST)
        # the rest's turn is behind the kept ones; where nothing is left, there is none
        own = turn.gather(1, tail)
        turn = turn.scatter(1, tail, torch.where(rest.any(1, keepdim=True), valid.shape[1] * 4, own))
        total = kept.sum(1, keepdim=True) + rest.any(1, keepdim=True)
        width = int(total.max()) if self.adaptive_count else k  # an adaptive count is data: its one sync
        index = turn.sort(dim=1, stable=True).indices[:, :width]
        features = tokens.project(self._merge(tokens, attention, kept, rest, index)).to(tokens.features.dtype)
        if not self.adaptive_count:
            return Merged(index, features)
        index = index.masked_fill(torch.arange(width, device=index.device) >= total, -1)
        short = max(0, k - width)
        return Merged(pad(index, (0, short), value=-1), pad(features, (0, 0, 0, short)))

    def _merge(self, tokens: VisualTokens, attention: Tensor, kept: Tensor, rest: Tensor, index: Tensor) -> Tensor:
        """The vectors of the tokens `index`, before the projector, `[B, K, U, D_enc]`."""
        weight = torch.where(attention.isfinite() & tokens.valid, attention, 0.0)
        keys = tokens.read(self.signals[1]).to(index.device)
        # of one patch as they are: ``cosine`` widens them bit by bit
        keys = keys[:, :, 0] if keys.shape[2] == 1 else keys.mean(2, dtype=wide_dtype(keys))
        near = cosine(take(keys, index), keys).masked_fill_(~tokens.valid[:, None], float("-inf"))
        near = largest(near.scatter_(2, index[..., None], float("-inf")), NEIGHBOURS)
        mine = kept.gather(1, index)[..., None]
        share = torch.where(mine, near, rest[:, None]) * weight[:, None]
        patches = tokens.read(self.signals[2]).to(index.device)
        x = patches.flatten(2)
        made = combine(share, x) + take(x, index).masked_fill(~mine, 0)
        return made.unflatten(-1, patches.shape[2:]).to(patches.dtype)


@register_pruner("prumerge_plus")
@dataclass(kw_only=True)
class PruMergePlus(PruMerge):
    """PruMerge+ (Shang et al., ICCV 2025, arXiv 2403.15388): PruMerge with evenly sampled tokens beside the outliers.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span, exactly. `adaptive` does without; given, it is the most that is kept.
    adaptive : bool
        As many as the image has outliers and the grid adds, the authors' default: about 25% of LLaVA-1.5's tokens.
    official : bool
        The authors' fixed count, for a fraction `keep`: ``int(N keep)`` tokens, every ``int(1 / keep)``-th from the
        middle of the first step on, and the merged rest. What both name is kept once (the authors: twice).
    outliers_share : float
        For an exact `keep`: the share of tokens kept for their attention. The adaptive grid has three tokens for each
        outlier, so 0.25 by default.

    Notes
    -----
    Stage, formula and limits as ``prumerge``; merging is the same. Adaptive: besides the ``int(N rho)``
    most attended tokens every s-th of the tokens 0 to N - 2 is kept, ``s = int(int(1 / rho) / 3)``, at least 1. For an
    exact `keep`, of ``keep - 1`` tokens ``outliers_share`` are chosen by attention and the others are spaced evenly
    over what remains, in reading order; the merged rest is the last one.
    """

    outliers_share: float = 0.25

    order_dependent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.outliers_share <= 1:
            raise ValueError(f"prumerge_plus.outliers_share={self.outliers_share!r} is out of range, [0, 1]")

    def turns(self, attention: Tensor, tokens: VisualTokens) -> Tensor:
        """The most attended tokens by attention, then the grid in reading order."""
        device, valid = attention.device, tokens.valid
        room = torch.tensor([[b - 1] for b in tokens.budgets], device=device)
        rank = _ranks(attention, valid)
        columns = torch.arange(valid.shape[1], device=device)
        counts = torch.tensor([[n] for n in tokens.counts], device=device)
        if self.adaptive:
            rho = self.outliers(attention, tokens)
            top = rank < (rho * counts).long()
            # no outlier: no step fits, and the grid is the first token
            step = torch.where(rho > 0, (1 / rho.clamp(min=1e-9)).floor() / 3, counts).floor().clamp(min=1).long()
            grid = (columns % step == 0) & (columns < counts - 1)
        elif self.official:
            top = rank < self._official(tokens)
            apart = int(1 / (self.keep or 1))
            grid = (columns >= apart // 2) & ((columns - apart // 2) % apart == 0) & (columns < counts - 1)
        else:
            share = torch.tensor([[int(self.outliers_share * (b - 1) + 0.5)] for b in tokens.budgets], device=device)
            top = rank < share
            free = valid & ~top
            left, more = free.sum(1, keepdim=True), room - share
            place = free.cumsum(1) - 1
            # the j-th of `more` evenly spaced ones stands at place j * left // more
            before, after = (((p * more + left - 1) // left.clamp(min=1)) for p in (place, place + 1))
            grid = free & (after > before)
        top = top & valid
        grid = grid & valid & ~top
        turn = torch.where(top, rank, valid.shape[1] + columns).masked_fill(~(top | grid), LAST)
        if self.adaptive and self.keep is not None:
            turn = turn.masked_fill(turn.argsort(dim=1, stable=True).argsort(dim=1, stable=True) >= room, LAST)
        return turn


def _ranks(score: Tensor, valid: Tensor) -> Tensor:
    """Place of each token by falling score, `[B, N]` int64; padding comes last."""
    order = top_k(score, valid.shape[1], valid)
    return torch.zeros_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
