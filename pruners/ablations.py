"""Top-k by one plain score: what remains of many methods when their idea is taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.linalg import vector_norm

from vtc.pruners.primitives.precision import wide, wide_dtype
from vtc.pruners.primitives.score_pruner import ScorePruner

from .registry import register_pruner
from .signals import EncoderAttention, Signal
from .visual_tokens import VisualTokens


@register_pruner("norm")
@dataclass(kw_only=True)
class NormTopK(ScorePruner):
    """The tokens with the longest projected features.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    shortest : bool
        Keep the shortest instead.

    Notes
    -----
    Stage: input. ``s_i = ||x_i||_2`` over `[D]`. O(N D). Ablation, no paper: ZOO-Prune's sensitivity is said to follow
    it closely (rank correlation 0.986 on Qwen3-VL's merger).
    """

    shortest: bool = False

    paper: ClassVar[str] = "ablation: feature norm"

    def score(self, tokens: VisualTokens) -> Tensor:
        """Signed norm, `[B, N]`; norms that are not finite come last."""
        norm = vector_norm(tokens.features, dim=-1, dtype=wide_dtype(tokens.features))
        score = -norm if self.shortest else norm
        return score.masked_fill(~norm.isfinite(), float("-inf"))


@register_pruner("cls")
@dataclass(kw_only=True)
class ClsTopK(ScorePruner):
    """The tokens that the vision tower's class token attends to most.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    encoder_layer : int, optional
        Encoder layer, negative ones count from the end. Default: the layer whose output the projector reads.

    Notes
    -----
    Stage: input. ``s_i = mean_h A[h, cls, i]`` over `[H]` heads; on towers without a class token the mean attention
    that a token receives, ``mean_hq A[h, q, i]``. O(H d N), or O(H d N^2) without a class token. Ablation, no paper:
    the first half of VisionZip, VisPruner and others.
    """

    encoder_layer: int | None = None

    paper: ClassVar[str] = "ablation: class token's attention"

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The attention of the layer asked for."""
        return (EncoderAttention(layer=self.encoder_layer),)

    def score(self, tokens: VisualTokens) -> Tensor:
        """Mean attention over heads, `[B, N]`."""
        score = wide(tokens.read(self.signals[0])).mean(1)
        return score.masked_fill(~score.isfinite(), float("-inf"))
