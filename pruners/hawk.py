"""HAWK: keep what the question's words resemble before the first layer, in the heads that matter for pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.score_pruner import ScorePruner

from .registry import register_pruner
from .signals import AttentionAhead, Signal
from .untrusted_json import CommandFile
from .visual_tokens import VisualTokens

FORMAT = "vtc hawk heads, version 1"
QWEN = "qwen2.5-vl-7b"
# of the authors' release (Apache-2.0), as rounded there
QWEN_HEADS = (
    0.0875, 0.3, 0.048, 0.0321, 0.0104, 0.0102, 0.0336, 0.046, 0.054, 0.0472, 0.0234, 0.0537, 0.0109, 0.0573,
    0.0276, 0.0403, 0.0429, 0.0352, 0.0162, 0.0519, 0.0553, 0.0266, 0.0222, 0.048, 0.0337, 0.025, 0.0, 0.0224,
)  # fmt: skip


@register_pruner("hawk")
@dataclass(kw_only=True)
class Hawk(ScorePruner):
    """HAWK (Zhu et al., CVPR 2026, arXiv 2604.07812): likeness to the question by head, without positions.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    weights : str, optional
        How much each head counts: a file of ``vtc hawk --model ... --output heads.json``, or ``"qwen2.5-vl-7b"``, the
        authors' 28 numbers for that model. Without it all heads count alike, which is not the authors' method: they
        weigh the heads of every model that they show.
    first, last : int
        Tokens of the text behind the span that are no question, at its beginning and at its end. 1 and 5 leave out
        what Qwen2.5-VL's template adds, as the authors do.

    Notes
    -----
    Stage: before decoder layer 0, so what goes never enters the language model. With q `[H, T, d]` the queries of the
    question's T tokens in layer 0 and k `[H, N, d]` the keys of the span (repeated for grouped heads), behind their
    norms but BEFORE rotary embedding, and w `[H]`::

        c_h = mean_t q_ht k_h^T / sqrt(d)     (eq. 4, 5)     score = sum_h w_h c_h / ||c_h||     (eq. 6, 7)

    O(H T N d), beside queries and keys of layer 0 for all columns once more. w of a head is how much a model loses on
    sets of questions without it, shifted to a minimum of 0, over its sum, mean over the sets (eq. 1 to 3); ``vtc hawk``
    measures it.

    The norm over the span is of the authors' code (L2 by default; softmax and min-max there are not implemented) and
    not among the equations, as far as those are known here: the paper itself was not read. Their code runs one sample,
    takes all its pictures for one span, whose question is what stands behind the last one, and keeps ``ceil(ratio N)``;
    ours keeps ``floor(ratio N + 0.5)`` of each span by the text behind it, also of earlier turns. Where nothing of that
    is left without `first` and `last`, all of it counts, and without text behind the span all text of the sample. Their
    guard takes logits that are not finite for 0; here such tokens come last.
    """

    weights: str | None = None
    first: int = 0
    last: int = 0

    paper: ClassVar[str] = "arXiv 2604.07812"
    stage: ClassVar[str] = "decoder"
    layer: ClassVar[int] = 0
    signals: ClassVar[tuple[Signal, ...]] = (AttentionAhead(queries="text", content=True),)
    uses_text: ClassVar[bool] = True
    files: ClassVar[Mapping[str, str]] = {"weights": "hawk.json"}
    no_files: ClassVar[tuple[str, ...]] = (QWEN,)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first", "last"):
            if getattr(self, name) < 0:
                raise ValueError(f"hawk.{name}={getattr(self, name)!r} is out of range; it must be an int >= 0")

    def check_files(self) -> None:
        """The weights."""
        if self.weights not in (None, QWEN):
            read_heads(self.weights)

    def heads(self, count: int) -> tuple[float, ...]:
        """The weights of a model's `count` heads, not divided by their sum.

        Raises
        ------
        ValueError
            If they are another number's.
        """
        if self.weights is None:
            return (1.0,) * count
        found = QWEN_HEADS if self.weights == QWEN else read_heads(self.weights)
        if len(found) != count:
            raise ValueError(
                f"hawk.weights={self.weights!r} are of {len(found)} heads, and this model has {count}: measure its own "
                "with 'vtc hawk --model ...', or leave weights out (all heads count alike)"
            )
        return found

    def score(self, tokens: VisualTokens) -> Tensor:
        """Likeness to the question, `[B, N]` float32."""
        logits = wide(tokens.read(self.signals[0]))
        behind = tokens.text_valid(after=True).to(logits.device)
        place, count = behind.cumsum(1), behind.sum(1, keepdim=True)
        asked = behind & (place > self.first) & (place <= count - self.last)
        every = tokens.text_valid().to(logits.device)[tokens.sample.to(logits.device)]
        for more in (behind, every):
            asked = torch.where(asked.any(1, keepdim=True), asked, more)
        share = asked.to(logits.dtype) / asked.sum(1, keepdim=True).clamp(min=1)
        mean = (logits.masked_fill(~asked[:, None, :, None], 0) * share[:, None, :, None]).sum(2)
        weights = torch.tensor(self.heads(mean.shape[1]), dtype=mean.dtype, device=mean.device)
        return (normalize(mean, dim=-1) * weights[:, None]).sum(1)


def _weights(found: dict[str, Any], _: str) -> tuple[float, ...]:
    return tuple(float(w) for w in found["weights"])


def _weigh(weights: tuple[float, ...]) -> bool:
    return bool(weights) and all(math.isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0


read_heads = CommandFile(
    "hawk.weights", "vtc hawk", FORMAT, _weights, "numbers >= 0, not all zero, one for each head", _weigh
).read
