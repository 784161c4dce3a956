"""PyramidDrop: at three depths of the decoder, half of the visual tokens goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.pruners.primitives.budget_over_stops import pyramid, scaled_layer
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.score_pruner import ScorePruner

from .base import Stop
from .registry import register_pruner
from .signals import AttentionAhead, Signal
from .visual_tokens import VisualTokens

PAPER = (8, 16, 24), 32  # layers and depth of LLaVA-1.5-7B


@register_pruner("pyramiddrop")
@dataclass(kw_only=True)
class PyramidDrop(ScorePruner):
    """PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): fewer visual tokens the deeper the layer.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span after the LAST stop, exactly; by default ``ratio ** 3``, the paper's 0.125.
    ratio : float, optional
        lambda: what each stop keeps of the one before. By default 0.5, or what leads evenly to a `keep` given as a
        fraction.
    layers : tuple of int, optional
        Decoder layers to prune before. By default the paper's 8, 16 and 24 of 32, scaled to the depth.

    Notes
    -----
    Stage: decoder, several stops. Fractions are of the ORIGINAL tokens: 0.5, 0.25, 0.125. Score of visual token i at
    layer K: ``s_i = mean_h A[h, last, i]``, A the softmax attention `[H, 1, L]` that layer K itself would give on the
    states that enter it, for the last prompt token. One extra row of attention per stop, O(H d L), and the
    query and key projections of those layers on the states once more.

    The authors round down (``int(N ratio)``); here it is ``floor(keep N + 0.5)``, the same for 576 tokens. They
    renumber positions after every stop; here they stay. Their training with several answers per sample, which takes the
    token before each answer as the query, has no counterpart here.
    """

    ratio: float | None = None
    layers: tuple[int, ...] | None = None

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2410.17247"
    signals: ClassVar[tuple[Signal, ...]] = (AttentionAhead(),)
    uses_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"pyramiddrop.ratio={self.ratio} is out of range: it must be in (0, 1]")
        if self.layers is not None:
            self.layers = tuple(self.layers)
            if not self.layers or list(self.layers) != sorted(set(self.layers)):
                raise ValueError(f"pyramiddrop.layers={self.layers} must rise, and there must be one at least")

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The layers with what each keeps."""
        layers = self.layers or tuple(sorted({scaled_layer(layer, PAPER[1], depth) for layer in PAPER[0]}))
        ratio = 0.5 if self.ratio is None else self.ratio
        if self.keep is None:
            keeps = pyramid(ratio ** len(layers), len(layers), ratio)
        else:
            keeps = pyramid(self.keep, len(layers), self.ratio)
        return tuple(Stop(self.stage, layer, keep) for layer, keep in zip(layers, keeps, strict=True))

    def score(self, tokens: VisualTokens) -> Tensor:
        """Mean attention over heads, `[B, N]` float32."""
        return wide(tokens.read(self.signals[0])).mean(1)[:, 0]
