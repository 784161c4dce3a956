"""TransPrune: visual tokens that the decoder's sublayers change most, and that the text looks at, at three depths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.pruners.primitives.budget_over_stops import scaled_layer
from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.score_pruner import ScorePruner

from .base import Stop
from .registry import register_pruner
from .signals import AttentionAhead, DecoderTransition, Signal
from .visual_tokens import VisualTokens

PAPER = {7: 0.875, 9: 0.625, 12: 0.125}, 32  # kept before each layer, and the depth, of LLaVA-1.5-7B
LOOKS = AttentionAhead(queries="text")
EPS = 1e-8


@register_pruner("transprune")
@dataclass(kw_only=True)
class TransPrune(ScorePruner):
    """TransPrune (CVPR 2026, arXiv 2507.20630): token transition variation and the text's attention.

    Parameters
    ----------
    keep : int or float, optional
        Tokens kept per span after the LAST stop, exactly; by default the last of `ratios`. The stops before follow: for
        a fraction each keeps ``keep ** (log(ratio) / log(last ratio))``, for a count ``keep * ratio / last
        ratio``, so that 0.125, and 72 of 576 tokens, give the paper's schedule. This rule is OURS.
    layers : tuple of int, optional
        Decoder layers, from 0, to prune before. By default 7, 9 and 12 of 32, scaled to the depth.
    ratios : tuple of float, optional
        What each stop keeps of the ORIGINAL tokens. By default 0.875, 0.625 and 0.125 (the paper's "High").
    since : int, optional
        First layer whose transitions count. By default the one right before the first stop, as in the paper (its
        layers 7 to 12, from 1).
    alpha : float
        Weight of the transitions, in [0, 1], beside ``1 - alpha`` of the text's attention. 1 is the transitions alone
        and 0 the attention alone; the other is not computed then. The paper's 0.5 is the released code's plain sum.
    over : {"sequence", "span"}
        Which tokens share the softmax of a transition: all of the sample's, text as well, as in the released code; or
        the span's own visual tokens, as the paper writes.
    absolute : bool
        ``|cos|`` in the place of ``cos``, as the paper writes; the released code has it commented out.

    Notes
    -----
    Stage: decoder, several stops. For attention and MLP of every layer from `since` to the one before the stop, with
    what enters (x, behind the norm) and leaves (y, before the residual) `[L, D]`::

        T_i = ||y_i|| / ||x_i|| * softmax_i(1 - cos(x_i, y_i))
        TTV_i = sum over layers and both sublayers of T_i
        IGA_i = mean over heads and text behind the span of A[h, t, i]
        score_i = alpha * TTV_i / sum(TTV) + (1 - alpha) * IGA_i / sum(IGA)

    A `[H, T, L]` is the softmax attention that the pruning layer itself would give on the states that enter it. O(L D)
    per layer, O(H d T L) and the query and key projections once more per stop. A transition stays what it was in its
    layer when others of its softmax are gone.

    The authors' code takes models without grouped queries and single samples; here every row is as it is alone. They
    round counts down, which is the same for 576 tokens, and renumber positions after every stop; here they stay. A span
    without text behind it is ranked by its transitions. In layers with a norm behind the sublayer (Gemma 3) y is what
    the sublayer itself gives.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    since: int | None = None
    alpha: float = 0.5
    over: str = "sequence"
    absolute: bool = False

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2507.20630"
    uses_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            self.layers = tuple(self.layers)
            if not self.layers or list(self.layers) != sorted(set(self.layers)):
                raise ValueError(f"transprune.layers={self.layers} must rise, and there must be one at least")
        if self.ratios is not None:
            self.ratios = tuple(self.ratios)
            falling = list(self.ratios) == sorted(self.ratios, reverse=True)
            if not self.ratios or not falling or not 0 < self.ratios[-1] <= self.ratios[0] < 1:
                raise ValueError(f"transprune.ratios={self.ratios} must fall, between 0 and 1")
        stops = len(PAPER[0]) if self.layers is None else len(self.layers)
        if len(PAPER[0] if self.ratios is None else self.ratios) != stops:
            raise ValueError(f"transprune: {stops} layers need as many ratios, got ratios={self.ratios}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"transprune.alpha={self.alpha!r} is out of range; it must be a number in [0, 1]")
        self._transitions(0)  # checks `over`

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Transitions of the layer before and the text's attention ahead, as far as they have any weight."""
        return (*(self._transitions(None) if self.alpha else ()), *((LOOKS,) if self.alpha < 1 else ()))

    def _transitions(self, layer: int | None) -> tuple[DecoderTransition, ...]:
        return tuple(
            DecoderTransition(layer, block=block, over=self.over, absolute=self.absolute)
            for block in ("attention", "mlp")
        )

    def stops(self, depth: int) -> tuple[Stop, ...]:
        """The layers with what each keeps, and the transitions since the first."""
        ratios = tuple(PAPER[0].values()) if self.ratios is None else self.ratios
        layers = self.layers or tuple(scaled_layer(layer, PAPER[1], depth) for layer in PAPER[0])
        # of two that meet in a shallow decoder the later one
        planned = dict(zip(layers, (self._kept(ratio, ratios[-1]) for ratio in ratios), strict=True))
        first = min(planned)
        since = first - 1 if self.since is None else self.since
        if self.alpha and since >= first:
            raise ValueError(f"transprune.since={since} must be below the first layer to prune before, {first}")
        return tuple(Stop(self.stage, layer, keep, self._reads(since, layer)) for layer, keep in planned.items())

    def _kept(self, ratio: float, last: float) -> int | float:
        """What a stop keeps whose ratio is `ratio`, where the last one's is `last`."""
        if self.keep is None:
            return ratio
        if isinstance(self.keep, float):
            return self.keep ** (math.log(ratio) / math.log(last))
        return int(self.keep * ratio / last + 0.5)

    def _reads(self, since: int, layer: int) -> tuple[Signal, ...]:
        found = [s for i in range(since, layer) for s in self._transitions(i)] if self.alpha else []
        return (*found, *((LOOKS,) if self.alpha < 1 else ()))

    def score(self, tokens: VisualTokens) -> Tensor:
        """Weighted sum of both, each summing to 1 over a span, `[B, N]` float32."""
        score = torch.zeros((), device=tokens.ids.device)
        if self.alpha:
            score = score + self.alpha * _shares(self.variation(tokens), tokens.valid)
        if self.alpha < 1:
            score = score + (1 - self.alpha) * _shares(self.attention(tokens), tokens.valid)
        return score

    @staticmethod
    def variation(tokens: VisualTokens) -> Tensor:
        """TTV, `[B, N]` float32."""
        transitions = [s for s in tokens.signals if isinstance(s, DecoderTransition)]
        # the layers may be on several devices
        return torch.stack([wide(tokens.read(s).to(tokens.ids.device)).prod(-1) for s in transitions]).sum(0)

    @staticmethod
    def attention(tokens: VisualTokens) -> Tensor:
        """IGA, `[B, N]` float32; zeros where no text is behind the span."""
        behind = tokens.text_valid(after=True)
        looks = wide(tokens.read(LOOKS)).mean(1).to(behind.device)  # [B, T, N]
        return looks.masked_fill(~behind[..., None], 0).sum(1) / behind.sum(1, keepdim=True).clamp(min=1)


def _shares(x: Tensor, valid: Tensor) -> Tensor:
    """`x` `[B, N]` divided by the row's sum of what is `valid` and finite."""
    total = torch.where(valid & x.isfinite(), x, 0).sum(1, keepdim=True)
    return x / (total + EPS)
