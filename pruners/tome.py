"""ToMe: merge the pairs of tokens that are most alike, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.pruners.primitives.merge_rounds import merge_rounds
from vtc.pruners.primitives.merging import group_sums

from .base import STAGES, Merged, Pruner, Stop
from .registry import register_pruner
from .signals import EncoderKeys, Signal
from .visual_tokens import VisualTokens

METRICS = ("features", "keys")


@register_pruner("tome")
@dataclass(kw_only=True)
class Tome(Pruner):
    """ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461): token merging, on the final features or inside the encoder.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    layer : int, optional
        None merges before the language model, `k` before decoder layer `k`; with ``at="vision"`` before encoder layer
        `k`, or, without one, a little before every encoder layer but the first.
    at : {"vision", "input", "decoder"}, optional
        The stage; by default ``decoder`` with a layer and ``input`` without.
    r : int or float, optional
        Tokens merged away a round: a number, or a share of those present; never more than half. By default half inside
        the encoder (one round a layer, as the paper) and 0.1 elsewhere: in small rounds only near tokens merge (bundled
        model, evaluation set 2.0.0, 63 of 576 tokens: 91.7% right with 0.1, 71.6% with 0.5, 94.1% unpruned).
    metric : {"features", "keys"}, optional
        What is compared: the features that are merged (the default, but inside the encoder), or an encoder layer's
        keys, mean over heads `[N, d_head]`, as the paper does: those of the layer before inside the encoder (the
        default there), elsewhere of the one whose output the projector reads.

    Notes
    -----
    Merges. A round: tokens at even places (A) and odd places (B) of reading order; each of A finds its most similar of
    B by cosine, the `r` most similar merge into it: size-weighted mean `[N, D]`, in float32 from the original tokens.
    Rounds follow until `k` are left, the last one shorter; what is compared is merged along. A merged token stands at
    the position of its token of B, the others keep theirs, and each round sees them in reading order. O(N^2 d / 4) a
    round for a metric of width d, with an N/2 x N/2 matrix, in float64: a round decides what the next one compares.

    Inside the encoder (``at="vision"``, the paper's place) as many tokens go before each layer, the paper's constant r,
    so that `keep`, a fraction, is left for the last one; attention logits get ``log(size)`` of the key (proportional
    attention), the class token is not merged. For towers with one patch a token: CLIP and SigLIP in LLaVA and
    LLaVA-NeXT, timm, open_clip; others are refused. The paper merges between a layer's attention and its MLP by that
    layer's keys; here it is done before the next layer by the same keys, so each MLP still sees the tokens of its
    attention, and the last layer's merging is left out. Before the language model sizes weigh nothing any more.

    The authors put unmerged tokens of A before those of B, in falling similarity; only the order differs. All pictures
    of a span (LLaVA-NeXT's tiles, a video's frames) are matched together. A token that is not finite resembles nobody,
    and adds nothing to what it merges with. Ties go to the lowest index.
    """

    layer: int | None = None
    at: str | None = None
    r: int | float | None = None
    metric: str | None = None

    paper: ClassVar[str] = "arXiv 2210.09461"
    merges: ClassVar[bool] = True
    order_dependent: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r is not None and self.r <= 0:
            raise ValueError(f"tome.r={self.r!r} is out of range: an int >= 1 or a share above 0")
        if self.metric not in (None, *METRICS):
            raise ValueError(f"tome.metric={self.metric!r} is unknown; allowed are {', '.join(METRICS)}")
        if self.at is not None and self.at not in STAGES:
            raise ValueError(f"tome.at={self.at!r} is no stage; allowed are {', '.join(STAGES)}")
        if (self.at == "input" and self.layer is not None) or (self.at == "decoder" and self.layer is None):
            raise ValueError(f"tome.at={self.at!r} does not go with layer={self.layer}")
        if self.at == "vision" and self.layer is None and isinstance(self.keep, int):
            raise ValueError(
                f"tome.keep={self.keep}: merging before every encoder layer takes a fraction; give one, or a layer"
            )

    @property
    def stage(self) -> str:  # type: ignore[override]
        """As asked for; by default from the layer."""
        return self.at or ("input" if self.layer is None else "decoder")

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """The encoder's keys, if they are compared."""
        return (EncoderKeys(heads="mean"),) if (self.metric or METRICS[self.at == "vision"]) == "keys" else ()

    def tower_stops(self, stop: Stop, last: int) -> tuple[Stop, ...]:
        """Without a layer: as many tokens less before each layer from 1 on."""
        if stop.stage != "vision" or stop.layer is not None or stop.keep is None:
            return (stop,)
        shares = [1 - (1 - stop.keep) * i / last for i in range(1, last)]
        return tuple(Stop("vision", i, share) for i, share in enumerate([*shares, stop.keep], 1))

    def select(self, tokens: VisualTokens, k: int) -> Merged:
        """What is left in reading order."""
        valid = tokens.valid
        x = tokens.read(self.signals[0]).to(valid.device).mean(2) if self.signals else tokens.features
        before = valid.float() if tokens.size is None else tokens.size
        merged = merge_rounds(x, before, valid, tokens.counts, self._rounds(tokens))
        # from the original tokens, so that half precision rounds once
        sums, size = group_sums(tokens.features, merged.owner, k, valid, tokens.size)
        features = sums / size[..., None].clamp(min=1)
        return Merged(merged.column[:, :k], features.to(tokens.features.dtype), size)

    def _rounds(self, tokens: VisualTokens) -> list[list[int]]:
        """How many tokens each row loses in each round."""
        counts, rounds = list(tokens.counts), []
        while any(n > b for n, b in zip(counts, tokens.budgets, strict=True)):
            rounds.append([min(self._round(n), n - b) for n, b in zip(counts, tokens.budgets, strict=True)])
            counts = [n - less for n, less in zip(counts, rounds[-1], strict=True)]
        return rounds

    def _round(self, n: int) -> int:
        """How many of `n` tokens a round merges away at most."""
        r = self.r if self.r is not None else 0.5 if self.at == "vision" else 0.1
        return min(n // 2, max(1, int(r * n) if isinstance(r, float) else r))
