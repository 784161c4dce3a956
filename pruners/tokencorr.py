"""Correlation-guided compression: how much of a crop repeats itself says how much of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.best_per_part import (
    at_least_one,
    best,
    budgets_of,
    columns_of,
    part_sizes,
    part_sums,
    parts_of,
    per_token,
    rank_in_part,
)
from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.ranking import rankable

from .base import Pruner, Stop
from .registry import register_pruner
from .signals import EncoderAttention, EncoderKeys, Signal
from .visual_tokens import VisualTokens

ROWS = 256  # of the correlation matrix at a time


@register_pruner("tokencorr")
@dataclass(kw_only=True)
class TokenCorr(Pruner):
    """Token-level correlation-guided compression (Zhang et al., 2024, arXiv 2407.14439), for documents in crops.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly, shared out by information density (where each crop is a span, in sum over the
        picture). `adaptive` does without; given, it is the most that is kept.
    adaptive : bool
        Every crop keeps its information density, as in the paper (and never fewer than its outliers, below).
    tau : float
        Cosine above which two tokens are alike. OURS, 0.8.
    limit : float
        A token is redundant if more than this share of its crop is like it. OURS, 1/32.
    shallow : int or float
        Encoder layer of the local attention, a float is a share of the depth. OURS, 4/24 (layer 4 of 24).

    Notes
    -----
    Stage: input. `k_i` are the attention keys of the layer that the projector reads, ``C_ij = cos(k_i, k_j)`` within a
    crop of N tokens. Token i is redundant if ``#{j != i: C_ij > tau} > limit N``; the crop's information density is ``d
    = 1 - redundant / N`` and its budget ``d N``. Kept are first the outliers of the class token's deep attention,
    ``a_i > Q3 + 1.5 (Q3 - Q1)``, then the tokens with the most attention in the shallow layer. O(N^2 d_enc) per crop.

    The authors have published no code, and the thresholds and layers could not be had: those marked OURS are. They
    SAMPLE the local tokens from the shallow attention; here the largest are taken, so that equal inputs give equal
    answers. With `keep` the budgets are scaled to its sum, by the largest remainder. The thumbnail is a part like the
    crops; spans without crops are one part, frames of a video one each. Where crops are spans of their own (InternVL,
    Idefics3, SmolVLM), those of one picture share the sum of their budgets as in ``globalcom2``. Towers without a class
    token: mean attention received. Tokens of several patches: the mean of their keys.
    """

    adaptive: bool = False
    tau: float = 0.8
    limit: float = 1 / 32
    shallow: int | float = 4 / 24

    paper: ClassVar[str] = "arXiv 2407.14439"
    ragged: ClassVar[bool] = True
    joins_crops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("tau", -1.0, 1.0), ("limit", 0.0, 1.0)):
            if not low <= getattr(self, name) <= high:
                value = getattr(self, name)
                raise ValueError(f"tokencorr.{name}={value} is out of range: it must be in [{low:g}, {high:g}]")
        if self.adaptive:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Keys and attention of the layer that the projector reads, and attention of a shallow one."""
        return EncoderKeys(), EncoderAttention(), EncoderAttention(layer=self.shallow)

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """Before the language model; where the density alone decides, any number below all asks for it."""
        return (Stop(self.stage, None, 0.5 if self.adaptive and self.keep is None else self.keep),)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Columns in ascending order."""
        keys = tokens.read(self.signals[0])
        deep, shallow = (wide(tokens.read(s)) for s in self.signals[1:])
        part, count = parts_of(tokens)
        sizes = part_sizes(part, count)
        fresh = sizes - part_sums(self.redundant(keys, part, sizes).long(), part, count)
        far = outliers(rankable(deep.mean(1), tokens.valid), part, sizes)
        rank = rank_in_part(deep.mean(1), part, count)
        local = rank_in_part(shallow.mean(1), part, count)
        rank = rank_in_part(-torch.where(far, rank, local + part.shape[1]).float(), part, count)

        budget = budgets_of(tokens)
        if self.adaptive:
            most = budget if self.keep is not None else sizes.sum(1, keepdim=True)
            fresh = torch.maximum(fresh, part_sums(far.long(), part, count))  # outliers are kept at all events
            chosen = (rank < per_token(fresh, part)) & tokens.valid
            chosen = at_least_one(chosen, -rank.float(), tokens.valid)
            key = per_token(fresh, part).float() - rank
            chosen = chosen & best(torch.where(chosen, key, float("-inf")), most, tokens.valid)
            return columns_of(chosen, part.shape[1], exact=False)
        quota = fresh * (budget / fresh.sum(1, keepdim=True).clamp(min=1))
        return columns_of(best(per_token(quota, part) - rank, budget, tokens.valid), k)

    @torch.no_grad()
    def redundant(self, keys: Tensor, part: Tensor, sizes: Tensor) -> Tensor:
        """`[B, N]` bool: many tokens of the same part are like it, by `keys [B, N, U, d]`."""
        found = torch.zeros_like(part, dtype=torch.bool)
        bound = per_token(self.limit * sizes, part)
        for row, patches in enumerate(keys):
            x = torch.cat([some.mean(1, dtype=wide_dtype(keys)) for some in patches.split(ROWS)])
            x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=1e-12))
            for start in range(0, len(x), ROWS):
                some = slice(start, start + ROWS)
                alike = (x[some] @ x.T > self.tau) & (part[row, some, None] == part[row])
                alike[:, some].fill_diagonal_(False)
                found[row, some] = alike.sum(1) > bound[row, some]
        return found


def outliers(x: Tensor, part: Tensor, sizes: Tensor) -> Tensor:
    """`[B, N]` bool: above ``Q3 + 1.5 (Q3 - Q1)`` of its part, linear percentiles."""
    by_value = x.double().sort(dim=1, stable=True).indices
    order = by_value.gather(1, part.gather(1, by_value).sort(dim=1, stable=True).indices)  # part by part, least first
    ordered, start = x.double().gather(1, order), sizes.cumsum(1) - sizes

    def percentile(share: float) -> Tensor:
        place = (sizes - 1).clamp(min=0) * share
        low = (start + place.floor().long()).clamp(max=x.shape[1] - 1)
        high = torch.minimum(low + 1, (start + (sizes - 1).clamp(min=0)).clamp(max=x.shape[1] - 1))
        below, above = ordered.gather(1, low), ordered.gather(1, high)
        return below + (above - below) * (place - place.floor())

    first, third = percentile(0.25), percentile(0.75)
    return x > per_token(third + 1.5 * (third - first), part)
