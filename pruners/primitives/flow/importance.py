"""FlowCut's importance of tokens at encoder layers, in each crop and frame, without a host sync."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vtc.pruners.signals import EncoderAttention, EncoderValues, Signal
from vtc.pruners.visual_tokens import VisualTokens

from ..best_per_part import part_sums, parts_of, per_token
from ..precision import decides_on_host, exact, wide, wide_dtype


@lru_cache(maxsize=256)
def flow_signals(layer: int | None = None) -> tuple[Signal, ...]:
    """What ``encoder_flow`` reads of an encoder layer: attention, value similarity, head-mean values."""
    return (
        EncoderAttention(layer=layer, queries="global"),
        EncoderAttention(layer=layer, queries="global", of="values"),
        EncoderValues(layer=layer, heads="mean"),
    )


@dataclass
class Flow:
    """What flows at some encoder layers L, before it is normalised.

    Attributes
    ----------
    rows : list of Tensor
        `[B, N]` each, float32 at least: sums over heads of the global token's attention at each layer, then, if they
        count, of its similarity of values. Shares of sums are shares of means.
    density : list of Tensor
        `[B, N]` of each layer: L1 norm of the mean over heads of the values; a unit's is the mean of its patches', not
        that of their mean.
    """

    rows: list[Tensor]
    density: list[Tensor]

    @classmethod
    def read(cls, tokens: VisualTokens, signals: Sequence[Signal], semantic: bool) -> Flow:
        """From `signals` of one layer behind the other's, each ``flow_signals(layer)``."""
        kinds = signals[0::3], signals[1::3], signals[2::3]
        given = [tokens.read(signal) for kind in kinds[: 1 + semantic] for signal in kind]
        values = [tokens.read(signal) for signal in kinds[2]]
        density = [wide(x).abs().sum((-2, -1)) for x in values]
        if values[0].shape[-2] > 1:
            density = [x / values[0].shape[-2] for x in density]
        return cls([x.sum(1, dtype=wide_dtype(x)) for x in given], density)

    @property
    def is_plain(self) -> bool:
        """Whether all of it may be read on the host, and nobody asks for gradients."""
        return decides_on_host(self.rows[0]) and not any(x.requires_grad for x in (*self.rows, *self.density))

    def scores(self, part: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """Importance at each layer and the attention's shares there, `[L, B, N]` float64 each.

        All layers and both rows go through one operator each, because a tower's cuts are many small ones otherwise.
        """
        rows, density = exact(torch.stack(self.rows)), torch.stack(self.density)
        found = shares(rows, part, count).view(-1, *density.shape)
        return flow_score(found, density), found[0]


def flow_score(shares: Tensor, density: Tensor) -> Tensor:
    """FlowCut's importance ``(a / sum a + s / sum s) ||v||_1`` at one layer, or at several.

    Parameters
    ----------
    shares : Tensor
        `[S, ..., N]`: ``shares`` of the global token's attention a and of the same of values s; or of a alone.
    density : Tensor
        `[..., N]`: L1 norm of the mean over heads of the values.

    Returns
    -------
    Tensor
        `[..., N]`; 0 where it is not finite.
    """
    return (shares.sum(0) * density).nan_to_num_(0, 0, 0)


def encoder_flow(tokens: VisualTokens, signals: Sequence[Signal], semantic: bool = True) -> Tensor:
    """Importance of each token at one encoder layer, `[B, N]` float64, normalised in each crop and frame.

    Parameters
    ----------
    tokens : VisualTokens
        The candidates.
    signals : sequence of Signal
        What ``flow_signals(layer)`` gives, declared by the method that calls this.
    semantic : bool
        Whether the similarity of values counts.
    """
    return Flow.read(tokens, signals, semantic).scores(*parts_or_none(tokens))[0][0]


def parts_or_none(tokens: VisualTokens) -> tuple[Tensor | None, int]:
    """Crops and frames as ``parts_of``, but None where all tokens of all rows are of one."""
    whole = min(tokens.counts) == tokens.ids.shape[1] and all(layout.is_one_part for layout in tokens.layouts)
    return (None, 1) if whole else parts_of(tokens)


def shares(x: Tensor, part: Tensor | None, count: int) -> Tensor:
    """`x [..., B, N]` over its sum within each part (``parts_of``); of each row where `part` is None. NaN counts 0."""
    x = x.nan_to_num(0, 0, 0)
    if part is None:
        total = x.sum(-1, keepdim=True)
    else:
        x.masked_fill_(part == count, 0)
        total = per_token(part_sums(x, part, count), part)
    return x.div_(total.clamp_(min=torch.finfo(torch.float32).tiny))


def kept_counts(share: Tensor, part: Tensor | None, sizes: Tensor, target: Tensor, left: int) -> Tensor:
    """How many tokens each part keeps if it loses `round((n - T) / sqrt(left) (1 - H^2))`, `[B, P]` float64.

    `H` is the entropy of the part's attention `share` (float64: of flat attention ``1 - H^2`` is small, and float32
    would move it across a half) over ``log n``, T its `target [B, P]`, `sizes` n; `left` are the encoder layers before
    the last cut, at 0 everything above the target goes.
    """
    if left == 0:
        return target
    terms = torch.xlogy(share, share)
    entropy = terms.sum(-1, keepdim=True) if part is None else part_sums(terms, part, sizes.shape[1])
    concentrated = 1 - (entropy / sizes.clamp(min=2).log()).square()
    return torch.maximum(sizes - ((sizes - target) / left**0.5 * concentrated).round_(), target)
