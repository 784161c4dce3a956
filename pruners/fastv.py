"""FastV: drop what the last prompt token hardly attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.primitives.score_pruner import ScorePruner

from .registry import register_pruner
from .signals import DecoderAttention, Signal
from .visual_tokens import VisualTokens


@register_pruner("fastv")
@dataclass(kw_only=True)
class FastV(ScorePruner):
    """FastV (Chen et al., ECCV 2024, arXiv 2403.06764): attention of the last prompt token after a few layers.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly. The paper's R is what is dropped: ``keep = 1 - R``, R = 0.5 by default there.
    layer : int
        K: prune before decoder layer K by the attention of layer K - 1. The paper's default is 2.

    Notes
    -----
    Stage: decoder. Score of visual token i: ``s_i = mean_h A[h, last, i]``, A the softmax attention of layer K - 1 over
    all keys, `[H]` heads. The paper's text speaks of attention "received from all tokens"; the authors' code reads the
    last query only, and so do we. One extra row of attention per head is computed, whatever kernel the model runs:
    O(H d L). Positions of kept tokens stay (the authors' "token drop" variant). Without a KV cache every step selects
    anew with the new last token. The authors keep ``round(N (1 - R))``; we ``floor(keep N + 0.5)``.
    """

    layer: int = 2

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2403.06764"
    signals: ClassVar[tuple[Signal, ...]] = (DecoderAttention(queries="last"),)
    uses_text: ClassVar[bool] = True

    def score(self, tokens: VisualTokens) -> Tensor:
        """Mean attention over heads, `[B, N]` float32."""
        return tokens.read(self.signals[0]).mean(1)[:, 0]
