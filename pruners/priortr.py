"""PriorTR: keep what the question looks at more than a token that cannot see the question does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.score_pruner import ScorePruner

from .registry import register_pruner
from .signals import DecoderAttention, Signal
from .visual_tokens import VisualTokens

QUERIES = ("question", "question_but_last", "last")
EPS = 1e-10  # the authors'


@register_pruner("priortr")
@dataclass(kw_only=True)
class PriorTR(ScorePruner):
    """PriorTR (Chen et al., ECCV 2026, arXiv 2606.24156): attention of the question, corrected by a prior without it.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    layer : int
        K: prune before decoder layer K by the attention of layer K - 1. The authors' default is 3, 2 for InternVL2.5.
    queries : {"question", "question_but_last", "last"}
        Whose attention P is: the mean over all text behind the span (the authors' for LLaVA-1.5 and InternVL2.5), over
        that without its last token (Qwen2-VL, Qwen3-VL), or the last prompt token's (LLaVA-NeXT).
    null : int
        Which text token behind the span, from 0 on, cannot see the question and gives Q. The authors' is the first one
        (the line break of LLaVA, ``<|vision_end|>`` of Qwen-VL), 1 for InternVL2.5, where ``</img>`` comes before it.

    Notes
    -----
    Stage: decoder. With A `[H, R, N]` the softmax attention of layer K - 1 over all keys, for R rows of text::

        p_i = mean_h mean_r A[h, r, i],  q_i = mean_h A[h, null, i]             both divided by their sums over the span
        S_i = P_i log((P_i + 1e-10) / (Q_i + 1e-10))                            O(H R d L), one row per text token

    The causal mask makes the null token's row what attention would be without the question, in the same forward. That
    holds where the question stands behind the picture: of a question before it, Q knows as much as P.

    A span is scored by itself, by the text behind it; the authors take all from the first picture's first token to the
    last one's last, text between them included, as one span, and the first sample of a batch for all. Where no text
    stands behind the null token, P is the last prompt token's row and Q is flat (there: P = Q, and every score is 0).
    They round scores to the model's dtype before ranking; here ties go to the lowest index, and what is not finite
    comes last (there: counts as 0). Their ratios keep ``int(ratio N)``, ours ``floor(ratio N + 0.5)``. Their variant
    with two forwards (PriorTR-2F), the maximum over heads and the threshold S > 0 are not implemented.
    """

    layer: int = 3
    queries: str = "question"
    null: int = 0

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2606.24156"
    signals: ClassVar[tuple[Signal, ...]] = (DecoderAttention(queries="text"), DecoderAttention(queries="last"))
    uses_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.queries not in QUERIES:
            raise ValueError(f"priortr.queries={self.queries!r} is unknown; allowed are {', '.join(QUERIES)}")
        if self.null < 0:
            raise ValueError(f"priortr.null={self.null!r} is out of range; it must be an int >= 0")

    def score(self, tokens: VisualTokens) -> Tensor:
        """What each token tells of the question beyond the prior, `[B, N]` float32."""
        text, last = self.signals
        rows = wide(tokens.read(text)).mean(1)
        at_end = wide(tokens.read(last)).mean(1)[:, 0]
        behind = tokens.text_valid(after=True)
        place, count = behind.cumsum(1), behind.sum(1, keepdim=True)
        prior = _mean(rows, behind & (place == self.null + 1))
        if self.queries == "question_but_last":
            behind = behind & (place < count)
        asked = at_end if self.queries == "last" else _mean(rows, behind)
        alone = count < self.null + 2
        p = _shares(torch.where(alone, at_end, asked))
        q = _shares(torch.where(alone, tokens.valid.to(p.dtype), prior))
        return p * ((p + EPS) / (q + EPS)).log()


def _mean(rows: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the `chosen [B, T]` of `rows [B, T, N]`, `[B, N]`."""
    return rows.masked_fill(~chosen[..., None], 0).sum(1) / chosen.sum(1, keepdim=True).clamp(min=1)


def _shares(mass: Tensor) -> Tensor:
    """`mass [B, N]`, divided by the sum of what is finite."""
    return mass / (mass.nan_to_num(0, 0, 0).sum(1, keepdim=True) + EPS)
