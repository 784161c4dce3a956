"""DART: keep a few pivots and what resembles them least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import Pruner, VisualTokens
from .registry import register_pruner
from .selection import top_k
from .signals import DecoderHidden, DecoderKeys, Signal


@register_pruner("dart")
@dataclass(kw_only=True)
class Dart(Pruner):
    """DART (Wen et al., EMNLP 2025, arXiv 2502.11494): duplication-aware reduction of tokens.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly.
    layer : int
        K: prune before decoder layer K. The paper's default is 2.
    pivots : int
        Pivots among the visual tokens, and as many among the text tokens behind the span. The paper's default is 4.

    Notes
    -----
    Stage: decoder. Pivots are the tokens with the largest L1 norm of their key of layer K - 1 (after rotary embedding);
    the states compared are the inputs of layer K under the language model's LAST norm, as in the authors' code. The
    pivots are visited in turn (image pivots by falling norm, then text pivots by falling norm); each moves its share of
    the remaining candidates with the smallest cosine to the kept set. O(pivots N D), no N x N matrix.

    The authors keep ``4 + 8 floor(keep N / 8)`` tokens, not the number asked, and visit pivots in the order of a Python
    set. Here the count is exact: of ``keep - pivots`` tokens every pivot gets an equal share, the first ones one more.
    A span with fewer text tokens behind it than `pivots` uses its image pivots again in their place.
    """

    layer: int = 2
    pivots: int = 4

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2502.11494"
    signals: ClassVar[tuple[Signal, ...]] = (DecoderKeys(), DecoderHidden())
    uses_text: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pivots, bool) or not isinstance(self.pivots, int) or self.pivots < 1:
            raise ValueError(f"dart.pivots={self.pivots!r} is out of range; it must be an int >= 1")

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """Pivots first, then the least similar of each pivot, `[B, k]`."""
        keys, hidden = self.signals
        device = tokens.ids.device
        budget = torch.tensor(list(tokens.budgets), device=device)[:, None]
        states = normalize(tokens.final_norm(tokens.features).float(), dim=-1)
        norms = tokens.read(keys).float().abs().sum(-1)
        first = top_k(norms, min(self.pivots, k), tokens.valid)
        chosen = torch.arange(first.shape[1], device=device) < budget  # of small budgets only the first pivots
        kept = torch.zeros_like(tokens.valid).scatter(1, first, chosen)
        image = states.gather(1, first[..., None].expand(-1, -1, states.shape[-1]))
        pivots = torch.cat([image, self._text_pivots(tokens, keys, hidden, image)], 1)
        share, more = self._shares(budget - chosen.sum(1, keepdim=True), pivots.shape[1])
        for i in range(pivots.shape[1]):
            similarity = (states @ pivots[:, i, :, None])[..., 0].masked_fill(kept | ~tokens.valid, float("inf"))
            order = similarity.sort(dim=1, stable=True).indices
            take = torch.arange(order.shape[1], device=device) < share + (i < more)
            kept = kept.scatter(1, order, kept.gather(1, order) | take)
        return (~kept).to(torch.int8).sort(dim=1, stable=True).indices[:, :k]

    @staticmethod
    def _shares(rest: Tensor, pivots: int) -> tuple[Tensor, Tensor]:
        """Equal share of `rest` `[B, 1]` per pivot, and how many pivots get one more."""
        return rest // pivots, rest % pivots

    def _text_pivots(self, tokens: VisualTokens, keys: Signal, hidden: Signal, image: Tensor) -> Tensor:
        """`[B, P, D]` unit states of the text pivots behind each span; image pivots where there are too few."""
        after = tokens.text_valid(after=True)
        norms = tokens.text(keys).float().abs().sum(-1)[tokens.sample]
        count = min(self.pivots, after.shape[1])
        if count == 0:
            return image
        best = top_k(norms, count, after)
        states = tokens.final_norm(tokens.text(hidden)).float()[tokens.sample]
        states = normalize(states.gather(1, best[..., None].expand(-1, -1, states.shape[-1])), dim=-1)
        spare = image[:, torch.arange(count, device=image.device) % image.shape[1]]
        return torch.where(after.gather(1, best)[..., None], states, spare)
