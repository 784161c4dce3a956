"""VisionZip: keep the tokens that the encoder attends to, and merge the others into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.merging import combine, cosine, membership, nearest, take
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.projector import project_anew
from vtc.pruners.primitives.ranking import top_k

from .base import Merged, Pruner
from .registry import register_pruner
from .signals import EncoderAttention, EncoderKeys, PreProjector, Signal
from .visual_tokens import VisualTokens

PLACES = ("encoder", "projected")


@register_pruner("visionzip")
@dataclass(kw_only=True)
class VisionZip(Pruner):
    """VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant and contextual tokens of the vision encoder.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly: dominant and contextual ones together.
    contextual : int or float
        How many of them are contextual: a number, or a share of `keep`. The default, 10/64, gives the paper's splits
        192 = 162 + 30, 128 = 108 + 20 and 64 = 54 + 10. At least one token is dominant.
    merge : {"encoder", "projected"}
        What is averaged: what the projector reads, which is projected anew (the paper), or projected features, for
        models whose tokens can't be projected one by one (LLaVA-OneVision).

    Notes
    -----
    Stage: input; merges. A `[H, N]` is the class token's attention in the layer whose output the projector reads (CLIP:
    the last but one), elsewhere the mean attention received, as the authors do for encoders without a class token.
    Dominant: the ``d`` tokens with the largest ``sum_h A[h, i]``. Of the other M, in index order, every ``max(1, M //
    c)``-th is an anchor, the first c of them; every other token belongs to the anchor with the largest cosine of
    head-mean keys `[N, d_head]`. Contextual token: ``x_anchor + mean of its others``, the sum of the two and not an
    average, as in the authors' code. O(N c d_head + N c D).

    The authors' budgets count the class token, which they feed to the language model. Stock models cut it off: here all
    of `keep` are patches, one more dominant one in its place. LLaVA-NeXT's views are one span here, chosen from jointly
    (the authors: each view alone), and so are a video's frames. Where a token is made of several patches (Qwen-VL,
    InternVL), attention and keys are their means, and merging goes patch by patch of the unit. A contextual token
    stands at its anchor's position. Ties go to the lowest index; tokens whose attention is not finite come last, and
    what is not finite is left out of the means. The question plays no part.
    """

    contextual: int | float = 10 / 64
    merge: str = "encoder"

    paper: ClassVar[str] = "arXiv 2412.04467"
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contextual < 0 or (isinstance(self.contextual, float) and self.contextual > 1):
            raise ValueError(
                f"visionzip.contextual={self.contextual!r} is out of range: an int >= 0 or a share in [0, 1] of keep"
            )
        if self.merge not in PLACES:
            raise ValueError(f"visionzip.merge={self.merge!r} is unknown; allowed are {', '.join(PLACES)}")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Attention and keys, and what is averaged unless that is projected."""
        read = (EncoderAttention(), EncoderKeys(heads="mean"))
        return (*read, PreProjector()) if self.merge == "encoder" else read

    @property
    def projects(self) -> bool:  # type: ignore[override]
        """Only what is averaged before the projector."""
        return self.merge == "encoder"

    def _split(self, budget: int) -> int:
        """How many of a row's tokens are contextual."""
        share = self.contextual if isinstance(self.contextual, int) else int(self.contextual * budget + 0.5)
        return min(share, budget - 1)

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """Dominant tokens in index order, then contextual ones in anchor order."""
        device, valid = tokens.ids.device, tokens.valid
        contextual = torch.tensor([[self._split(b)] for b in tokens.budgets], device=device)
        dominant = torch.tensor(list(tokens.budgets), device=device)[:, None] - contextual
        attention = tokens.read(self.signals[0]).to(device)
        order = top_k(wide(attention).sum(1), valid.shape[1], valid)
        rank = torch.arange(valid.shape[1], device=device)
        top = torch.zeros_like(valid).scatter(1, order, rank < dominant)
        rest = valid & ~top
        place = rest.cumsum(1) - 1
        step = (rest.sum(1, keepdim=True) // contextual.clamp(min=1)).clamp(min=1)
        anchor = rest & (place % step == 0) & (place // step < contextual)
        index = (anchor + 2 * ~(top | anchor)).to(torch.int8).sort(dim=1, stable=True).indices[:, :k]
        features = take(tokens.features, index)
        most = max(map(self._split, tokens.budgets))
        if most == 0:
            return Merged(index, features)
        made = self._contextual(tokens, anchor, rest, most)
        turn = rank[:k] - dominant  # from 0 on: a contextual token
        made = take(made.to(features.dtype), turn.clamp(0, most - 1))
        return Merged(index, torch.where((turn >= 0)[..., None], made, features))

    def _contextual(self, tokens: VisualTokens, anchor: Tensor, rest: Tensor, most: int) -> Tensor:
        """Contextual tokens of each row in anchor order, `[B, most, D]`."""
        columns = (~anchor).to(torch.int8).sort(dim=1, stable=True).indices[:, :most]
        device = anchor.device  # a tower may be spread over devices
        keys = wide(tokens.read(self.signals[1]).to(device)).mean(2)
        _, owner = nearest(cosine(keys, take(keys, columns)), anchor.gather(1, columns))
        inside = membership(owner, most, rest & ~anchor)
        patches = tokens.read(self.signals[2]) if self.merge == "encoder" else tokens.features[:, :, None]
        x = patches.to(device).flatten(2)
        others = combine(inside, x).div_(inside.sum(2, keepdim=True).clamp(min=1))
        made = (take(x, columns) + others).unflatten(-1, patches.shape[2:]).to(patches.dtype)
        if self.merge == "projected":
            return made[:, :, 0]
        return project_anew(tokens, made, self.name)
