"""DART: keep a few pivots and what resembles them least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vtc.pruners.primitives.precision import wide
from vtc.pruners.primitives.ranking import top_k

from .base import Pruner
from .registry import register_pruner
from .signals import DecoderHidden, DecoderKeys, Projected, Signal, TextEmbeddings
from .visual_tokens import VisualTokens

BLOCK = 256  # tokens that are compared at a time
VARIANTS = ("dart", "angelslim")


class Pivots(NamedTuple):
    """The pivots of each row, image pivots first, each kind by falling norm.

    ``columns [B, P]`` are image tokens, ``places [B, T]`` text tokens as in ``VisualTokens.text``, ``states [B, P+T,
    D]`` what is compared, ``there [B, P+T]`` False where a row has too few tokens of a kind.
    """

    columns: Tensor
    places: Tensor
    states: Tensor
    there: Tensor


def _sizes(x: Tensor) -> Tensor:
    """L1 norms of `x [..., N, D]` in float32 at least, `[..., N]`."""
    return torch.cat([wide(part).abs().sum(-1) for part in x.split(BLOCK, -2)], -1)


@register_pruner("dart")
@dataclass(kw_only=True)
class Dart(Pruner):
    """DART (Wen et al., EMNLP 2025, arXiv 2502.11494): duplication-aware reduction of tokens.

    Parameters
    ----------
    keep : int or float
        Tokens kept per span, exactly; with `official` see there.
    layer : int
        K: prune before decoder layer K. The paper's default is 2.
    pivots : int
        p: pivots among the visual tokens, and as many among the text tokens behind the span. The paper's default is 4.
    official : bool
        As the authors' code chooses: every pivot moves ``q`` tokens, so ``p + 2 p q`` are kept, and pivots are visited
        in the order of a CPython set of their absolute positions. ``q = floor(keep N / 2p)`` for a fraction (LLaVA-1.5
        without a maximum, Qwen2-VL and Qwen2.5-VL), ``floor(min(keep, N - p) / 2p)`` for a count (LLaVA-1.5's maximum,
        LLaVA-NeXT). The count is not the one asked, and the pivots are read on the host (one sync).
    variant : {"dart", "angelslim"}
        ``"angelslim"`` chooses as AngelSlim's version, which the IDPruner paper calls DART: text pivots from all text,
        the system prompt included; every pivot takes ``ceil((k - p) / 2p)`` until `k` is reached; compared are the
        states that ENTER the layer whose keys are read. AngelSlim prunes at ``layer=1``.

    Notes
    -----
    Stage: decoder. Pivots are the tokens with the largest L1 norm of their key of layer K - 1 (after rotary embedding),
    ``[B, N, H_kv d] -> [B, N]``; compared by cosine are the inputs of layer K, ``[B, N, D]``, under the language
    model's LAST norm, as in the authors' code (the paper does not say). The pivots are visited in turn (image pivots by
    falling norm, then text pivots by falling norm); each moves its share of the remaining candidates, those with the
    smallest cosine to it, to the kept set. O(p N D), one `[N, 2p]` matrix, no N x N.

    The authors keep ``4 + 8 floor(keep / 8)`` tokens and visit pivots in set order. By default the count is exact here:
    of ``keep - p`` tokens every pivot gets an equal share, the first ones one more; visiting in norm order keeps 0.90
    to 0.99 of the official set. A span with fewer text tokens behind it than `p` uses its image pivots again in their
    place (`official`: goes without). Cosines are taken in float32 (the authors: the model's dtype, whose near-ties
    flip). A token whose norm or cosine is not finite comes last.

    Limits: the authors' code knows one image per sample; with several, `official` takes each span's positions as if it
    were the only one. AngelSlim compares behind the layer's own input norm, whose weight is not known here: it is left
    out. Newline tokens are no candidates.
    """

    layer: int = 2
    pivots: int = 4
    official: bool = False
    variant: str = "dart"

    stage: ClassVar[str] = "decoder"
    paper: ClassVar[str] = "arXiv 2502.11494"
    uses_text: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pivots < 1:
            raise ValueError(f"dart.pivots={self.pivots!r} is out of range; it must be an int >= 1")
        if self.variant not in VARIANTS:
            raise ValueError(f"dart.variant={self.variant!r} is unknown; allowed are {', '.join(VARIANTS)}")
        if self.official and self.variant != "dart":
            raise ValueError(f"dart.official goes with variant='dart', not with {self.variant!r}")
        if self.official:
            self.adaptive_count = True  # type: ignore[misc]  # of this instance only
            self.order_dependent = True  # type: ignore[misc]  # a set's order goes by the tokens' numbers

    @property
    def signals(self) -> tuple[Signal, ...]:  # type: ignore[override]
        """Keys and states; the variant compares states one layer earlier."""
        if self.variant == "dart":
            return DecoderKeys(), DecoderHidden()
        if self.layer == 1:
            return DecoderKeys(), Projected(), TextEmbeddings()
        return DecoderKeys(), DecoderHidden(layer=self.layer - 2)

    def select(self, tokens: VisualTokens, k: int) -> Tensor:
        """The kept columns of each row, ascending: `[B, k]`; official: another number, -1 in unused columns."""
        states = tokens.features if self.variant == "dart" else tokens.read(self.signals[1])
        pivots = self.find_pivots(tokens, states)
        budget = torch.tensor(list(tokens.budgets), device=tokens.ids.device)[:, None]
        image = pivots.there[:, : pivots.columns.shape[1]]
        if not self.official:  # of small budgets only the first pivots
            image = image & (torch.arange(image.shape[1], device=image.device) < budget)
        kept = torch.zeros_like(tokens.valid).scatter(1, pivots.columns, image)
        similarity = self._similarity(tokens, states, pivots.states)
        if self.official:
            order = self.visit_order(tokens, pivots)
            quotas = torch.tensor(self._quotas(tokens), device=order.device)[:, None]
            shares = (pivots.there * quotas).gather(1, order)
            similarity = similarity.gather(2, order[:, None].expand(-1, similarity.shape[1], -1))
        else:
            shares = self._shares(budget - image.sum(1, keepdim=True), pivots.states.shape[1])
        rank = torch.arange(kept.shape[1], device=kept.device)
        for i in range(shares.shape[1]):
            left = similarity[..., i].masked_fill(kept | ~tokens.valid, float("inf")).sort(dim=1, stable=True).indices
            take = (rank < shares[:, i, None]) & tokens.valid.gather(1, left)
            kept = kept.scatter(1, left, kept.gather(1, left) | take)
        columns = (~kept).to(torch.int8).sort(dim=1, stable=True).indices
        if not self.official:
            return columns[:, :k]
        most = max(self.pivots * (1 + 2 * q) for q in self._quotas(tokens))
        columns = torch.where(rank < kept.sum(1, keepdim=True), columns, -1)
        return columns[:, : max(k, most)]

    def find_pivots(self, tokens: VisualTokens, states: Tensor) -> Pivots:
        """The pivots, given the `states` `[B, N, D]` that are compared, before any norm."""
        keys = self.signals[0]
        norms = _sizes(tokens.read(keys))
        image = top_k(norms, min(self.pivots, norms.shape[1]), tokens.valid)
        vectors = self._compared(tokens, states.gather(1, image[..., None].expand(-1, -1, states.shape[-1])))
        there = tokens.valid.gather(1, image)
        among = tokens.text_valid(after=True) if self.variant == "dart" else tokens.text_valid()[tokens.sample]
        count = min(self.pivots, among.shape[1])
        if count == 0:
            return Pivots(image, image[:, :0], vectors, there)
        norms = _sizes(tokens.text(keys))[tokens.sample]
        places = top_k(norms, count, among)
        found = self._text_states(tokens)[tokens.sample[:, None], places]
        found = self._compared(tokens, found)
        real = among.gather(1, places)
        if not self.official:
            spare = vectors[:, torch.arange(count, device=image.device) % image.shape[1]]
            found, real = torch.where(real[..., None], found, spare), torch.ones_like(real)
        return Pivots(image, places, torch.cat([vectors, found], 1), torch.cat([there, real], 1))

    def visit_order(self, tokens: VisualTokens, pivots: Pivots) -> Tensor:
        """`[B, P+T]`: the pivots in the order of a CPython set of their absolute positions; missing ones last."""
        positions = self.positions(tokens, pivots).masked_fill(~pivots.there, -1)
        orders = []
        for row in positions.tolist():
            there = [p for p in row if p >= 0]
            # the authors iterate over set(list): its order depends on the insertions, so no other list will do
            visited = [row.index(p) for p in set(there)]
            orders.append(visited + [i for i, p in enumerate(row) if p < 0])
        return torch.tensor(orders, device=positions.device)

    @staticmethod
    def positions(tokens: VisualTokens, pivots: Pivots) -> Tensor:
        """Absolute positions of the pivots, `[B, P+T]`, each span taken as the only one of its sample."""
        text, after = tokens.text_valid()[tokens.sample], tokens.text_valid(after=True)
        start = (text & ~after).sum(1, keepdim=True)
        size = torch.tensor([layout.tokens for layout in tokens.layouts], device=start.device)[:, None]
        image = start + tokens.ids.gather(1, pivots.columns)
        behind = text.long().cumsum(1).gather(1, pivots.places) - 1 + size
        return torch.cat([image, behind], 1)

    def _compared(self, tokens: VisualTokens, states: Tensor) -> Tensor:
        """What is compared of `states`, float32 at least."""
        return wide(tokens.final_norm(states) if self.variant == "dart" else states)

    def _similarity(self, tokens: VisualTokens, states: Tensor, pivots: Tensor) -> Tensor:
        """Cosines of `states` `[B, N, D]` and the pivots' `[B, P, D]`, `[B, N, P]`; 2 where one is not finite."""
        lengths, found = pivots.norm(dim=-1)[:, None], []
        for some in states.split(BLOCK, 1):  # a norm and a wider copy of all at once would be several times the states
            x = self._compared(tokens, some)
            found.append((x @ pivots.transpose(1, 2)) / (x.norm(dim=-1)[..., None] * lengths).clamp(min=1e-8))
        similarity = torch.cat(found, 1)
        return torch.where(similarity.isfinite(), similarity, 2.0)

    def _text_states(self, tokens: VisualTokens) -> Tensor:
        """The same of the text before any norm, `[S, T, D]`."""
        return tokens.text(self.signals[-1])

    def _shares(self, rest: Tensor, pivots: int) -> Tensor:
        """How many of `rest` `[B, 1]` tokens each pivot moves, `[B, pivots]`."""
        turn = torch.arange(pivots, device=rest.device)
        if self.variant == "dart":
            return rest // pivots + (turn < rest % pivots)
        quota = (rest + pivots - 1) // pivots
        return torch.minimum((rest - turn * quota).clamp(min=0), quota)

    def _quotas(self, tokens: VisualTokens) -> list[int]:
        """The authors' q of each row."""
        quotas = []
        for layout, budget in zip(tokens.layouts, tokens.budgets, strict=True):
            n, visits = layout.tokens, 2 * self.pivots
            if isinstance(self.keep, float):
                quotas.append(int(n * self.keep / visits))
            else:
                quotas.append(max(0, min(budget if self.keep is None else self.keep, n - self.pivots)) // visits)
        return quotas
